"""What a writer notices of its monitor's end: who may survive it does, and all others get EPIPE."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.bundles import no_pid_namespace
from tests.helpers.drive import Drive
from tests.helpers.recovering import both, box, kill_monitor, recovered, state, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]

# More than any pipe holds, then a note of how that went.
WRITER = "(sleep 0.2; yes some output | head -c 3000000; echo $? >/box/said)"


def access(pid: int, fd: int = 1) -> int:
    """How a process has a descriptor open."""
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE
    raise AssertionError("no flags")


def test_who_holds_its_own_reader(drive: Make) -> None:
    """Only a container with a pid namespace of its own, of which nothing can outlive the monitor."""
    container = drive(["sleep", "1000"]).run()
    assert access(container.pid) == access(container.pid, 2) == os.O_RDWR
    command = container.exec(["sleep", "1000"])
    pid = command.answer()
    assert pid is not None
    assert access(pid["data"]) == access(pid["data"], 2) == os.O_WRONLY
    for settings in ({"edit": no_pid_namespace}, {"options": ["--no-recovery"]}):
        other = drive(["sleep", "1000"], **settings).run()
        assert access(other.pid) == access(other.pid, 2) == os.O_WRONLY


def test_a_container_waits_for_its_next_monitor(drive: Make, tmp_path: Path) -> None:
    script = "while [ ! -e /box/go ]; do sleep 0.01; done; yes 1234567 | head -c 3000000; exit 2"
    container = wait_kept(drive(["sh", "-c", script], edit=box(tmp_path / "box")).run())
    kill_monitor(container)
    (tmp_path / "box/go").touch()
    stuck = os.open(f"/proc/{container.pid}/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = fcntl.fcntl(stuck, 1032)  # F_GETPIPE_SZ
        wait_until(lambda: waiting(stuck) >= size - 4096, what="a full pipe")
    finally:
        os.close(stuck)
    assert not gone(container.pid)
    recovered(container)
    assert container.wait_exit() == 2
    assert container.logged() == b"1234567\n" * (3000000 // 8)


def waiting(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, 0x541B, b"\0\0\0\0"), "little")


@pytest.mark.parametrize("killed", [False, True], ids=["gone home", "killed"])
def test_a_process_that_outlives_its_container_gets_epipe(
    drive: Make, tmp_path: Path, killed: bool
) -> None:
    """Without a pid namespace a background process goes on when the main one has ended."""
    where = tmp_path / "box"
    script = f"{WRITER} & exit 3"
    if killed:
        script = f"{WRITER} & while [ ! -e /box/stop ]; do sleep 0.05; done; exit 3"
    container = drive(["sh", "-c", script], edit=both(no_pid_namespace, box(where)))
    if killed:
        kill_monitor(wait_kept(container.run()))
    else:
        container.run()
        assert container.wait_exit() == 3
        container.wait_monitor()
    # Ended by SIGPIPE, or by its error message: at any rate it ended.
    wait_until(lambda: (where / "said").read_text(), what="the writer's end")
    (where / "stop").touch()


def test_a_child_of_an_exec_gets_epipe(drive: Make, tmp_path: Path) -> None:
    where = tmp_path / "box"
    container = drive(["sleep", "1000"], edit=box(where)).run()
    command = container.exec(["sh", "-c", f"{WRITER} & exit 3"])
    assert command.wait() == 3
    command.wait_monitor()
    wait_until(lambda: (where / "said").read_text(), what="the writer's end")


def test_without_a_pid_namespace_a_quiet_one_is_recovered(drive: Make, tmp_path: Path) -> None:
    script = "while [ ! -e /box/stop ]; do sleep 0.05; done; echo late; exit 3"
    container = drive(["sh", "-c", script], edit=both(no_pid_namespace, box(tmp_path / "box")))
    wait_kept(container.run())
    kill_monitor(container)
    recovered(container)
    assert state(container.directory)["monitor_pid"] == container.monitor_pid
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 3
    assert container.logged() == b"late\n"
