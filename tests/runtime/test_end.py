"""How a container's life ends: the code, what is written, in which order, and that nothing stops it."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from tests.helpers.bundles import no_pid_namespace
from tests.helpers.harness import Container, Harness, target
from tests.helpers.waiting import gone, wait_until

SLEEP = ("sleep", "1000")


# --- exit codes


@pytest.mark.parametrize("code", [0, 1, 3, 127, 128, 200, 255])
def test_the_code_of_an_exit(harness: Harness, code: int) -> None:
    container = harness.running(["sh", "-c", f"exit {code}"])
    assert container.wait_exit() == str(code)
    assert (container.persist_dir / "exit").read_text() == str(code)


@pytest.mark.parametrize("number", [1, 9, 11, 15])
def test_the_code_of_a_signal(harness: Harness, number: int) -> None:
    container = harness.running(
        ["sh", "-c", f"kill -{number} $$; sleep 5; exit 4"], edit=no_pid_namespace
    )
    assert container.wait_exit() == str(128 + number)


def test_killed_by_the_engine(harness: Harness) -> None:
    container = harness.running()
    container.kill("KILL")
    assert container.wait_exit() == "137"


def test_killed_before_it_was_started(harness: Harness) -> None:
    container = harness.container(["true"])
    container.created()
    container.kill("KILL")
    assert container.wait_exit() == "137"


def test_one_that_ends_at_once_keeps_its_code(harness: Harness) -> None:
    for code in range(1, 13):
        container = harness.container(["sh", "-c", f"exit {code}"])
        container.run()
        assert container.wait_exit() == str(code)
        container.delete()


@pytest.mark.parametrize("terminal", [False, True])
def test_with_sync_the_foreground_process_has_the_code(harness: Harness, terminal: bool) -> None:
    container = harness.container(["sh", "-c", "exit 33"], terminal=terminal)
    call = container.create("--sync")
    assert call.sync.value()["data"] > 0
    container.start()
    assert call.status() == 33
    assert container.exit_file.read_text() == "33"
    assert not container.monitor_pidfile.exists(), "with --sync no pid file is asked for"


def test_with_sync_a_timeout_is_255(harness: Harness) -> None:
    container = harness.container(SLEEP)
    call = container.create("--sync", "-T", "1")
    assert call.sync.value()["data"] > 0
    assert call.status() == 255
    assert container.exit_file.read_text() == "-1"


# --- nothing of the output is lost


@pytest.mark.parametrize("terminal", [False, True])
def test_output_just_before_the_end_is_complete(harness: Harness, terminal: bool) -> None:
    expected = "".join(f"{n}\n" for n in range(1, 5001))
    for _ in range(5):
        container = harness.container(
            ["sh", "-c", "seq 1 5000; seq 1 500 >&2; exit 3"], terminal=terminal
        )
        container.created()
        client = container.attach()
        reader = client.collect()
        container.start()
        assert container.wait_exit() == "3"
        logged = {name: container.log.text(name) for name in ("stdout", "stderr")}
        reader.join(30)
        assert client.ended
        if terminal:
            lines = logged["stdout"].replace("\r\n", "\n")
            assert len(lines) == len(expected) + 1892
            assert client.stream(2) == container.log.stream("stdout")
        else:
            assert logged["stdout"] == expected
            assert client.stream(2) == expected.encode()
            assert logged["stderr"].count("\n") == 500
            assert client.stream(3) == logged["stderr"].encode()
        container.delete()


def test_a_process_that_holds_the_pipe_delays_nothing(harness: Harness) -> None:
    command = "sleep 1000 & echo $! >&2; echo bye; exit 3"
    container = harness.container(["sh", "-c", command], edit=no_pid_namespace)
    container.run()
    try:
        assert container.wait_exit() == "3"
        assert container.log.text() == "bye\n"
    finally:
        os.kill(int(container.log.text("stderr")), 9)
    container.wait_monitor_gone()


def test_a_process_that_floods_the_pipe_delays_nothing(harness: Harness) -> None:
    command = "(while :; do echo flood; done) & echo $! >&2; exit 3"
    container = harness.container(["sh", "-c", command], edit=no_pid_namespace)
    container.run()
    assert container.wait_exit() == "3"
    flooder = int(container.log.text("stderr").split()[0])
    try:
        container.wait_monitor_gone()
        wait_until(lambda: gone(flooder), what="the flooder's death of SIGPIPE")
    finally:
        if not gone(flooder):
            os.kill(flooder, 9)


def test_closed_streams_are_no_end(harness: Harness) -> None:
    container = harness.running(["sh", "-c", "exec >&- 2>&-; sleep 0.5; exit 6"])
    assert container.wait_exit() == "6"


def test_closed_streams_cost_nothing(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo a; exec >&- 2>&- <&-; exec sleep 1000"])
    container.run()
    wait_until(lambda: container.log.path.stat().st_size > 0, what="the line")
    pid = container.container_pid()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/fd/1"), what="the closing of stdout")
    monitor = container.monitor_pid()
    assert idle(monitor), "the monitor burns time on pipes that have ended"
    assert not container.exit_file.exists()


def idle(pid: int) -> bool:
    """Whether a process comes to rest: no CPU time and no switches over half a second."""

    def used() -> tuple[str, ...]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        return fields[11], fields[12], status[status.index("voluntary_ctxt_switches") :]

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        before = used()
        time.sleep(0.5)  # a span to measure over, not a wait for something
        if used() == before:
            return True
    return False


# --- the order


def test_the_log_and_persist_file_come_before_the_exit_file(harness: Harness) -> None:
    """CRI-O acts on the exit file and then reads the others."""
    for _ in range(5):
        container = harness.container(["sh", "-c", "seq 1 3000; exit 5"])
        container.created()
        client = container.attach()
        container.start()
        deadline = time.monotonic() + 30
        while not container.exit_file.exists():
            assert time.monotonic() < deadline
        assert container.exit_file.read_text() == "5", "whole as soon as it has its name"
        assert (container.persist_dir / "exit").read_text() == "5"
        assert container.log.text().endswith("\n3000\n")
        client.read_to_end()
        container.delete()


def test_what_stays_and_what_goes(harness: Harness) -> None:
    container = harness.running(["sh", "-c", "exit 5"])
    container.wait_exit()
    container.wait_monitor_gone()
    assert not (container.directory / "attach").exists()
    assert sorted(os.listdir(container.exit_dir)) == [container.cid]
    assert sorted(os.listdir(container.persist_dir)) == ["exit"]
    for path in (container.exit_file, container.persist_dir / "exit"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert not path.read_bytes().endswith(b"\n")


def test_the_exec_message_comes_after_the_exit_file(harness: Harness) -> None:
    session = harness.running().exec(["sh", "-c", "exit 8"])
    call = session.begin()
    call.sync.value()
    assert call.sync.value() == {"data": 8}
    assert session.exit_file.read_text() == "8"


# --- every step happens, even if an earlier one fails


def broken(container: Container, what: str) -> None:
    if what == "exit dir missing":
        container.exit_dir.rmdir()
    elif what == "exit dir is a file":
        container.exit_dir.rmdir()
        container.exit_dir.touch()
    elif what == "persist dir missing":
        shutil.rmtree(container.persist_dir)  # a monitor may keep files of its own there
    elif what == "log gone":
        container.log.path.unlink()


PROBLEMS = ["exit dir missing", "exit dir is a file", "persist dir missing", "log gone"]


@target("conmon ends at the first step that fails")
@pytest.mark.parametrize("what", PROBLEMS)
def test_a_step_that_fails_costs_no_other_step(harness: Harness, what: str) -> None:
    done = harness.home / "done"
    command = harness.script("last", f"echo ran >{done}")
    container = harness.container(["sh", "-c", "exit 5"])
    container.created("--exit-command", str(command))
    broken(container, what)
    container.start()
    wait_until(lambda: done.read_text() == "ran\n", what="the exit command")
    if not what.startswith("persist"):
        assert (container.persist_dir / "exit").read_text() == "5"
    if not what.startswith("exit"):
        assert container.exit_file.read_text() == "5"
    assert not (container.directory / "attach").exists()
    container.wait_monitor_gone()


@target("conmon ends at the first step that fails")
@pytest.mark.parametrize("what", PROBLEMS[:3])
def test_a_step_that_fails_costs_no_exec_its_code(harness: Harness, what: str) -> None:
    session = harness.running().exec(["sh", "-c", "read x; exit 5"])
    call = session.begin("-i")
    assert call.sync.value()["data"] > 0
    broken(session, what)  # type: ignore[arg-type]
    client = session.attach()
    client.send(b"x\n")
    assert call.sync.value() == {"data": 5}
    assert call.sync.rest() == b""


# --- the exit command

REPORT = """exec >$1.new 2>&1
echo args=$#:$2:$3:$4
echo exit=$(cat "$5")
echo FOO=$FOO SYNC=$_OCI_SYNCPIPE
echo fds=$(ls /proc/$$/fd | tr '\\n' ' ')
grep -E '^Sig(Blk|Ign)' /proc/self/status
mv $1.new $1
"""


def test_the_exit_command(harness: Harness) -> None:
    report = harness.home / "report"
    command = harness.script("last", REPORT)
    container = harness.container(["sh", "-c", "exit 5"])
    options = ["--exit-command", str(command)]
    for word in (str(report), "a b", "", "-x", str(container.exit_file)):
        options += ["--exit-command-arg", word]
    container.run(*options, env={"FOO": "bar"})
    lines = wait_until(report.read_text, what="the exit command").splitlines()
    assert lines[0] == "args=5:a b::-x"
    assert lines[1] == "exit=5", "the exit file is there when the command runs"
    assert lines[2] == "FOO=bar SYNC=3"
    numbers = {int(word) for word in lines[3].partition("=")[2].split()}
    assert numbers - {10, 255} <= {0, 1, 2, 3}, "the shell's own 10 or 255, and ls's 3, at most"


def test_nothing_of_the_bundle_is_open_when_the_exit_command_runs(harness: Harness) -> None:
    """It may be the command's task to remove the bundle, on NFS for example."""
    report = harness.home / "report"
    script = f"ls -l /proc/$PPID/fd /proc/$$/fd >{report}.new 2>&1; mv {report}.new {report}"
    container = harness.container(["true"])
    container.run("--exit-command", str(harness.script("last", script)))
    listing = wait_until(report.read_text, what="the exit command")
    assert "/dev/null" in listing
    assert str(container.directory) not in listing


def test_orphans_are_reaped_while_the_exit_command_runs(harness: Harness) -> None:
    """It may take its time, or wait for it (--exit-delay); a zombie holds namespaces."""
    go_on = harness.home / "go-on"
    command = harness.script("last", f"while [ ! -e {go_on} ]; do sleep 0.05; done")
    container = harness.running(edit=no_pid_namespace)
    session = container.exec(["sh", "-c", "sleep 0.5 & echo $!; exit 3"])
    session.begin("--exit-command", str(command))
    try:
        assert session.results()[1] == 3
        orphan = Path(f"/proc/{session.log.text().strip()}")
        wait_until(lambda: not orphan.exists(), what="the orphan's end")
    finally:
        go_on.touch()


@target("2.1.6 leaves CHLD and USR1 blocked and PIPE ignored")
def test_the_exit_command_has_ordinary_signals(harness: Harness) -> None:
    report = harness.home / "report"
    command = harness.script("last", REPORT)
    container = harness.container(["true"])
    options = ["--exit-command", str(command), "--exit-command-arg", str(report)]
    for word in ("", "", "", "/dev/null"):
        options += ["--exit-command-arg", word]
    container.run(*options)
    status = wait_until(report.read_text, what="the exit command")
    assert status.split("SigBlk:")[1].split()[0] == "0" * 16
    assert status.split("SigIgn:")[1].split()[0] == "0" * 16


@pytest.mark.parametrize("kind", ["create", "exec"])
def test_the_exit_command_runs_when_nothing_could_be_made(harness: Harness, kind: str) -> None:
    done = harness.home / "done"
    options = ("--exit-command", str(harness.script("last", f"echo ran >{done}")))
    failing = harness.script("failing", "echo no >&2; exit 1")
    container = harness.container(["true"])
    session = container.exec(["true"])
    container.runtime = session.runtime = failing
    call = container.create(*options) if kind == "create" else session.begin(*options)
    assert call.sync.value()["data"] == -1
    wait_until(lambda: done.read_text() == "ran\n", what="the exit command")


def test_the_exit_command_waits_for_its_delay(harness: Harness) -> None:
    done = harness.home / "done"
    command = harness.script("last", f"echo ran >{done}")
    container = harness.container(["true"])
    call = container.create("--exit-command", str(command), "--exit-delay", "1")
    assert call.sync.value()["data"] > 0
    container.start()
    container.wait_exit()
    begun = time.monotonic()
    assert call.sync.rest() == b"", "the pipe ends before the delay"
    wait_until(done.exists, what="the exit command")
    # The file's time has the kernel's clock tick; the delay is whole seconds.
    assert done.stat().st_mtime - container.exit_file.stat().st_mtime > 0.95
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("command", ["/nope/nope", "/etc/passwd"])
def test_an_exit_command_that_cannot_run(harness: Harness, command: str) -> None:
    container = harness.container(["sh", "-c", "exit 5"])
    call = container.create("--sync", "--exit-command", command)
    assert call.sync.value()["data"] > 0
    container.start()
    assert call.status() == 5
    assert container.exit_file.read_text() == "5"


def test_a_child_of_the_exit_command_may_outlive_the_monitor(harness: Harness) -> None:
    noted = harness.home / "noted"
    command = harness.script("last", f"setsid sh -c 'echo $$ >{noted}; exec sleep 1000' &")
    container = harness.container(["true"])
    container.run("--exit-command", str(command))
    container.wait_exit()
    pid = int(wait_until(noted.read_text, what="the child"))
    try:
        container.wait_monitor_gone()
        assert not gone(pid)
    finally:
        os.kill(pid, 9)


# --- the kill of a container that was timed out


def test_a_timeout_kills_the_container(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo a; trap '' TERM; while :; do sleep 5; done"])
    pid = container.run("-T", "2")
    assert container.wait_exit() == "-1"
    wait_until(lambda: gone(pid), what="the container's end")
    assert container.log.text() == "a\n"


def test_a_timeout_ends_a_container_that_was_never_started(harness: Harness) -> None:
    container = harness.container(["true"])
    pid = container.created("-T", "1")
    assert container.wait_exit() == "-1"
    wait_until(lambda: gone(pid), what="the container's end")


def test_paused_and_resumed(harness: Harness) -> None:
    container = harness.running()
    container.owner.runc("pause", container.cid)
    assert container.state() == "paused"
    container.owner.runc("resume", container.cid)
    container.kill("KILL")
    assert container.wait_exit() == "137"
