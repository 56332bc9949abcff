"""The caller's own terminal as the container's: how the classic dialect does `-t`.

Callers rely on: what they type (or pipe in) reaches the container's terminal byte by byte, its
output comes on descriptor 1, sizes follow, and their terminal has its settings back afterwards.
Descriptors 0 and 1 belong to the caller: their flags are never changed, and whether the caller
reads or not, nothing here blocks before the end. Logs and attached clients are out of scope.
"""

from __future__ import annotations

import _signal
import _socket
import _stat
import fcntl
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyconmon.diag import Diag
    from pyconmon.loop import Loop

BLOCK = 16384  # the most that is held of either direction
MOST_DRAINED = 4 * 1024 * 1024  # at the end; a process left behind may go on writing for ever
LONGEST_STALL = 1.0  # seconds that a caller may keep the end waiting without reading anything
SMALL_WRITE = 512  # to a descriptor that can block: what fits in when it says that it has room


class Door:
    """One of the caller's descriptors, to be used without blocking and without changing it.

    O_NONBLOCK belongs to the open file, which the caller shares. So a terminal or pipe is opened
    anew, and a socket is used with a flag; ordinary files do not block.
    """

    def __init__(self, fd: int, flags: int) -> None:
        mode = os.fstat(fd).st_mode
        self.fd = -1
        self._socket: _socket.socket | None = None
        self._block = BLOCK
        if _stat.S_ISCHR(mode) or _stat.S_ISFIFO(mode):
            flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self.fd = os.open(f"/proc/self/fd/{fd}", flags)
                return
            except OSError:  # a terminal of another mount namespace, or one that we may not open
                self._block = SMALL_WRITE
        self.fd = os.dup(fd)
        if _stat.S_ISSOCK(mode):
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, self.fd)

    def read(self) -> bytes:
        """Read some; b"" at the end. OSError, also BlockingIOError."""
        if self._socket is not None:
            return self._socket.recv(BLOCK, _socket.MSG_DONTWAIT)
        return os.read(self.fd, BLOCK)

    def write(self, data: bytes) -> int:
        """Write some. OSError, also BlockingIOError."""
        if self._socket is not None:
            return self._socket.send(data, _socket.MSG_DONTWAIT)
        return os.write(self.fd, data[: self._block])

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        if fd >= 0:
            os.close(fd)


class CallerTerminal:
    """Joins descriptors 0 and 1 to a container's terminal."""

    def __init__(self, loop: Loop, diag: Diag) -> None:
        self._loop = loop
        self._diag = diag
        self._master = -1
        self._input: Door | None = None
        self._output: Door | None = None
        self._to_container = b""
        self._to_caller = b""
        self._watched: dict[int, int] = {}
        self._attributes: list[Any] | None = None

    def attach(self, master: int) -> None:
        """Own the terminal `master` (non-blocking), copy until finish(); raw mode from now on."""
        self._master = master
        self.window_changed()
        try:
            if not in_background(0):
                self._make_raw()
                self._input = Door(0, os.O_RDONLY)
        except OSError as error:
            self._diag.debug(f"no input from the caller: {error.strerror}")
        try:
            self._output = Door(1, os.O_WRONLY)
        except OSError as error:
            self._diag.debug(f"no output to the caller: {error.strerror}")
        self._watch()

    def window_changed(self) -> None:
        """Give the container's terminal the size of the caller's."""
        import termios  # only needed with a terminal

        if self._master < 0:
            return
        for fd in (0, 1):
            try:
                size = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
                if any(size[:4]):
                    fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
                return
            except OSError:  # not a terminal
                continue

    def finish(self) -> None:
        """The container has ended: copy what it wrote, close all, restore the terminal.

        Waits for a caller that reads slowly, but not for one that does not read.
        """
        if self._master < 0:
            return
        left = MOST_DRAINED
        while left > 0 and self._flush_to_caller():
            data = self._read_master()
            if not data:
                break
            left -= len(data)
            self._to_caller = data
        for fd in list(self._watched):
            self._loop.forget(fd)
        self._watched = {}
        for door in (self._input, self._output):
            if door is not None:
                door.close()
        self._input = self._output = None
        os.close(self._master)
        self._master = -1
        self.restore()

    def restore(self) -> None:
        """Give the caller's terminal its settings back. May be called at any time, also twice."""
        attributes, self._attributes = self._attributes, None
        if attributes is None:
            return
        import termios  # only needed with a terminal

        # Not the foreground group any more (the caller's shell is)? Then this would stop us.
        mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTTOU,))
        try:
            termios.tcsetattr(0, termios.TCSANOW, attributes)
        except Exception as error:  # termios.error is no OSError
            self._diag.debug(f"cannot restore the caller's terminal: {error}")
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)

    def _make_raw(self) -> None:
        import termios  # only needed with a terminal

        try:
            attributes = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSANOW, raw(attributes))
        except termios.error as error:
            self._diag.debug(f"no raw mode on the caller's input: {error}")
            return
        self._attributes = attributes

    # Copying. One block is held in each direction; its source is not read before it is gone.

    def _watch(self) -> None:
        master = select.POLLIN if not self._to_caller else 0
        if self._to_container:
            master |= select.POLLOUT
        self._ask(self._master, master, self._master_ready)
        if self._input is not None:
            events = select.POLLIN if not self._to_container else 0
            self._ask(self._input.fd, events, self._input_ready)
        if self._output is not None:
            events = select.POLLOUT if self._to_caller else 0
            self._ask(self._output.fd, events, self._output_ready)

    def _ask(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Watch for these events; for none, not for a hang-up either: it would never stop."""
        if fd < 0 or self._watched.get(fd, 0) == events:
            return
        if events:
            self._loop.watch(fd, events, callback)
            self._watched[fd] = events
        else:
            self._loop.forget(fd)
            del self._watched[fd]

    def _input_ready(self, _events: int) -> None:
        if self._input is None or self._to_container:
            return
        try:
            data = self._input.read()
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal is gone
            data = b""
        if not data:
            self._ask(self._input.fd, 0, self._input_ready)
            self._input.close()
            self._input = None
            return
        self._to_container = data
        self._write_master()
        self._watch()

    def _output_ready(self, _events: int) -> None:
        self._write_caller()
        self._watch()

    def _master_ready(self, events: int) -> None:
        if self._master < 0:
            return
        if self._to_container:
            self._write_master()
        if not self._to_caller and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            data = self._read_master()
            if data == b"":
                # Nobody has the terminal open. What may still come is seen to at the end.
                self._to_container = b""
                self._loop.forget(self._master)
                self._watched.pop(self._master, None)
                return
            if data is not None:
                self._to_caller = data
                self._write_caller()
        self._watch()

    def _read_master(self) -> bytes | None:
        """Read some of the container's output; None: nothing now, b"": nobody writes any more."""
        try:
            return os.read(self._master, BLOCK)
        except BlockingIOError:
            return None
        except OSError:  # EIO is the end of a terminal
            return b""

    def _write_master(self) -> None:
        try:
            written = os.write(self._master, self._to_container)
        except BlockingIOError:
            return
        except OSError:
            written = len(self._to_container)
        self._to_container = self._to_container[written:]

    def _write_caller(self) -> None:
        try:
            if self._output is not None and self._to_caller:
                self._to_caller = self._to_caller[self._output.write(self._to_caller) :]
            else:
                self._to_caller = b""
        except BlockingIOError:
            pass
        except OSError:
            # Nobody reads it. The container must not notice: it goes on, and its output goes
            # nowhere.
            self._to_caller = b""
            if self._output is not None:
                self._ask(self._output.fd, 0, self._output_ready)
                self._output.close()
                self._output = None

    def _flush_to_caller(self) -> bool:
        """Write all that is held, waiting for a caller that reads. False if it does not."""
        while self._to_caller:
            before = len(self._to_caller)
            self._write_caller()
            if len(self._to_caller) < before or self._output is None:
                continue
            poller = select.poll()
            poller.register(self._output.fd, select.POLLOUT)
            if not poller.poll(LONGEST_STALL * 1000):
                return False
        return True


def raw(attributes: list[Any]) -> list[Any]:
    """Terminal attributes as cfmakeraw(3) makes them of these."""
    import termios as t  # only needed with a terminal

    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = attributes
    iflag &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
    oflag &= ~t.OPOST
    lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    cflag = (cflag & ~(t.CSIZE | t.PARENB)) | t.CS8
    characters = list(characters)
    characters[t.VMIN], characters[t.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]


def in_background(fd: int) -> bool:
    """Somebody else has this terminal just now: to read it, or to set it, would stop us."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # no terminal, or not the one that controls us: both are no danger
        return False
