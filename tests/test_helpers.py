"""The helpers themselves, so that nobody hunts their faults in the monitor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import session
from tests.helpers.drive import Drive
from tests.helpers.monitors import REPORT_RUNTIME
from tests.helpers.waiting import wait_until


def test_a_container_through_both_monitors(monitor_path: Path, drive: Callable[..., Drive]) -> None:
    container = drive(
        ["sh", "-c", "echo out; echo err >&2; read line; exit 7"], stdin=True, monitor=monitor_path
    ).create()
    client = container.attach()
    container.start()
    client.until(b"err")
    command = container.exec(["sh", "-c", "echo hello; exit 3"])
    assert command.wait() == 3
    assert command.logged() == b"hello\n"
    client.send(b"go\n")
    assert container.wait_exit() == 7
    assert client.all() == (b"out\n", b"err\n")
    assert container.logged() == b"out\n"
    assert container.logged("stderr") == b"err\n"
    container.wait_monitor()


def test_exec_attach_misses_nothing(monitor_path: Path, drive: Callable[..., Drive]) -> None:
    container = drive(["sleep", "300"], monitor=monitor_path).run()
    command = container.exec(["echo", "hello"], attach=True)
    assert command.client is not None
    assert command.client.all()[0] == b"hello\n"
    assert command.wait() == 0


def test_leftovers_are_seen(tmp_path: Path) -> None:
    """The check at the end of the run can fail."""
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        try:
            found = wait_until(session.leftovers, what="the process among the leftovers")
        finally:
            process.kill()
    assert any(f"process {process.pid}" in line for line in found)


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match="a miracle"):
        wait_until(lambda: os.stat("/nonexistent"), seconds=0.05, what="a miracle")


def test_shim_runtime_behind_a_monitor(
    monitor_path: Path, drive: Callable[..., Drive], shim_runtime: Path
) -> None:
    container = drive(
        ["sh", "-c", "echo out; read line; exit 7"],
        stdin=True,
        monitor=monitor_path,
        runtime=shim_runtime,
    ).run()
    assert container.status() == "running"
    client = container.attach()
    command = container.exec(["sh", "-c", "echo hello; kill -9 $$"])
    assert command.wait() == 137
    assert command.logged() == b"hello\n"
    client.send(b"go\n")
    assert container.wait_exit() == 7
    assert container.logged() == b"out\n"


def test_shim_runtime_with_a_terminal(
    conmon: Path, drive: Callable[..., Drive], shim_runtime: Path
) -> None:
    container = drive(
        ["sh", "-c", "tty; exit 3"], terminal=True, monitor=conmon, runtime=shim_runtime
    ).run()
    assert container.wait_exit() == 3
    assert container.logged().startswith(b"/dev/pts/")


def test_report_runtime_says_how_it_was_started(tmp_path: Path) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2])
        os.umask(0o027)

    report = tmp_path / "report"
    pidfile = tmp_path / "pid"
    subprocess.run(
        [REPORT_RUNTIME, "--x", b"\xff", "create", "--pid-file", pidfile, "id"],
        env={b"REPORT_TO": os.fsencode(report), b"B": b"\xfe", b"REPORT_COMMAND": b"sleep 0"},
        cwd=tmp_path,
        check=True,
        preexec_fn=prepare,
        stdin=subprocess.DEVNULL,
    )
    found = json.loads(report.read_text())
    assert found["argv"] == ["--x", "\udcff", "create", "--pid-file", str(pidfile), "id"]
    assert found["ignored"] == [signal.SIGUSR1]
    assert found["blocked"] == [signal.SIGUSR2]
    assert sorted(found["environment"])[0] == "B=\udcfe"
    assert len(found["environment"]) == 3
    assert (found["cwd"], found["umask"]) == (str(tmp_path), 0o027)
    assert sorted(found["descriptors"]) == ["0", "1", "2"]
    assert int(pidfile.read_text()) > 0
