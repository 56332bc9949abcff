"""Commands in a running container: exec_sync and live execs, through both monitors."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyconmon_client import (
    Container,
    ExecExitError,
    ExecStartError,
    ExecSyncError,
    ExecTimeout,
    InvalidArgumentError,
    Runtime,
    WaitTimeout,
)
from tests.helpers.descriptors import descriptors
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Container]


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def inside(container: Container) -> list[str]:
    """Command lines of the container's living processes but the first."""
    assert container.init is not None
    namespace = os.readlink(f"/proc/{container.init.pid}/ns/pid")
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == container.init.pid or gone(int(name)):
            continue
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                found.append(
                    Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                )
        except OSError:
            continue
    return found


def test_output_and_exit_codes(runtime: Runtime, running: Container) -> None:
    result = runtime.exec_sync(running, sh("echo out; echo err >&2"))
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 0)
    assert not result.truncated
    for code in (1, 2, 126, 255):
        with pytest.raises(ExecExitError) as caught:
            runtime.exec_sync(running, sh(f"echo so; exit {code}"))
        assert (caught.value.exit_code, caught.value.stdout) == (code, b"so\n")
        assert f"exit code {code}" in str(caught.value)
    assert runtime.exec_sync(running, sh("kill -KILL $$"), check=False).exit_code == 137


def test_words_arrive_unchanged(runtime: Runtime, running: Container) -> None:
    words = ["-x", "--", "two words", "$HOME", 'q"uote', "line\nfeed", "", "*", "ünï"]
    result = runtime.exec_sync(running, ["printf", "%s|", *words])
    assert result.stdout.decode() == "".join(f"{word}|" for word in words)
    with pytest.raises(InvalidArgumentError):
        runtime.exec_sync(running, "echo hello")
    with pytest.raises(InvalidArgumentError):
        runtime.exec_sync(running, [])


@pytest.mark.parametrize(
    ("command", "reason"), [("/nope", "no such file"), ("/etc", "permission denied")]
)
def test_what_cannot_be_started(
    runtime: Runtime, running: Container, command: str, reason: str
) -> None:
    with pytest.raises(ExecStartError) as caught:
        runtime.exec_sync(running, [command])
    assert reason in str(caught.value.cause)
    assert command in str(caught.value.cause)


def test_no_such_container(runtime: Runtime, make: Make) -> None:
    with pytest.raises(ExecStartError, match=r"does not exist|not found"):
        runtime.exec_sync(make("true"), ["true"], timeout=30)


def test_no_such_monitor(runc: Path, running: Container) -> None:
    with pytest.raises(ExecStartError) as caught:
        Runtime(runc, "", "/no/monitor", dialect="classic").exec_sync(running, ["true"])
    assert caught.value.exit_code == -1
    assert "/no/monitor" in str(caught.value)


def test_much_on_both_streams_and_on_stdin(runtime: Runtime, running: Container) -> None:
    script = "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait; wc -c"
    result = runtime.exec_sync(running, sh(script), stdin=b"x" * 1_000_000)
    assert len(result.stdout) == 3_000_000 + len(b"1000000\n")
    assert len(result.stderr) == 2_000_000
    assert result.stdout.endswith(b"1000000\n")


def test_output_is_capped_and_the_command_still_ends(runtime: Runtime, running: Container) -> None:
    script = "head -c 5000000 /dev/zero; echo end >&2; exit 3"
    result = runtime.exec_sync(running, sh(script), max_output=65536, check=False)
    assert result.stdout == bytes(65536)
    assert (result.stderr, result.exit_code, result.truncated) == (b"end\n", 3, True)


def test_background_process_holding_the_output(runtime: Runtime, running: Container) -> None:
    begun = time.monotonic()
    result = runtime.exec_sync(running, sh("echo done; sleep 300 & exit 0"))
    assert result.stdout == b"done\n"
    assert time.monotonic() - begun < 60
    # One that never stops writing cannot make it endless either.
    result = runtime.exec_sync(running, sh("yes & echo first; exit 5"), check=False)
    assert result.exit_code == 5
    assert b"first\n" in result.stdout
    assert any("sleep 300" in line for line in inside(running)), "it was none of our business"


def test_timeout_ends_everything_that_it_started(runtime: Runtime, running: Container) -> None:
    runtime.exec_sync(running, sh("sleep 301 >/dev/null 2>&1 &"))
    script = (
        "trap '' TERM; echo begun; sleep 302 & setsid sleep 303 & "
        # Orphaned, in a session of its own, with nothing inherited to recognise it by.
        "(setsid sh -c 'sleep 304 & exit' </dev/null >/dev/null 2>&1 &) ; "
        "while :; do sleep 1; done"
    )
    begun = time.monotonic()
    with pytest.raises(ExecTimeout) as caught:
        runtime.exec_sync(running, sh(script), timeout=1)
    assert time.monotonic() - begun >= 1
    assert (caught.value.exit_code, caught.value.stdout) == (-1, b"begun\n")
    assert str(caught.value.cause) == "command timed out"
    assert isinstance(caught.value, ExecSyncError | TimeoutError)
    assert inside(running) == ["sleep 301 "], "the container's own goes on"
    assert runtime.update_status(running).status == "running"


def test_timeout_of_a_start_that_hangs(
    monitor_path: Path, running: Container, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    hanging = tmp_path / "hanging-runtime"
    hanging.write_text(f"#!/bin/sh\necho $$ $PPID >{pids}\nsleep 600 & wait\n")
    hanging.chmod(0o755)
    slow = Runtime(hanging, "", monitor_path, create_timeout=1)
    with pytest.raises(ExecTimeout, match="not started in time"):
        slow.exec_sync(running, ["true"], timeout=0.3)
    for pid in pids.read_text().split():
        assert gone(int(pid))


def test_timeout_of_a_flood(runtime: Runtime, running: Container) -> None:
    with pytest.raises(ExecTimeout) as caught:
        script = "trap '' TERM; while :; do echo flood; done"
        runtime.exec_sync(running, sh(script), timeout=0.5, max_output=1000)
    assert caught.value.stdout.startswith(b"flood\n")
    assert caught.value.truncated
    assert inside(running) == []


def test_timeout_of_a_fork_bomb(runtime: Runtime, make: Make) -> None:
    def limited(config: dict[str, dict[str, dict[str, object]]]) -> None:
        config["linux"]["resources"]["pids"] = {"limit": 60}

    container = make("sleep", "600", edit=limited)
    runtime.create_container(container, stdio=(-1, -1, -1))
    runtime.start_container(container)
    with pytest.raises(ExecSyncError):
        runtime.exec_sync(container, sh("b() { b | b & }; b; sleep 600"), timeout=0.5)
    wait_until(lambda: inside(container) == [], what="the end of the bomb")


def test_a_command_that_ends_in_time_is_not_timed_out(runtime: Runtime, running: Container) -> None:
    result = runtime.exec_sync(running, sh("sleep 0.1; echo ok"), timeout=60)
    assert result.stdout == b"ok\n"


def test_many_at_once_leave_nothing(runtime: Runtime, running: Container) -> None:
    """Threads on one container: right output and code for each, nothing left of any."""
    count, results = 200, dict[int, tuple[bytes, int]]()
    runtime.exec_sync(running, ["true"])
    gc.collect()  # what earlier tests left to the collector does not count
    fds, threads = descriptors(), threading.active_count()

    def one(number: int) -> None:
        script = f"echo out{number}; exit {number % 7}"
        result = runtime.exec_sync(running, sh(script), check=False, timeout=100)
        results[number] = (result.stdout, result.exit_code)

    workers = [threading.Thread(target=one, args=[number]) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert results == {n: (b"out%d\n" % n, n % 7) for n in range(count)}
    assert descriptors() <= fds
    assert threading.active_count() == threads
    assert inside(running) == []


def test_no_temporary_files(
    runtime: Runtime, running: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    runtime.exec_sync(running, ["true"])
    with pytest.raises(ExecStartError):
        runtime.exec_sync(running, ["/nope"])
    with pytest.raises(ExecTimeout):
        runtime.exec_sync(running, ["sleep", "300"], timeout=0.2)
    with runtime.exec(running, ["sleep", "300"]):
        assert len(os.listdir(scratch)) == 1
    with runtime.exec(running, ["cat"], terminal=True) as p:
        assert len(os.listdir(scratch)) == 1
        wait_until(lambda: p.pid, what="its start")
    assert os.listdir(scratch) == []


def test_environment_directory_and_user(runtime: Runtime, running: Container) -> None:
    script = "echo $FOO $TERM; pwd; id -u; id -g"
    result = runtime.exec_sync(running, sh(script), env=["FOO=bar"], cwd="/tmp", user="5:6")
    assert result.stdout.split() == [b"bar", b"xterm", b"/tmp", b"5", b"6"]


def test_live_streams(runtime: Runtime, running: Container) -> None:
    with runtime.exec(running, sh("while read x; do echo got $x; done; echo end >&2; exit 9")) as p:
        assert p.stdin is not None and p.stdout is not None and p.stderr is not None
        p.stdin.write(b"one\n")
        assert p.stdout.readline() == b"got one\n"
        assert p.poll() is None
        assert p.returncode is None
        p.stdin.write(b"two\n")
        assert p.stdout.readline() == b"got two\n"
        wait_until(lambda: p.pid, what="the pid")
        assert not gone(p.pid)
        p.stdin.close()
        assert p.stderr.readline() == b"end\n"
        assert p.wait(60) == 9
        assert p.returncode == 9


def test_communicate(runtime: Runtime, running: Container) -> None:
    with runtime.exec(running, sh("cat; echo e >&2; exit 4")) as p:
        result = p.communicate(b"x" * 1_000_000, timeout=100)
        assert (len(result.stdout), result.stderr, result.exit_code) == (1_000_000, b"e\n", 4)
    with runtime.exec(running, sh("head -c 1; sleep 0.1")) as p:
        assert p.communicate(b"x" * 1_000_000, timeout=100).stdout == b"x"


def test_output_ends_with_the_command(runtime: Runtime, running: Container) -> None:
    with runtime.exec(running, sh("echo a; echo b >&2; sleep 300 & exit 2")) as p:
        pieces = list(p.output(100))
        assert b"".join(each.data for each in pieces if each.stream == "stdout") == b"a\n"
        assert b"".join(each.data for each in pieces if each.stream == "stderr") == b"b\n"
        assert p.wait(60) == 2


def test_signals_and_kill(runtime: Runtime, running: Container) -> None:
    with runtime.exec(
        running, sh("trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done")
    ) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"ready\n"
        wait_until(lambda: p.pid, what="the pid")
        with pytest.raises(WaitTimeout):
            p.wait(0.05)
        p.terminate()
        assert p.wait(60) == 8
        p.terminate()
    with runtime.exec(running, sh("sleep 300 & sleep 301 & echo ready; wait")) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"ready\n"
        p.kill()
        assert p.wait(60) == 128 + signal.SIGKILL
    assert inside(running) == []


def test_leaving_the_block_ends_it(runtime: Runtime, running: Container) -> None:
    with pytest.raises(ZeroDivisionError), runtime.exec(running, ["sleep", "300"]) as p:
        wait_until(lambda: inside(running), what="its start")
        raise ZeroDivisionError
    assert inside(running) == []
    p.close()


def test_live_start_error(runtime: Runtime, running: Container) -> None:
    with runtime.exec(running, ["/nope"]) as p, pytest.raises(ExecStartError, match="no such file"):
        p.wait(60)


def test_terminal(runtime: Runtime, running: Container) -> None:
    with runtime.exec(running, ["sh"], terminal=True, size=(33, 77)) as p:
        assert p.attachment is not None
        p.attachment.send(b"stty size; tty; exit 5\n")
        text = b"".join(piece.data for piece in p.output(60))
        assert b"33 77\r\n/dev/pts/" in text
        assert p.wait(60) == 5
    with runtime.exec(running, ["sh", "-c", "trap 'stty size; exit 0' WINCH; echo r; while :; do sleep 0.1; done"],
                      terminal=True, size=(1, 1)) as p:  # fmt: skip
        output = p.output(60)
        assert b"r" in next(output).data
        p.resize(44, 88)
        assert b"44 88\r\n" in b"".join(piece.data for piece in output)
        assert p.wait(60) == 0


def test_terminal_with_more_input_than_is_read(
    runc: Path, pyconmon: Path, running: Container
) -> None:
    """What nobody reads is no error. (C conmon itself blocks when a terminal takes no more.)"""
    runtime = Runtime(runc, "", pyconmon)
    with runtime.exec(running, sh("echo here"), terminal=True) as process:
        result = process.communicate(b"x\n" * 500_000, timeout=60)
    assert result.exit_code == 0
    assert b"here" in result.stdout
    with (
        runtime.exec(running, sh("sleep 600"), terminal=True) as process,
        pytest.raises(WaitTimeout, match="end in time"),
    ):
        process.communicate(b"x\n", timeout=0.1)


def test_terminal_start_error(runtime: Runtime, running: Container) -> None:
    process = runtime.exec(running, ["/nope"], terminal=True)
    with process, pytest.raises(ExecStartError, match="no such file"):
        process.wait(60)
