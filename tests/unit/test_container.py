"""The container's process: ours or another's, alive or dead when we come to watch it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pyconmon import container as module
from pyconmon import linux
from pyconmon.container import ContainerProcess
from pyconmon.loop import Loop
from pyconmon.reaper import UNKNOWN, Reaper
from tests.helpers.waiting import wait_until

SIGNALLED = 128 + signal.SIGKILL


class Watch:
    """A loop, a reaper, and what was told."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.reaper = Reaper()
        self.told: list[int] = []
        self.made: list[ContainerProcess] = []

    def process(self, pid: int, pidfd: int = -1) -> ContainerProcess:
        process = ContainerProcess(self.loop, self.reaper, pid, self.told.append, pidfd)
        self.made.append(process)
        return process

    def until_told(self) -> list[int]:
        while not self.told:
            self.loop.turn()
        return self.told


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    yield made
    for process in made.made:
        process.close()
        process.close()


def child(code: int = 0, *, lives: bool = False) -> int:
    pid = os.fork()
    if pid == 0:
        if lives:
            signal.pause()
        os._exit(code)
    if not lives:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_ours_and_alive(watch: Watch) -> None:
    """The end is told by its pidfd alone: a SIGCHLD may have got lost."""
    pid = child(lives=True)
    process = watch.process(pid)
    process.watch()
    assert process.pidfd >= 0
    watch.loop.turn(0)
    assert watch.told == []
    process.send_signal(signal.SIGKILL)
    assert watch.until_told() == [SIGNALLED]
    watch.loop.turn(0)
    assert watch.told == [SIGNALLED]


def test_ours_and_dead(watch: Watch) -> None:
    process = watch.process(child(7))
    process.watch()
    assert watch.until_told() == [7]


def test_ours_and_reaped_already(watch: Watch) -> None:
    pid = child(9)
    watch.reaper.reap()
    process = watch.process(pid)
    process.watch()
    assert watch.told == [9]
    assert process.pidfd == -1
    process.send_signal(signal.SIGKILL)


def test_the_reaper_tells_first(watch: Watch) -> None:
    process = watch.process(child(8))
    process.watch()
    watch.reaper.reap()
    watch.loop.turn(0)
    assert watch.told == [8]


def test_nobody(watch: Watch) -> None:
    """Gone without anybody knowing how: never a success."""
    pid = child(0)
    os.waitpid(pid, 0)
    process = watch.process(pid)
    process.watch()
    assert watch.told == [UNKNOWN]


@pytest.fixture
def stranger() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A process that is another's child; that other one reaps it when it is told to."""
    script = "sleep 1000 & echo $!; read go; wait; read end"
    parent = subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    yield pid, parent
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()


def test_anothers_child(watch: Watch, stranger: tuple[int, subprocess.Popen[bytes]]) -> None:
    """The kernel tells, as long as it is a zombie, and since Linux 6.15 also after that."""
    pid, _ = stranger
    process = watch.process(pid)
    process.watch()
    watch.loop.turn(0)
    assert watch.told == []
    process.send_signal(signal.SIGKILL)
    assert watch.until_told()[0] in (SIGNALLED, UNKNOWN)
    assert len(watch.told) == 1


def test_a_pidfd_that_was_opened_earlier(
    watch: Watch, stranger: tuple[int, subprocess.Popen[bytes]]
) -> None:
    pid, _ = stranger
    pidfd = os.pidfd_open(pid)
    process = watch.process(pid, pidfd)
    process.watch()
    assert process.pidfd == pidfd
    process.close()
    assert process.pidfd == -1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(pidfd)


def test_a_kernel_that_does_not_tell(
    watch: Watch,
    stranger: tuple[int, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither by pidfd nor in /proc: unknown, after some patience, and without being busy meanwhile."""
    monkeypatch.setattr(linux, "pidfd_exit_status", lambda pidfd: None)
    monkeypatch.setattr(linux, "zombie_status", lambda pid: None)
    monkeypatch.setattr(module, "ROUNDS_FOR_STATUS", 3)
    monkeypatch.setattr(module, "ROUND", 0.01)
    pid, _ = stranger
    process = watch.process(pid)
    process.watch()
    process.send_signal(signal.SIGKILL)
    turns = 0
    while not watch.told:
        watch.loop.turn()
        turns += 1
    assert watch.told == [UNKNOWN]
    assert turns <= 8


def test_a_signal_reaches_nobody_else(watch: Watch) -> None:
    """The pid may be another's by now; the pidfd is not."""
    pid = child(3)
    process = watch.process(pid)
    process.watch()
    assert watch.until_told() == [3]
    process.send_signal(signal.SIGTERM)
    process.pid = os.getpid()
    process.send_signal(signal.SIGTERM)


def test_nothing_is_told_once_it_is_closed(watch: Watch) -> None:
    pid = child(lives=True)
    process = watch.process(pid)
    process.watch()
    process.close()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    watch.reaper.reap()
    watch.loop.turn(0)
    assert watch.told == []
    process.send_signal(signal.SIGTERM)


def test_the_status_of_the_dead(watch: Watch) -> None:
    pid = child(5)
    process = watch.process(pid)
    assert process.status_of_dead() is None
    process.watch()
    wait_until(lambda: process.status_of_dead() == 5 << 8, what="its status")
    watch.reaper.reap()
