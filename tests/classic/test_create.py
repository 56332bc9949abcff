"""Create in the classic dialect: its words, the sync pipe, the exit file, whose streams the container has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.classic.sessions import Call, Containers, children
from tests.helpers.monitors import monitor
from tests.helpers.waiting import gone, wait_until


def test_a_life(containers: Containers) -> None:
    container = containers(["sh", "-c", "echo out; echo err >&2; exit 3"])
    call = container.created()
    assert container.state() == "created"
    assert not container.exit_file.exists()
    before = time.time()
    container.start()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"3"
    assert before - 1 < container.exit_file.stat().st_ctime < time.time() + 1
    assert call.rest() == b""
    assert call.stdout == b"out\n"
    assert call.stderr == b"err\n"
    assert container.state() == "stopped"
    # No temporary file, no socket, no FIFO.
    assert {path.name for path in container.bundle.iterdir()} == {"config.json", "pidfile", "exit"}


def test_the_end_is_told_by_the_end_of_the_monitor(containers: Containers) -> None:
    """Not a daemon: one process, of the caller's session, for as long as the container lives."""
    container = containers.running()
    call = containers.calls[0]
    assert call.process.poll() is None
    assert os.getsid(call.pid) == os.getsid(0)
    assert os.getpgid(call.pid) == os.getpgid(0)
    assert children(call.pid) == [container.pid]
    container.kill()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"137"


def test_a_socket_as_sync_pipe(containers: Containers) -> None:
    call = containers(["true"]).created(sync="socket", process_group=0)
    assert os.getpgid(call.pid) == call.pid


def test_nobody_has_to_listen(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 4"])
    call = container.create(sync="")
    wait_until(lambda: container.state() == "created", what="the container")
    container.start()
    assert call.status() == 0
    assert container.code() == b"4"
    assert (call.stdout, call.stderr) == (b"", b"")


def test_an_empty_name_of_the_sync_pipe_is_none(containers: Containers) -> None:
    container = containers(["true"])
    call = container.create(sync="", environment={"_OCI_SYNCPIPE": ""})
    wait_until(lambda: container.state() == "created", what="the container")
    container.start()
    assert call.status() == 0


def test_without_options_the_working_directory(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 5"])
    words = ["-c", container.name, "-r", container.runtime, "-p", "pidfile"]
    call = containers.call(words, cwd=container.bundle)
    assert call.answer() == b'{"pid": %d}\n' % container.pid
    container.start()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"5"


def test_without_a_pid_file_pidfile_name(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 6"])
    words = ["-c", container.name, "-r", container.runtime, "-b", container.bundle]
    call = containers.call(words, cwd=containers.home)
    pidfile = containers.home / f"pidfile-{container.name}"
    answer = call.answer()
    assert answer == b'{"pid": %s}\n' % pidfile.read_bytes().strip()
    container.start()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"6"


def test_relative_paths(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 7"])
    folder = container.bundle.name
    words = ["-c", container.name, "-r", container.runtime, "-b", folder, "-p", f"{folder}/pidfile"]
    call = containers.call(words, cwd=containers.home)
    assert call.answer() == b'{"pid": %d}\n' % container.pid
    container.start()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"7"


@pytest.mark.parametrize("name", ["with blank", "quote's", '"', "$HOME", "a;b", "new\nline", "ü"])
def test_folders_of_any_name(containers: Containers, name: str) -> None:
    container = containers(["sh", "-c", "exit 8"])
    folder = containers.home / name
    container.bundle.rename(folder)
    words = ["-c", container.name, "-r", container.runtime, "-b", folder, "-p", folder / "pidfile"]
    call = containers.call(words)
    assert call.answer() == b'{"pid": %s}\n' % (folder / "pidfile").read_bytes()
    container.start()
    assert call.status() == 0
    assert (folder / "exit").read_bytes() == b"8"


def test_stdin_is_the_callers(containers: Containers) -> None:
    container = containers(["cat"])
    read_end, write_end = os.pipe()
    call = container.run(stdin=read_end)
    os.close(read_end)
    os.write(write_end, b"first\n")
    wait_until(lambda: call.stdout == b"first\n", what="the first line")
    os.write(write_end, b"\xff\x00second")
    os.close(write_end)
    assert call.status() == 0
    assert call.stdout == b"first\n\xff\x00second"


def test_output_is_untouched(containers: Containers) -> None:
    """Much on both streams, which nobody but the caller reads; and no line of ours in between."""
    script = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero | tr '\\0' x >&2"
    container = containers(["sh", "-c", script])
    call = container.run()
    assert call.status() == 0
    assert call.stdout == bytes(3_000_000)
    assert call.stderr == b"x" * 2_000_000


def test_stdout_and_stderr_may_be_one(containers: Containers) -> None:
    container = containers(["sh", "-c", "echo 1; echo 2 >&2; echo 3"])
    call = container.run(stderr=subprocess.STDOUT)
    assert call.status() == 0
    assert call.stdout == b"1\n2\n3\n"


def test_closed_streams_are_no_accident(alone: Containers, shim_runtime: Path) -> None:
    """A caller without streams: what the monitor opens must not become the container's stdout."""
    container = alone(["sh", "-c", "echo lost; exit 9"], runtime=shim_runtime)
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    words = [monitor("pyconmon"), *container.create_words()]
    process = subprocess.Popen(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words],
        env={"PATH": os.environ["PATH"], "_OCI_SYNCPIPE": str(write_end)},
        pass_fds=[write_end],
    )
    os.close(write_end)
    assert os.read(read_end, 100) == b'{"pid": %d}\n' % container.pid
    container.start()
    assert process.wait(60) == 0
    assert os.read(read_end, 100) == b""
    os.close(read_end)
    assert container.exit_file.read_bytes() == b"9"
    container.delete()


# --- the sync pipe


@pytest.mark.parametrize(
    "value", ["abc", "99", "-1", "3x", "1.5", " 3", "+3", "0x3", "9" * 30, "²"]
)
def test_a_bad_sync_pipe_is_refused(alone: Containers, value: str) -> None:
    called = alone.home / "called"
    container = alone(runtime=alone.script(f": >'{called}'"))
    call = container.create(sync="", environment={"_OCI_SYNCPIPE": value})
    assert call.status() == 1
    assert b"_OCI_SYNCPIPE" in call.stderr
    assert call.stderr.count(b"\n") == 1
    assert call.stdout == b""
    assert not called.exists()


def test_a_caller_that_does_not_listen_any_more(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 11"])
    call = container.create(process_group=0)
    call.close_sync()
    wait_until(lambda: container.state() == "created", what="the container")
    container.start()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"11"
    assert call.stderr == b""


def test_a_caller_that_never_reads(containers: Containers) -> None:
    """Its pipe is full: the message is lost, the container is not."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write_end, bytes(65536))
    os.set_blocking(write_end, True)
    container = containers(["sh", "-c", "exit 12"])
    environment = {"_OCI_SYNCPIPE": str(write_end)}
    call = container.create(sync="", environment=environment, pass_fds=[write_end])
    wait_until(lambda: container.state() == "created", what="the container")
    container.start()
    assert call.status() == 0
    assert container.code() == b"12"
    for fd in (read_end, write_end):
        os.close(fd)


CALLER = """
import os, subprocess, sys
read_end, write_end = os.pipe()
variables = {**os.environ, "_OCI_SYNCPIPE": str(write_end)}
subprocess.Popen(sys.argv[1:], env=variables, pass_fds=[write_end], process_group=0)
os.write(1, os.read(read_end, 100))
sys.stdin.read()
"""


def test_the_caller_dies(containers: Containers) -> None:
    """What a monitor is for: the one who asked for the container goes, its exit code does not."""
    container = containers(["sh", "-c", "while [ ! -e /proc/none ]; do sleep 0.1; done"])
    words = [os.fspath(word) for word in container.create_words()]
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(monitor("pyconmon")), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=containers.home,
    )
    assert caller.stdout is not None
    assert caller.stdin is not None
    assert caller.stdout.readline() == b'{"pid": %d}\n' % container.pid
    watching = children(caller.pid)
    assert len(watching) == 1
    container.start()
    caller.kill()
    caller.wait()
    caller.stdin.close()
    caller.stdout.close()
    assert container.state() == "running"
    assert not gone(watching[0])
    container.kill()
    assert container.code() == b"137"
    wait_until(lambda: gone(watching[0]), what="the monitor's end")


# --- the exit file


def test_the_exit_file_is_replaced_in_one_step(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 13"])
    container.exit_file.write_bytes(b"old")
    with open(container.exit_file, "rb") as old:
        assert container.run().status() == 0
        assert container.exit_file.read_bytes() == b"13"
        assert old.read() == b"old"


def test_the_exit_file_is_never_written_through_a_link(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 14"])
    elsewhere = containers.home / "elsewhere"
    elsewhere.write_bytes(b"precious")
    container.exit_file.symlink_to(elsewhere)
    assert container.run().status() == 0
    assert elsewhere.read_bytes() == b"precious"
    assert not container.exit_file.is_symlink()
    assert container.exit_file.read_bytes() == b"14"


def test_a_bundle_that_is_gone_at_the_end(alone: Containers, shim_runtime: Path) -> None:
    container = alone(["sh", "-c", "exit 15"], runtime=shim_runtime)
    call = container.created()
    shutil.rmtree(container.bundle)
    container.start()
    assert call.status() == 0
    assert b"exit" in call.stderr
    container.delete()


# --- one monitor, many processes


def test_orphans_are_reaped(alone: Containers, shim_runtime: Path) -> None:
    """What a container's processes leave behind becomes the monitor's child, and not its zombie."""
    script = "for n in 1 2 3 4 5; do (sleep 0 & echo $!; exit 0); done; echo all; read x; exit 16"
    container = alone(["sh", "-c", script], runtime=shim_runtime)
    read_end, write_end = os.pipe()
    call = container.run(stdin=read_end)
    os.close(read_end)
    wait_until(lambda: call.stdout.endswith(b"all\n"), what="the orphans")
    orphans = [int(word) for word in call.stdout.split()[:-1]]
    assert len(orphans) == 5
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), what="their burial"
    )
    assert call.process.poll() is None
    os.close(write_end)
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"16"
    container.delete()


def test_a_monitor_that_is_killed_takes_the_runtime_with_it(alone: Containers) -> None:
    """Before there is a container, nobody else would ever end it."""
    noted = alone.home / "pid-runtime"
    script = alone.script(f"echo $$ >'{noted}.new'; mv '{noted}.new' '{noted}'; exec sleep 1000")
    call: Call = alone(runtime=script).create()
    pid = int(wait_until(noted.read_text, what="the runtime"))
    call.process.send_signal(signal.SIGKILL)
    assert call.rest() == b""
    wait_until(lambda: gone(pid), what="the runtime's death")
