"""Killing monitors and getting over it: what the tests of recovery share."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.bundles import Edit
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON
from tests.helpers.waiting import gone, wait_until

STATE = "pyconmon-state.json"
JOURNAL = "pyconmon-journal"

# Numbers its lines on both streams, in bursts, until it is told to stop.
COUNT = """
i=0
while [ ! -e /box/stop ]; do
  echo "out $i"; echo "err $i" >&2; i=$((i+1))
  case $i in *00) sleep 0.01 ;; esac
done
echo "out last $i"; echo "err last $i" >&2
"""

# The same without a pause: quicker than any monitor.
FLOOD = """
i=0
while [ ! -e /box/stop ]; do
  for j in 1 2 3 4 5 6 7 8 9 10; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done
done
echo "out last $i"; echo "err last $i" >&2
"""


def box(directory: Path) -> Edit:
    """An edit: the directory, made if need be, is /box in the container."""
    directory.mkdir(parents=True, exist_ok=True)

    def edit(config: dict[str, Any]) -> None:
        config["mounts"].append(
            {"destination": "/box", "type": "bind", "source": str(directory), "options": ["bind"]}
        )

    return edit


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(config: dict[str, Any]) -> None:
        for each in edits:
            each(config)

    return edit


def counted(container: Drive, name: str = "out", stream: str = "stdout") -> int:
    """How many lines COUNT's log has; AssertionError unless each is there once, in order."""
    lines = container.logged(stream).decode().splitlines()
    last = len(lines) - 1
    expected = [f"{name} {number}" for number in range(last)] + [f"{name} last {last}"]
    if lines != expected:
        wrong = next(
            (n for n, (a, b) in enumerate(zip(lines, expected, strict=True)) if a != b), -1
        )
        raise AssertionError(
            f"{stream} at line {wrong} of {len(lines)}: {lines[wrong - 1 : wrong + 3]}"
        )
    return last


def state(directory: Path) -> dict[str, Any]:
    """The state file's content; OSError if there is none."""
    content = json.loads((directory / STATE).read_text())
    assert isinstance(content, dict)
    return content


def wait_kept(container: Drive) -> Drive:
    """Until the container can be taken over: its state is there."""
    wait_until(lambda: state(container.directory), what="the state file")
    return container


def kill_monitor(container: Drive, number: int = signal.SIGKILL) -> int:
    """End the container's monitor as nobody would; its pid."""
    pid = container.monitor_pid
    os.kill(pid, number)
    wait_until(lambda: gone(pid), what="the monitor's death")
    return pid


def recover(
    directory: Path | str, *options: str, under: bool = False, program: Path = PYCONMON, **more: Any
) -> subprocess.CompletedProcess[str]:
    """pyconmon --recover DIR, to its end."""
    words = ["--recover-under" if under else "--recover", str(directory), *options]
    more.setdefault("timeout", 60)
    return subprocess.run(
        [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, **more
    )


def recovered(container: Drive, *options: str) -> Drive:
    """The same, and it has to work."""
    done = recover(container.directory, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return container


def watched(container: Drive) -> bool:
    """Somebody has the lock of its journal."""
    try:
        fd = os.open(container.directory / JOURNAL, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """This process becomes the parent of what the monitors leave: zombies stay until it reaps them."""
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        yield
    finally:
        prctl(36, 0, 0, 0, 0)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                time.sleep(0.01)


def reap(pid: int) -> int:
    """Wait for a process that we adopted, as its parent; its wait status."""
    return os.waitpid(pid, 0)[1]
