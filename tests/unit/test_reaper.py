"""The reaper, with real children of this process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from pyconmon import reaper as module
from pyconmon.reaper import UNKNOWN, Reaper, exit_status


def ended(code: int) -> int:
    """A child that has ended and has not been waited for."""
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A child that lives."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # the test may have done it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("code", range(256))
def test_exit_codes(code: int) -> None:
    assert exit_status(code << 8) == code


@pytest.mark.parametrize("number", range(1, 65))
def test_signals(number: int) -> None:
    assert exit_status(number) == 128 + number
    assert exit_status(number | 0x80) == 128 + number  # with a core dump


def test_neither() -> None:
    assert exit_status(signal.SIGSTOP << 8 | 0x7F) == UNKNOWN
    assert exit_status(0xFFFF) == UNKNOWN


def test_told_when_it_ends() -> None:
    reaper, told = Reaper(), list[int]()
    pid = ended(7)
    reaper.watch(pid, told.append)
    assert told == []
    reaper.reap()
    reaper.reap()
    assert told == [7 << 8]


def test_ended_before_anybody_asks() -> None:
    reaper, told = Reaper(), list[int]()
    pids = [ended(code) for code in (1, 2, 3)]
    reaper.reap()
    for pid in pids:
        assert reaper.is_child(pid)
        reaper.watch(pid, told.append)
    assert told == [1 << 8, 2 << 8, 3 << 8]
    assert not reaper.is_child(pids[0])


def test_once_all_are_known_others_are_not_kept() -> None:
    reaper, told = Reaper(), list[int]()
    early, known = ended(1), ended(2)
    reaper.reap()
    reaper.watch(known, told.append)
    reaper.all_known()
    assert not reaper.is_child(early)
    stranger = ended(3)
    reaper.reap()
    reaper.watch(early, told.append)
    reaper.watch(stranger, told.append)
    assert told == [2 << 8]


def test_early_exits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first: what is asked for is the most recent."""
    monkeypatch.setattr(module, "MOST_EARLY_EXITS", 3)
    reaper = Reaper()
    pids = []
    for code in range(5):
        pids.append(ended(code))
        reaper.reap()
    assert [reaper.is_child(pid) for pid in pids] == [False, False, True, True, True]


def test_forgotten(sleeper: int) -> None:
    reaper = Reaper()
    pid = ended(1)
    reaper.watch(pid, lambda status: pytest.fail("it was forgotten"))
    reaper.forget(pid)
    reaper.forget(pid)
    reaper.reap()


def test_reaping_does_not_wait(sleeper: int) -> None:
    reaper, told = Reaper(), list[int]()
    reaper.watch(sleeper, told.append)
    reaper.reap()
    assert told == []
    os.kill(sleeper, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper, os.WEXITED | os.WNOWAIT)
    reaper.reap()
    assert told == [signal.SIGKILL]


def test_what_is_a_child(sleeper: int) -> None:
    reaper = Reaper()
    zombie = ended(1)
    assert reaper.is_child(sleeper)
    assert reaper.is_child(zombie)
    assert not reaper.is_child(1)
    assert not reaper.is_child(os.getpid())
    assert not reaper.is_child(2**31 - 1)
    reaper.reap()
    assert reaper.is_child(zombie)
    reaper.all_known()
    assert not reaper.is_child(zombie)


def test_a_callback_may_reap_and_watch() -> None:
    reaper, told = Reaper(), list[int]()
    first, second = ended(1), ended(2)

    def again(status: int) -> None:
        told.append(status)
        reaper.reap()
        reaper.watch(second, told.append)

    reaper.watch(first, again)
    reaper.reap()
    assert told == [1 << 8, 2 << 8]
