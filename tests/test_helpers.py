"""The helpers themselves, so that nobody hunts their faults in the monitor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import session
from tests.helpers.drive import Drive
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
