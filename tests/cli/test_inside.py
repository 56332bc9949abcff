"""exec, attach and logs: working in a container, and looking on."""

from __future__ import annotations

import json
import os
import select
import signal

import pytest

from tests.cli.conftest import Cli
from tests.helpers.waiting import gone, wait_until


def test_exec(both: Cli) -> None:
    name = both.sleeper()
    done = both("exec", name, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
    text = "line\n" * 20_000
    done = both("exec", "-i", name, "cat", stdin=text)
    assert (done.status, done.stdout) == (0, text)
    assert both("exec", name, "cat", stdin="not passed without -i").stdout == ""
    script = 'id -u; pwd; echo "$A"; echo "$HOME"'
    done = both("exec", "-u", "5:6", "-w", "/tmp", "-e", "A=b c", name, "sh", "-c", script)
    assert done.stdout.splitlines()[:3] == ["5", "/tmp", "b c"]
    done = both("exec", "--json", name, "sh", "-c", "echo out; exit 3")
    assert done.status == 3
    assert done.json == {
        "name": name, "exit_code": 3, "stdout": "out\n", "stderr": "", "truncated": False,
    }  # fmt: skip


@pytest.mark.parametrize(("command", "status"), [("nope", 127), ("/etc", 126)])
@pytest.mark.parametrize("options", [[], ["-t"], ["-d"]], ids=["plain", "terminal", "detached"])
def test_what_cannot_be_executed(both: Cli, command: str, status: int, options: list[str]) -> None:
    name = both.sleeper()
    done = both("exec", *options, name, command)
    assert (done.status, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1
    assert command in done.stderr


def test_exec_in_the_background(both: Cli) -> None:
    name = both.sleeper()
    done = both("exec", "-d", name, "sleep", "601")
    pid = int(done.stdout)
    assert not gone(pid)
    assert "sleep 601" in both("exec", name, "ps").stdout
    done = both("exec", "-d", "--json", "-t", name, "true")
    assert done.json["name"] == name
    both("rm", "-f", name)
    assert gone(pid)
    assert not list(both.state_dir.rglob("exec-*"))


def test_a_signal_is_passed_on_to_the_command(both: Cli) -> None:
    name = both.sleeper()
    script = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    command = both.start("exec", name, "sh", "-c", script)
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGTERM)
    assert command.communicate(timeout=60)[0] == "told\n"
    assert command.returncode == 5
    command = both.start("exec", name, "sh", "-c", "trap '' INT TERM; echo ready; sleep 602")
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGTERM)
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=60)
    assert command.returncode == 137


def test_exec_in_what_does_not_run(cli: Cli, root: str) -> None:
    name = cli.name()
    cli("run", "--name", name, "--rootfs", root, "true")
    done = cli("exec", name, "true")
    assert done.status == 125
    assert len(done.stderr.splitlines()) == 1


def test_attach(both: Cli, root: str) -> None:
    name = both.name()
    script = "while read line; do echo got $line; echo twice >&2; done; exit 4"
    assert both("run", "-d", "-i", "--name", name, "--rootfs", root, "sh", "-c", script).status == 0
    onlooker = both.start("attach", "--no-stdin", name)
    talker = both.start("attach", name)

    def say(text: str) -> None:
        assert talker.stdin is not None and talker.stdout is not None
        talker.stdin.write(f"{text}\n")
        talker.stdin.flush()
        assert talker.stdout.readline() == f"got {text}\n"

    def onlooker_sees() -> bool:
        say("more")
        return bool(select.select([onlooker.stdout], [], [], 0)[0])

    say("one")
    wait_until(lambda: "got one" in both("logs", name).stdout, 20, "the log")
    # Whoever comes later gets what comes later.
    wait_until(onlooker_sees, 30, "output for the one who looks on")
    both("kill", name)
    assert set(talker.communicate(timeout=60)[1].splitlines()) == {"twice"}
    out, _ = onlooker.communicate(timeout=60)
    assert "got more\n" in out
    assert (talker.returncode, onlooker.returncode) == (137, 137)
    assert both("attach", name).status == 125


def test_the_end_of_input(both: Cli, root: str) -> None:
    """The only client's end of input is the container's, unless it was started in the background."""
    name = both.name()
    both("create", "-i", "--name", name, "--rootfs", root, "sh", "-c", "cat; exit 9")
    done = both("start", "-a", name, stdin="all of it")
    assert (done.status, done.stdout) == (9, "all of it")


def test_logs(both: Cli, root: str) -> None:
    name = both.name()
    script = "echo first; echo third; read x; echo second >&2; echo last"
    both("run", "-d", "-i", "--name", name, "--rootfs", root, "sh", "-c", script)
    wait_until(lambda: both("logs", name).stdout == "first\nthird\n", 20, "the log")
    tail = both("logs", "--tail", "1", "--json", name)
    [line] = [json.loads(line) for line in tail.stdout.splitlines()]
    assert (line["stream"], line["line"]) == ("stdout", "third")
    stamped = both("logs", "-t", "--tail", "1", name).stdout
    assert stamped == f"{line['time']} third\n"
    assert both("logs", "--since", "1h", name).stdout == "first\nthird\n"
    assert both("logs", "--since", "2100-01-01T00:00:00Z", name).stdout == ""
    assert both("logs", "--since", "soon", name).status == 125
    follower = both.start("logs", "-f", "--tail", "1", name)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "third\n"
    both("attach", name, stdin="go on\n")
    assert follower.communicate(timeout=60) == ("last\n", "second\n")
    assert follower.returncode == 0


def test_logs_that_nobody_reads_to_the_end(cli: Cli, root: str) -> None:
    name = cli.name()
    cli("run", "--name", name, "--rootfs", root, "seq", "1", "100000")
    command = cli.start("logs", name)
    assert command.stdout is not None and command.stderr is not None
    assert command.stdout.readline() == "1\n"
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(60) == 141


def test_top(cli: Cli, root: str) -> None:
    name = cli.name()
    cli("run", "-d", "--name", name, "--rootfs", root, "sh", "-c", "while :; do echo line; done")
    asleep = cli.sleeper()
    rows = {row["name"]: row for row in cli("top", "--json", "-i", "0.5").json}
    assert rows.keys() == {name, asleep}
    assert rows[name]["log_rate"] > 0
    assert rows[name]["cpu_percent"] > 0
    assert rows[asleep]["log_rate"] == 0
    assert rows[asleep]["memory_rss"] > 0
    cli("rm", "-f", name)
    done = cli("top", "-i", "0.1", "-n", "2")
    assert done.stdout.count("NAME") == 2
    assert done.stdout.count(asleep) == 2
    assert "\033" not in done.stdout
    [known] = cli("inspect", asleep).json
    assert known["stats"]["pids"] == 1
    assert os.path.isdir(known["bundle"])
