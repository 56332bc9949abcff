"""The pumps: container to sinks, clients to the container's stdin, and the drain at the end.

Outsiders rely on: what the container wrote before it ended reaches the sink; a background process that
holds the pipe delays nothing; nothing here blocks and no buffer grows without bound. Where the bytes go
(logs, clients) is the monitor's business: it hands in a callable.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from pyconmon import linux
from pyconmon.loop import READABLE, WRITABLE
from pyconmon.pace import Pace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.loop import Loop, Timer

BIGGEST_READ = 256 * 1024
BUSY_PIPE = 1024 * 1024
ORDINARY_PIPE = 64 * 1024
MOST_DRAINED_FROM_TERMINAL = 4 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have malloc keep up to 1 MiB at its end instead of giving it back after each read.

    Formatting a read's lines takes and frees some 50 KiB pieces; at the end of the heap each of them
    would be a brk(2) down and up again and a dozen page faults, twice the cost of all else. glibc
    adapts its threshold to the largest block freed, mallopt(3); this one is never touched, so it costs
    no memory.
    """
    bytes(512 * 1024)


class Reader:
    """Reads into one buffer that all streams share; a page of it is touched only once it is needed."""

    def __init__(self) -> None:
        self._buffer = bytearray(BIGGEST_READ)
        self._view = memoryview(self._buffer)

    def read(self, fd: int, stream: int) -> memoryview | None:
        """Read once: None where nothing is there, an empty view at the end. Valid until `done`."""
        try:
            return self._view[: os.readv(fd, [self._view])]
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # the other side of a terminal is closed
                return self._view[:0]
            raise

    def done(self) -> None:
        """The sinks have what was read."""


class Void:
    """Where output goes that nobody wants: moved there by the kernel, splice(2), seen by nobody."""

    def __init__(self) -> None:
        self._fd = -1

    def swallow(self, fd: int) -> int | None:
        """Take what is in the pipe: so many bytes, 0 at the end, None where nothing is there."""
        try:
            if self._fd < 0:
                self._fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
            return os.splice(fd, self._fd, BUSY_PIPE)
        except BlockingIOError:
            return None
        except OSError:  # no descriptor, no memory: the container must not wait for that
            pass
        try:
            return len(os.read(fd, ORDINARY_PIPE))
        except BlockingIOError:
            return None

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Pump:
    """One stream of the container: read when there is something, hand it to the sink. Owns its descriptor.

    `sink(view)` gives the seconds to wait before more is read (0.0: none), which is how a client that
    lags paces the container.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        stream: int,
        reader: Reader,
        sink: Callable[[memoryview], float],
        *,
        terminal: bool = False,
    ) -> None:
        self.fd = fd
        self.stream = stream
        self.attached: Callable[[], bool] = lambda: False
        # Gives where the output may go unread at the moment; None: somebody wants it.
        self.unheard: Callable[[], Void | None] = lambda: None
        self._loop = loop
        self.reader = reader
        self._sink = sink
        self._terminal = terminal
        self._enlarged = terminal
        self._timer: Timer | None = None
        self._paused = False  # the loop does not look at it: the timer is what reads next
        self.resting = False  # paused, and by its own pace: it may be read before its time
        self.siblings: list[Pump] = []  # the container's streams, this one too: their order is kept
        self._pace = Pace(ORDINARY_PIPE)

    def start(self) -> None:
        """Begin to read."""
        os.set_blocking(self.fd, False)
        self._loop.watch(self.fd, READABLE, self._ready)

    def _ready(self, revents: int) -> None:
        self.resting = False
        for pump in self.siblings:
            if pump.resting:  # what it has was written before what we are to read
                pump._ready(0)
        void = self.unheard()
        size, pause = self._take() if void is None else (void.swallow(self.fd), 0.0)
        if size is None:
            self._pause(0.0)
            return
        if size == 0:
            self._ended()
            return
        if pause <= 0.0:
            pause = self._pace.after(size, monotonic(), self.attached())
            if not self._enlarged and (self._pace.quick or size >= ORDINARY_PIPE):
                self._enlarge()
            if any(pump.resting for pump in self.siblings):
                pause = 0.0  # with two at rest, nobody could tell which was written to first
            self.resting = pause > 0.0 and self.fd >= 0
        self._pause(pause)

    def _take(self) -> tuple[int | None, float]:
        """Read once and hand it over: size (0: the end, None: nothing there), and the sink's pause."""
        view = self.reader.read(self.fd, self.stream)
        if view is None:
            return None, 0.0
        size = len(view)
        pause = self._sink(view) if size else 0.0
        view.release()
        self.reader.done()
        return size, pause

    def hurry(self) -> None:
        """Somebody waits for what comes next."""
        if self.resting:
            self.resting = False
            self._pause(0.0)

    def _pause(self, seconds: float) -> None:
        """Read again so many seconds from now; 0.0: as soon as there is something."""
        self._forget_timer()  # a hang-up may have come before it
        if seconds > 0.0:
            self._timer = self._loop.call_after(seconds, self._go_on)
        if self._paused != (seconds > 0.0):
            self._paused = not self._paused
            self._loop.modify(self.fd, 0 if self._paused else READABLE)

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _go_on(self) -> None:
        """The pause is over. There is something to read as a rule: asking first costs as much as trying."""
        self._timer = None
        if self.fd >= 0:
            self._ready(0)

    def _enlarge(self) -> None:
        """The writer is quick: a bigger pipe lets it go on while we wait, and saves it switches."""
        self._enlarged = True
        self._pace.capacity = linux.enlarge_pipe(self.fd, BUSY_PIPE)
        keep_freed_memory()

    def _ended(self) -> None:
        """All writers are gone. For a terminal that may change again: someone can open it anew."""
        if self._terminal:
            self._forget_timer()
            self._paused = False
            self._loop.modify(self.fd, 0)
            self._loop.forget(self.fd)
            self._timer = self._loop.call_after(0.1, self.start_again)
        else:
            self.close()

    def start_again(self) -> None:
        """Look at a terminal whose slave was closed: is it open again?"""
        self._timer = None
        if self.fd < 0:
            return
        size, _ = self._take()
        if size == 0:
            self._timer = self._loop.call_after(0.1, self.start_again)
            return
        self._loop.watch(self.fd, READABLE, self._ready)

    def drain(self) -> None:
        """Take what is there now, without waiting. Bounded by what the container can have written before
        this call, so that a background process that never stops cannot keep us."""
        if self.fd < 0:
            return
        try:
            left = MOST_DRAINED_FROM_TERMINAL if self._terminal else linux.bytes_waiting(self.fd)
        except OSError:
            left = BUSY_PIPE
        while left > 0:
            size, _ = self._take()
            if not size:
                return
            left -= size

    def close(self) -> None:
        self._forget_timer()
        self.resting = False
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._loop.forget(fd)
            os.close(fd)


class Stdin:
    """The container's standard input as clients see it. Owns its descriptor (-1: there is none).

    A container without stdin, or with a closed one, swallows what it is sent: a client must not be able
    to keep the monitor busy with bytes that nobody can take. One whose terminal is still to come takes
    nothing yet.
    """

    def __init__(self, loop: Loop, *, awaited: bool = False) -> None:
        self.fd = -1
        self._loop = loop
        self._awaited = awaited
        self._closes = False
        self._waiting: list[Callable[[], None]] = []
        self.on_input: Callable[[], None] = lambda: None

    def open(self, fd: int, *, closes_with_client: bool) -> None:
        """Take over the descriptor of the pipe or terminal."""
        os.set_blocking(fd, False)
        self.fd = fd
        self._closes = closes_with_client
        self._awaited = False
        self._call_waiting()

    def write(self, data: memoryview) -> int:
        """Give how many bytes were taken; 0 where the container does not read just now."""
        if self.fd < 0:
            return 0 if self._awaited else len(data)
        try:
            size = os.write(self.fd, data)
            self.on_input()
            return size
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE: the container has closed it. EIO: its terminal is gone
            self.close()
            return len(data)

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once when a write may succeed again."""
        if self.fd < 0 and not self._awaited:
            callback()
            return
        if not self._waiting and self.fd >= 0:
            self._loop.watch(self.fd, WRITABLE, self._ready)
        self._waiting.append(callback)

    def client_eof(self) -> None:
        """A client has sent all it will: end of input, if that is this container's way."""
        if self._closes:
            self.close()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        self._awaited = False
        if fd >= 0:
            self._loop.forget(fd)
            os.close(fd)
        self._call_waiting()

    def _ready(self, revents: int) -> None:
        self._loop.forget(self.fd)
        self._call_waiting()

    def _call_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
