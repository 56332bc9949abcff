"""Pumps and the container's stdin, over real pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
from collections.abc import Callable, Iterator

import pytest

from pyconmon import linux
from pyconmon.caller import raw
from pyconmon.loop import Loop
from pyconmon.stdio import BIGGEST_READ, BUSY_PIPE, Pump, Reader, Stdin, Void, keep_freed_memory


class Sink:
    """Takes everything; `pause` is what it answers, `then` what it does beforehand."""

    def __init__(self) -> None:
        self.data = b""
        self.sizes: list[int] = []
        self.pause = 0.0
        self.then: Callable[[], None] = lambda: None

    def __call__(self, view: memoryview) -> float:
        self.then()
        self.data += bytes(view)
        self.sizes.append(len(view))
        return self.pause


class Pipe:
    """A pump on a pipe, whose other end is ours."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.loop = Loop()
        self.sink = Sink()
        if terminal:
            fd, self.write_end = pty.openpty()
            termios.tcsetattr(
                self.write_end, termios.TCSANOW, raw(termios.tcgetattr(self.write_end))
            )
        else:
            fd, self.write_end = os.pipe()
        self.pump = Pump(self.loop, fd, 1, Reader(), self.sink, terminal=terminal)

    def write(self, data: bytes) -> None:
        assert os.write(self.write_end, data) == len(data)

    def close_writer(self) -> None:
        end, self.write_end = self.write_end, -1
        if end >= 0:
            os.close(end)

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until it holds; it hangs (and is ended by the time limit) if it never does."""
        while not condition():
            self.loop.turn()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.pump.close()
    made.close_writer()


@pytest.fixture
def terminal() -> Iterator[Pipe]:
    made = Pipe(terminal=True)
    yield made
    made.pump.close()
    made.close_writer()


def test_what_is_written_reaches_the_sink(pipe: Pipe) -> None:
    pipe.pump.start()
    pipe.loop.turn(0)
    assert pipe.sink.data == b""
    pipe.write(b"one")
    pipe.loop.turn()
    pipe.write(b"two")
    pipe.loop.turn()
    assert pipe.sink.data == b"onetwo"


def test_the_end_closes_it(pipe: Pipe) -> None:
    pipe.pump.start()
    fd = pipe.pump.fd
    pipe.write(b"last")
    pipe.close_writer()
    pipe.until(lambda: pipe.pump.fd == -1)
    assert pipe.sink.data == b"last"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    pipe.pump.drain()
    pipe.pump.close()


def test_a_pause_stops_reading(pipe: Pipe) -> None:
    pipe.pump.start()
    pipe.sink.pause = 1000.0
    pipe.write(b"a")
    pipe.loop.turn()
    pipe.write(b"b")
    pipe.loop.turn(0)
    assert pipe.sink.data == b"a"
    pipe.pump.drain()  # at the end nobody waits for it
    assert pipe.sink.data == b"ab"


def test_after_a_pause_it_goes_on(pipe: Pipe) -> None:
    pipe.pump.start()
    pipe.sink.pause = 0.01
    for n in range(5):
        pipe.write(b"%d" % n)
        pipe.until(lambda n=n: len(pipe.sink.data) > n)  # type: ignore[misc]
    pipe.sink.pause = 0.0
    assert pipe.sink.data == b"01234"


def test_between_pauses_the_loop_does_not_look(pipe: Pipe) -> None:
    """A batch costs one wake-up: its timer's."""
    pipe.pump.start()
    pipe.sink.pause = 0.002
    pipe.write(b"a")
    pipe.loop.turn()
    for n in range(2, 20):
        pipe.write(b"b")
        pipe.loop.turn()
        assert len(pipe.sink.data) == n
    pipe.sink.pause = 0.0
    pipe.loop.turn()
    pipe.write(b"c")  # the pause is over with nothing to read: it is looked at again
    pipe.loop.turn()
    assert pipe.sink.data.endswith(b"c")


def test_a_pause_does_not_outlive_the_pump(pipe: Pipe) -> None:
    pipe.pump.start()
    pipe.sink.pause = 0.001
    pipe.write(b"a")
    pipe.loop.turn()
    pipe.pump.close()
    pipe.loop.turn(0.01)
    assert pipe.pump.fd == -1


def test_what_nobody_hears_is_not_read(pipe: Pipe) -> None:
    void = Void()
    heard = False
    pipe.pump.unheard = lambda: None if heard else void
    pipe.pump.start()
    pipe.write(b"unheard")
    pipe.loop.turn()
    assert linux.bytes_waiting(pipe.pump.fd) == 0
    heard = True
    pipe.write(b"heard")
    pipe.loop.turn()
    assert pipe.sink.data == b"heard"
    heard = False
    pipe.close_writer()
    pipe.until(lambda: pipe.pump.fd == -1)
    void.close()
    void.close()


def test_what_cannot_be_moved_is_read_and_forgotten() -> None:
    void = Void()
    ours, theirs = socket.socketpair()  # splice() wants a pipe
    with ours, theirs:
        ours.setblocking(False)
        assert void.swallow(ours.fileno()) is None
        theirs.send(b"seven..")
        assert void.swallow(ours.fileno()) == 7
        theirs.close()
        assert void.swallow(ours.fileno()) == 0
    void.close()


@pytest.fixture
def resting(pipe: Pipe) -> Pipe:
    """A stream that has trickled, so that it is read a little later than it could be."""
    pipe.pump.siblings = [pipe.pump]
    pipe.pump.start()
    while not pipe.pump.resting:
        pipe.write(b".")
        pipe.loop.turn()
    return pipe


def test_a_stream_at_rest_is_read_before_another_one_speaks(resting: Pipe) -> None:
    """Who reads the log sees standard output and error in the order in which they were written."""
    order: list[bytes] = []

    def sink(view: memoryview) -> float:
        order.append(bytes(view))
        return 0.0

    fd, write_end = os.pipe()
    other = Pump(resting.loop, fd, 2, Reader(), sink)
    resting.sink.then = lambda: order.append(b"first")
    resting.pump.siblings.append(other)
    other.siblings = resting.pump.siblings
    other.start()
    resting.write(b"first")
    os.write(write_end, b"second")
    resting.until(lambda: len(order) == 2)
    other.close()
    os.close(write_end)
    assert order == [b"first", b"second"]


def test_one_stream_rests_at_a_time(resting: Pipe) -> None:
    fd, write_end = os.pipe()
    other = Pump(resting.loop, fd, 2, Reader(), Sink())
    resting.pump.siblings.append(other)
    other.siblings = resting.pump.siblings
    other.start()
    for _ in range(100):
        resting.write(b".")
        os.write(write_end, b".")
        resting.loop.turn()
        assert not (resting.pump.resting and other.resting)
    other.close()
    os.close(write_end)


def test_a_stream_at_rest_is_read_when_somebody_waits(resting: Pipe) -> None:
    before = len(resting.sink.data)
    resting.write(b"answer")
    resting.pump.hurry()
    resting.loop.turn(0.0)
    assert resting.sink.data[before:] == b"answer"


def test_the_sink_may_close_it(pipe: Pipe) -> None:
    pipe.sink.then = pipe.pump.close
    pipe.pump.start()
    pipe.write(b"a")
    pipe.loop.turn()
    pipe.loop.turn(0)
    assert pipe.sink.data == b"a"


def test_a_quick_writer_gets_a_bigger_pipe(pipe: Pipe) -> None:
    pipe.pump.start()
    pipe.write(bytes(65536))
    pipe.loop.turn()
    os.set_blocking(pipe.write_end, False)
    assert os.write(pipe.write_end, bytes(BUSY_PIPE)) > 65536
    pipe.until(lambda: len(pipe.sink.data) > 2 * 65536)
    assert max(pipe.sink.sizes) <= BIGGEST_READ


def test_draining_takes_what_is_there(pipe: Pipe) -> None:
    os.set_blocking(pipe.pump.fd, False)
    pipe.write(b"x" * 60_000)
    pipe.pump.drain()
    assert len(pipe.sink.data) == 60_000
    pipe.pump.drain()


def test_draining_is_bounded(pipe: Pipe) -> None:
    """A background process that never stops writing keeps nobody."""
    os.set_blocking(pipe.pump.fd, False)
    pipe.write(b"first")
    pipe.sink.then = lambda: pipe.write(b"more ")
    pipe.pump.drain()
    assert pipe.sink.data == b"first"


def test_draining_next_to_a_writer_that_never_stops() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.pump.fd, False)
    pid = os.fork()
    if pid == 0:
        while True:
            os.write(pipe.write_end, bytes(4096))
    try:
        pipe.pump.drain()
        assert len(pipe.sink.data) <= BUSY_PIPE + BIGGEST_READ
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pipe.pump.close()
        pipe.close_writer()


def test_a_closed_terminal_may_be_opened_again(terminal: Pipe) -> None:
    name = os.ttyname(terminal.write_end)
    terminal.pump.start()
    terminal.write(b"one")
    terminal.close_writer()
    terminal.until(lambda: terminal.sink.data == b"one")
    for _ in range(3):  # nobody has it open: no end, and no busy loop either
        terminal.loop.turn(0.01)
    assert terminal.pump.fd >= 0
    terminal.write_end = os.open(name, os.O_RDWR | os.O_NOCTTY)
    terminal.write(b"two")
    terminal.until(lambda: terminal.sink.data == b"onetwo")
    terminal.write(b"three")
    terminal.until(lambda: terminal.sink.data == b"onetwothree")


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_closed_terminal_wakes_nobody_in_between(terminal: Pipe, pause: float) -> None:
    """Nor does the pause in which it was closed."""
    terminal.pump.start()
    terminal.sink.pause = pause
    terminal.write(b"one")
    terminal.until(lambda: terminal.sink.data == b"one")
    terminal.close_writer()
    terminal.loop.turn()
    turns = 0
    timer = terminal.loop.call_after(0.25, lambda: None)
    while timer.callback is not None:
        terminal.loop.turn()
        turns += 1
    assert turns <= 5


def test_draining_a_terminal(terminal: Pipe) -> None:
    os.set_blocking(terminal.pump.fd, False)
    terminal.write(b"last words")
    terminal.close_writer()
    while terminal.sink.data != b"last words":  # the kernel hands it over in its own time
        terminal.pump.drain()


def test_memory_is_only_touched_when_needed() -> None:
    keep_freed_memory()
    reader = Reader()
    read_end, write_end = os.pipe()
    os.write(write_end, b"abc")
    view = reader.read(read_end, 1)
    assert view is not None
    assert bytes(view) == b"abc"
    os.set_blocking(read_end, False)
    assert reader.read(read_end, 1) is None
    os.close(write_end)
    view = reader.read(read_end, 1)
    assert view is not None
    assert bytes(view) == b""
    os.close(read_end)
    with pytest.raises(OSError, match="Bad file"):
        reader.read(read_end, 1)


# --- stdin


@pytest.fixture
def loop() -> Loop:
    return Loop()


def fill(stdin: Stdin) -> int:
    total = 0
    while taken := stdin.write(memoryview(bytes(65536))):
        total += taken
    return total


def test_input_arrives(loop: Loop) -> None:
    stdin = Stdin(loop)
    read_end, write_end = os.pipe()
    stdin.open(write_end, closes_with_client=True)
    assert stdin.write(memoryview(b"abc")) == 3
    assert os.read(read_end, 10) == b"abc"
    stdin.client_eof()
    assert stdin.fd == -1
    assert os.read(read_end, 10) == b""
    os.close(read_end)
    assert stdin.write(memoryview(b"late")) == 4
    stdin.close()


def test_input_is_told(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    told: list[bool] = []
    stdin = Stdin(loop)
    stdin.on_input = lambda: told.append(True)
    stdin.open(write_end, closes_with_client=True)
    assert stdin.write(memoryview(b"hello")) == 5
    assert told == [True]
    stdin.close()
    os.close(read_end)


def test_the_end_of_a_client_is_not_always_the_end(loop: Loop) -> None:
    stdin = Stdin(loop)
    read_end, write_end = os.pipe()
    stdin.open(write_end, closes_with_client=False)
    stdin.client_eof()
    assert stdin.write(memoryview(b"x")) == 1
    stdin.close()
    os.close(read_end)


def test_without_stdin_everything_is_swallowed(loop: Loop) -> None:
    stdin, told = Stdin(loop), list[str]()
    assert stdin.write(memoryview(b"abc")) == 3
    stdin.when_writable(lambda: told.append("now"))
    assert told == ["now"]
    stdin.client_eof()
    stdin.close()


def test_an_awaited_one_takes_nothing_yet(loop: Loop) -> None:
    stdin, told = Stdin(loop, awaited=True), list[str]()
    assert stdin.write(memoryview(b"abc")) == 0
    stdin.when_writable(lambda: told.append("first"))
    stdin.when_writable(lambda: told.append("second"))
    assert told == []
    read_end, write_end = os.pipe()
    stdin.open(write_end, closes_with_client=False)
    assert told == ["first", "second"]
    stdin.close()
    os.close(read_end)


def test_an_awaited_one_that_never_comes(loop: Loop) -> None:
    stdin, told = Stdin(loop, awaited=True), list[str]()
    stdin.when_writable(lambda: told.append("over"))
    stdin.close()
    assert told == ["over"]
    assert stdin.write(memoryview(b"abc")) == 3


def test_a_container_that_does_not_read(loop: Loop) -> None:
    stdin, told = Stdin(loop), list[str]()
    read_end, write_end = os.pipe()
    stdin.open(write_end, closes_with_client=True)
    assert fill(stdin) >= 65536
    assert stdin.write(memoryview(b"x")) == 0
    stdin.when_writable(lambda: told.append("first"))
    stdin.when_writable(lambda: told.append("second"))
    loop.turn(0)
    assert told == []
    os.read(read_end, 65536)
    loop.turn()
    assert told == ["first", "second"]
    loop.turn(0)  # told once
    assert len(told) == 2
    stdin.close()
    os.close(read_end)


def test_a_container_that_has_closed_it(loop: Loop) -> None:
    """EPIPE: what is sent goes nowhere, and nobody spins."""
    stdin, told = Stdin(loop), list[str]()
    read_end, write_end = os.pipe()
    stdin.open(write_end, closes_with_client=True)
    fill(stdin)
    stdin.when_writable(lambda: told.append("now"))
    os.close(read_end)
    loop.turn()
    assert told == ["now"]
    assert stdin.write(memoryview(b"abc")) == 3
    assert stdin.fd == -1
    loop.turn(0)


def test_closing_frees_those_who_wait(loop: Loop) -> None:
    stdin, told = Stdin(loop), list[str]()
    read_end, write_end = os.pipe()
    stdin.open(write_end, closes_with_client=True)
    fill(stdin)
    stdin.when_writable(lambda: told.append("closed"))
    stdin.close()
    assert told == ["closed"]
    loop.turn(0)
    os.close(read_end)
