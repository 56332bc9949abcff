"""The loop: descriptors, timers, and what happens when a callback does as it likes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from pyconmon.loop import HUNG_UP, MOST_FAILURES, READABLE, WRITABLE, Loop


class Pipe:
    """Both ends of a pipe."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def close(self) -> None:
        for fd in (self.read_end, self.write_end):
            if fd >= 0:
                os.close(fd)
        self.read_end = self.write_end = -1

    def close_writer(self) -> None:
        end, self.write_end = self.write_end, -1
        os.close(end)


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    made = [Pipe() for _ in range(3)]
    yield made
    for pipe in made:
        pipe.close()


def test_a_descriptor_is_told_while_it_is_ready(pipes: list[Pipe]) -> None:
    loop, pipe, told = Loop(), pipes[0], list[int]()
    loop.watch(pipe.read_end, READABLE, told.append)
    loop.turn(0)
    assert told == []
    os.write(pipe.write_end, b"x")
    loop.turn()
    loop.turn()  # level-triggered: nobody has read it
    assert told == [READABLE, READABLE]
    os.read(pipe.read_end, 1)
    loop.turn(0)
    assert len(told) == 2


def test_watching_again_replaces(pipes: list[Pipe]) -> None:
    loop, pipe, told = Loop(), pipes[0], list[str]()
    loop.watch(pipe.write_end, READABLE, lambda _: told.append("first"))
    loop.turn(0)
    loop.watch(pipe.write_end, WRITABLE, lambda _: told.append("second"))
    loop.turn()
    assert told == ["second"]


def test_no_events_leaves_hang_ups(pipes: list[Pipe]) -> None:
    loop, pipe, told = Loop(), pipes[0], list[int]()
    os.write(pipe.write_end, b"x")
    loop.watch(pipe.read_end, READABLE, told.append)
    loop.modify(pipe.read_end, 0)
    loop.turn(0)
    assert told == []
    pipe.close_writer()
    loop.turn()
    assert len(told) == 1
    assert told[0] & HUNG_UP


def test_forgotten_means_silent(pipes: list[Pipe]) -> None:
    loop, pipe = Loop(), pipes[0]
    os.write(pipe.write_end, b"x")
    loop.watch(pipe.read_end, READABLE, lambda _: pytest.fail("it was forgotten"))
    loop.forget(pipe.read_end)
    loop.forget(pipe.read_end)
    loop.forget(-1)
    loop.modify(pipe.read_end, READABLE)
    loop.turn(0)


def test_closed_before_it_is_forgotten(pipes: list[Pipe]) -> None:
    loop = Loop()
    fd = os.dup(pipes[0].read_end)
    loop.watch(fd, READABLE, lambda _: None)
    os.close(fd)
    loop.forget(fd)
    loop.turn(0)


def test_a_closed_descriptor_is_refused_and_leaves_nothing(pipes: list[Pipe]) -> None:
    loop, told = Loop(), list[int]()
    fd = os.dup(pipes[0].read_end)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.watch(fd, READABLE, lambda _: None)
    assert os.dup2(pipes[0].read_end, fd) == fd
    os.write(pipes[0].write_end, b"x")
    loop.watch(fd, READABLE, told.append)
    loop.turn()
    assert told == [READABLE]
    os.close(fd)


def test_a_callback_may_forget_others(pipes: list[Pipe]) -> None:
    """All three are ready in the same turn; the first to be served silences the others."""
    loop, told = Loop(), list[int]()

    def only_me(fd: int) -> Callable[[int], None]:
        def serve(_: int) -> None:
            told.append(fd)
            for pipe in pipes:
                if pipe.read_end != fd:
                    loop.forget(pipe.read_end)

        return serve

    for pipe in pipes:
        os.write(pipe.write_end, b"x")
        loop.watch(pipe.read_end, READABLE, only_me(pipe.read_end))
    loop.turn()
    assert len(told) == 1


def test_stop_ends_the_turn(pipes: list[Pipe]) -> None:
    loop, told = Loop(), list[int]()

    def stop(_: int) -> None:
        told.append(1)
        loop.stop()

    for pipe in pipes:
        os.write(pipe.write_end, b"x")
        loop.watch(pipe.read_end, READABLE, stop)
    loop.run()
    assert told == [1]
    loop.run()  # and it can go on after that
    assert told == [1, 1]


def test_ordinary_files_are_always_ready(tmp_path: Path) -> None:
    loop, told = Loop(), list[int]()
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    loop.watch(fd, READABLE, told.append)
    loop.turn()
    loop.turn()
    assert told == [READABLE, READABLE]
    loop.modify(fd, 0)
    loop.turn(0)
    loop.watch(fd, WRITABLE, told.append)
    loop.turn()
    assert told == [READABLE, READABLE, WRITABLE]
    loop.forget(fd)
    loop.turn(0)
    assert len(told) == 3
    os.close(fd)


# --- timers


def test_timers_come_in_their_time() -> None:
    loop, told = Loop(), list[str]()
    begun = monotonic()
    loop.call_after(0.02, lambda: told.append("late"))
    loop.call_after(0.0, lambda: told.append("now"))
    loop.turn()
    assert told == ["now"]
    while len(told) < 2:
        loop.turn()
    assert monotonic() - begun >= 0.02
    assert told == ["now", "late"]
    loop.turn(0)
    assert len(told) == 2


def test_cancelled_timers_do_not_come(pipes: list[Pipe]) -> None:
    loop = Loop()
    timer = loop.call_after(0.0, lambda: pytest.fail("it was cancelled"))
    timer.cancel()
    timer.cancel()
    loop.turn(0)


def test_a_timer_may_cancel_another_that_is_due() -> None:
    loop, told = Loop(), list[str]()

    def begin() -> None:
        told.append("first")
        second.cancel()

    first = loop.call_after(0.0, begin)
    second = loop.call_after(0.0, lambda: told.append("second"))
    loop.turn()
    loop.turn(0)
    assert told == ["first"]
    assert first.callback is None


def test_a_timer_may_start_another() -> None:
    loop, told = Loop(), list[str]()

    def begin() -> None:
        loop.call_after(0.0, lambda: told.append("next"))

    loop.call_after(0.0, begin)
    loop.turn()
    assert told == []
    loop.turn()
    assert told == ["next"]


def test_waiting_costs_nothing() -> None:
    """One turn, not many, until the timer."""
    loop, told, turns = Loop(), list[int](), 0
    loop.call_after(0.05, lambda: told.append(1))
    while not told:
        loop.turn()
        turns += 1
    assert turns <= 3


# --- faults of callbacks


def fail(_: int = 0) -> None:
    raise KeyError("fault")


def test_without_anybody_to_tell_it_is_raised(pipes: list[Pipe]) -> None:
    loop = Loop()
    loop.watch(pipes[0].write_end, WRITABLE, fail)
    with pytest.raises(KeyError):
        loop.turn()


def test_one_fault_costs_nobody_else_anything(pipes: list[Pipe]) -> None:
    told, faults = list[int](), list[Exception]()
    loop = Loop(faults.append)
    loop.watch(pipes[0].write_end, WRITABLE, fail)
    loop.watch(pipes[1].write_end, WRITABLE, told.append)
    loop.call_after(0.0, fail)
    loop.call_after(0.0, lambda: told.append(0))
    loop.turn()
    assert sorted(told) == [0, WRITABLE]
    assert len(faults) == 2


def test_what_fails_for_ever_is_forgotten(pipes: list[Pipe]) -> None:
    faults = list[Exception]()
    loop = Loop(faults.append)
    loop.watch(pipes[0].write_end, WRITABLE, fail)
    for _ in range(MOST_FAILURES + 10):
        loop.turn(0)
    assert len(faults) == MOST_FAILURES


def test_the_names_are_those_of_poll() -> None:
    assert (READABLE, WRITABLE) == (select.POLLIN, select.POLLOUT)
    assert HUNG_UP == select.POLLHUP | select.POLLERR
