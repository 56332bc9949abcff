"""run, create, start, stop, kill, wait, rm, recover, ps, inspect: lives of containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import ENVIRONMENT, Cli
from tests.helpers.bundles import make_bundle, rootfs
from tests.helpers.waiting import gone, wait_until

SCRIPT = "echo out; echo err >&2; exit 7"


def files(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


def test_run_shows_both_streams_and_ends_as_the_container_does(both: Cli, root: str) -> None:
    done = both("run", "--rm", "--name", both.name(), "--rootfs", root, "sh", "-c", SCRIPT)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert both("ps", "-a", "-q").stdout == ""
    wait_until(lambda: files(both.state_dir) == [], 20, "nothing to be left of it")


def test_run_passes_its_input(both: Cli, root: str) -> None:
    text = "line\n" * 20_000
    done = both(
        "run", "-i", "--rm", "--name", both.name(), "--rootfs", root, "wc", "-c", stdin=text
    )
    assert (done.status, done.stdout) == (0, f"{len(text)}\n")


def test_all_of_the_output_comes(both: Cli, root: str) -> None:
    done = both("run", "--rm", "--name", both.name(), "--rootfs", root, "seq", "1", "30000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 30001))


def test_run_keeps_the_container_without_rm(cli: Cli, root: str) -> None:
    name = cli.name()
    assert cli("run", "--name", name, "--rootfs", root, "sh", "-c", SCRIPT).status == 7
    assert cli("ps").stdout.split() == ["NAME", "STATUS", "PID", "CREATED", "COMMAND"]
    assert "stopped (7)" in cli("ps", "-a").stdout
    logs = cli("logs", name)
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    # Its name is taken until it is removed.
    again = cli("run", "--name", name, "--rootfs", root, "true")
    assert again.status == 125
    assert "already" in again.stderr
    assert cli("rm", name).stdout == f"{name}\n"
    assert files(cli.state_dir) == []


def test_a_signal_is_passed_on(both: Cli, root: str) -> None:
    script = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    command = both.start("run", "--rm", "--name", both.name(), "--rootfs", root, "sh", "-c", script)
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGTERM)
    out, _ = command.communicate(timeout=60)
    assert (out, command.returncode) == ("told\n", 5)


def test_a_second_signal_kills(cli: Cli, root: str) -> None:
    command = cli.start(
        "run", "--rm", "--name", cli.name(), "--rootfs", root, "sh", "-c", "echo ready; sleep 600"
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    # The first process of a pid namespace ignores what it does not handle.
    command.send_signal(signal.SIGINT)
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=60)
    assert command.returncode == 137


def test_the_end_of_a_pipeline_ends_its_beginning(cli: Cli, root: str) -> None:
    name = cli.name()
    command = cli.start("run", "--rm", "--name", name, "--rootfs", root, "yes")
    assert command.stdout is not None
    assert command.stdout.readline() == "y\n"
    command.stdout.close()
    assert command.wait(60) == 137
    assert cli("ps", "-a", "-q").stdout == ""


def test_time_limit(both: Cli, root: str) -> None:
    done = both(
        "run", "--rm", "--timeout", "1", "--name", both.name(), "--rootfs", root, "sleep", "600"
    )
    assert done.status == 255
    assert "1 s, its limit" in done.stderr


def test_removal_waits_for_those_who_are_to_tell_the_exit_code(both: Cli, root: str) -> None:
    """Here the code waits behind output that nobody reads for a while."""
    name = both.name()
    words = ["run", "--rm", "--timeout", "1", "--name", name, "--rootfs", root]
    running = both.start(*words, "sh", "-c", "seq 15000; exec sleep 600")
    bundle = both.state_dir / "bundles" / name
    wait_until(bundle.exists, what="the container")

    def removal_waits() -> bool:
        cleaners = {
            str(process.pid)
            for process in psutil.process_iter(["cmdline"])
            if {"cleanup", name} <= set(process.info["cmdline"] or ())
        }
        waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any(line[1] == "->" and line[5] in cleaners for line in waiting)

    wait_until(lambda: not bundle.exists() or removal_waits(), what="the removal's turn")
    output, errors = running.communicate(timeout=100)
    assert output.splitlines()[-1] == "15000"
    assert (running.returncode, "1 s, its limit" in errors) == (255, True)
    wait_until(lambda: not bundle.exists(), what="the removal")


@pytest.mark.parametrize(
    ("command", "status"), [("nope", 127), ("/bin/nope", 127), ("/etc/passwd", 126)]
)
def test_what_cannot_be_executed(cli: Cli, root: str, command: str, status: int) -> None:
    name = cli.name()
    done = cli("run", "--name", name, "--rootfs", root, command)
    assert done.status == status
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f'"{command}"' in done.stderr, "not with backslashes, either"
    assert files(cli.state_dir) == []


def test_detached_and_removed_by_its_monitor(both: Cli, root: str) -> None:
    name = both.name()
    done = both("run", "-d", "--rm", "--name", name, "--rootfs", root, "sleep", "600")
    assert done.stdout == f"{name}\n"
    assert both("ps", "-q").stdout == f"{name}\n"
    pid = both("inspect", name).json[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: both("ps", "-a", "-q").stdout == "", 30, "its removal")
    wait_until(lambda: files(both.state_dir) == [], 20, "nothing to be left of it")


def test_created_inspected_started(both: Cli, root: str) -> None:
    name = both.name()
    done = both("create", "--json", "--name", name, "--rootfs", root, "sh", "-c", SCRIPT)
    assert done.json["name"] == name
    assert not gone(done.json["pid"])
    [known] = both("inspect", name).json
    assert (known["status"], known["exit_code"], known["monitored"]) == ("created", None, True)
    assert known["command"] == ["sh", "-c", SCRIPT]
    done = both("start", "-a", name)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
    [known] = both("inspect", name).json
    assert (known["status"], known["exit_code"]) == ("stopped", 7)
    assert both("wait", name).stdout == "7\n"
    failed = both("start", name)
    assert (failed.status, len(failed.stderr.splitlines())) == (125, 1)
    assert both("ps", "-a", "-q").stdout == f"{name}\n"


def test_stop_kill_rm(both: Cli) -> None:
    first, second = both.sleeper(), both.sleeper()
    assert sorted(both("ps", "-q").stdout.split()) == sorted([first, second])
    assert both("rm", first).status == 125, "it runs"
    assert both("stop", "-t", "0.2", first).stdout == f"{first}\n"
    assert both("wait", first).stdout == "137\n"
    assert both("kill", "--json", second).json == [{"name": second, "result": "KILL"}]
    assert both("wait", "--timeout", "60", first, second).stdout == "137\n137\n"
    assert sorted(both("rm", "-a").stdout.split()) == sorted([first, second])
    assert both("ps", "-a", "--json").json == []


def test_one_of_many_that_is_not_there(cli: Cli) -> None:
    name = cli.sleeper()
    done = cli("stop", "-t", "0", "nobody", name)
    assert (done.status, done.stdout) == (125, f"{name}\n")
    assert done.stderr.count("\n") == 1
    assert "nobody" in done.stderr


def test_a_bundle_of_the_users_own(both: Cli, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", ["sh", "-c", SCRIPT])
    before = (bundle / "config.json").read_bytes()
    name = both.name()
    done = both("run", "--name", name, "--bundle", bundle)
    assert (done.status, done.stdout) == (7, "out\n")
    assert both("logs", name).stdout == "out\n"
    both("rm", name)
    assert (bundle / "config.json").read_bytes() == before
    for wrong in (["-t"], ["--memory", "64m"]):
        refused = both("run", "--bundle", bundle, *wrong)
        assert refused.status == 125
        assert len(refused.stderr.splitlines()) == 1
    assert both("run", "--bundle", bundle, "ls").status == 125
    assert both("ps", "-a", "-q").stdout == ""


def test_what_the_container_is_given(cli: Cli, tmp_path: Path) -> None:
    root = rootfs(tmp_path)
    for folder in ("mnt", "media", "srv"):
        (root / folder).mkdir()
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("seen\n")
    script = "id -u; id -g; pwd; echo $A $GIVEN $NOT_SET; hostname; cat /mnt/file; "
    script += "echo made >/media/made; touch /mnt/made 2>/dev/null || echo read-only; "
    script += "df /srv | tail -1 | cut -c 1-5; touch /made 2>/dev/null || echo so is the root"
    words = ["--pids", "32", "-u", "12:34", "-w", "/tmp", "-e", "A=1", "-e", "GIVEN"]
    words += ["-e", "NOT_SET", "--hostname", "box", "-v", "data:/mnt"]
    words += ["--mount", f"type=bind,src={data},dst=/media,rw"]
    words += ["--mount", "type=tmpfs,dst=/srv,size=1m"]
    data.chmod(0o777)
    environment = {**ENVIRONMENT, "GIVEN": "2"}
    name = cli.name()
    done = cli(
        "run", "--rm", "--name", name, "--rootfs", root, *words, "sh", "-c", script,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "12", "34", "/tmp", "1 2", "box", "seen", "read-only", "tmpfs", "so is the root",
    ], done  # fmt: skip
    assert (data / "made").read_text() == "made\n"


def test_limits(cli: Cli, root: str) -> None:
    name = cli.name()
    words = ["--memory", "64m", "--cpus", "0.5", "--pids", "32", "--writable"]
    assert cli("create", "--name", name, "--rootfs", root, *words, "sh").status == 0
    bundle = Path(cli("inspect", name).json[0]["bundle"])
    config = json.loads((bundle / "config.json").read_text())
    resources = config["linux"]["resources"]
    assert resources["memory"]["limit"] == 64 << 20
    assert resources["cpu"]["quota"] * 2 == resources["cpu"]["period"]
    assert resources["pids"]["limit"] == 32
    assert config["root"]["readonly"] is False


def test_recover(cli: Cli) -> None:
    name = cli.sleeper()
    [before] = cli("inspect", name).json
    assert cli("recover", name).stdout == f"{name}: has its monitor\n"
    os.kill(before["monitor_pid"], signal.SIGKILL)
    wait_until(lambda: gone(before["monitor_pid"]), 20, "the end of its monitor")
    assert "no monitor" in cli("ps").stdout
    assert cli("recover", "-a").stdout == f"{name}: has a new monitor\n"
    [after] = cli("inspect", name).json
    assert (after["status"], after["pid"]) == ("running", before["pid"])
    assert after["monitor_pid"] != before["monitor_pid"]
    assert cli("recover", "-a", "--json").json == []


def test_removing_what_the_runtime_has_lost(cli: Cli) -> None:
    """As after a reboot."""
    name = cli.sleeper()
    subprocess.run([cli.runtime, "delete", "--force", name], check=True, timeout=60)
    wait_until(lambda: "lost" in cli("ps", "-a").stdout, 20, "its loss to be seen")
    assert cli("ps", "-q").stdout == ""
    assert cli("rm", name).status == 0
    assert files(cli.state_dir) == []
