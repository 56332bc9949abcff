"""The control fifos `ctl` and `winsz` of a bundle: requests to resize and to reopen the logs.

Callers rely on the names, on `<type> <height> <width>` lines in `ctl` (1 resize, 2 reopen the
logs), on `<height> <width>` lines in `winsz`, and on an open for writing never blocking while the
monitor lives. What a resize does, and keeping a size that comes before there is a terminal, is the
monitor's business.
"""

from __future__ import annotations

import _stat
import errno
import os
import select

from pyconmon import fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.diag import Diag
    from pyconmon.loop import Loop

RESIZE = 1
REOPEN_LOGS = 2

LONGEST_SIZE = 1000  # rows or columns; conmon refuses more since 2.2.0
LONGEST_FRAGMENT = 199  # a line longer than conmon's buffer is nobody's message
READ_SIZE = 4096
BLANKS = b" \t\n\v\f\r"
DIGITS = b"0123456789"


def scan_numbers(line: bytes, limit: int) -> tuple[list[int], bool]:
    """Read up to `limit` decimal numbers as scanf("%d") does; also say if nothing else was met.

    Writers depend on this syntax: a sign, leading zeros and any blanks are fine, and what follows
    the last wanted number is ignored.
    """
    numbers: list[int] = []
    at, end = 0, len(line)
    while len(numbers) < limit:
        while at < end and line[at] in BLANKS:
            at += 1
        start = at
        if at < end and line[at] in b"+-":
            at += 1
        first_digit = at
        while at < end and line[at] in DIGITS:
            at += 1
        if at == first_digit:
            return numbers, start == end
        # Any number with so many digits is out of range; int() would refuse some thousands of them.
        numbers.append(int(line[start : min(at, start + 20)]))
    return numbers, True


class Messages:
    """Cuts the bytes of a fifo into messages of `count` numbers.

    One message a line is what everybody sends. As scanf takes a line end for a blank, conmon also
    understands a message spread over several lines, and so do we, as long as none of them is a
    whole message or has anything else in it: a bad line must not spoil the good one after it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._fragment = b""
        self._numbers: list[int] = []

    def feed(self, data: bytes) -> list[tuple[int, ...]]:
        """Take what a read gave; return the messages that are complete now."""
        *lines, fragment = (self._fragment + data).split(b"\n")
        self._fragment = fragment if len(fragment) < LONGEST_FRAGMENT else b""
        messages = []
        for line in lines:
            if len(line) >= LONGEST_FRAGMENT:
                self._numbers = []
                continue
            numbers, clean = scan_numbers(line, self._count)
            if len(numbers) == self._count:
                messages.append(tuple(numbers))
                self._numbers = []
            elif not clean:
                self._numbers = []
            else:
                self._numbers += numbers
                if len(self._numbers) >= self._count:
                    messages.append(tuple(self._numbers[: self._count]))
                    self._numbers = []
        return messages


def size_is_valid(rows: int, columns: int) -> bool:
    return 0 <= rows <= LONGEST_SIZE and 0 <= columns <= LONGEST_SIZE


class Control:
    """Both fifos of one bundle, served on the loop.

    on_resize(rows, columns) and on_reopen() are called for each message, in order.
    """

    def __init__(
        self,
        loop: Loop,
        diag: Diag,
        bundle: str,
        on_resize: Callable[[int, int], None],
        on_reopen: Callable[[], None],
    ) -> None:
        self._diag = diag
        self._on_resize = on_resize
        self._on_reopen = on_reopen
        self._fifos = (
            Fifo(loop, diag, os.path.join(bundle, "ctl"), 3, self._control_message),
            Fifo(loop, diag, os.path.join(bundle, "winsz"), 2, self._size_message),
        )

    def open(self) -> None:
        """Make both fifos, in place of what has their names. OSError if that fails."""
        for fifo in self._fifos:
            fifo.open()

    def close(self, unlink: bool = True) -> None:
        """Stop reading and remove the fifos: without a reader a plain open(2) would block."""
        for fifo in self._fifos:
            fifo.close(unlink)

    def _control_message(self, message: tuple[int, ...]) -> None:
        kind, rows, columns = message
        if not size_is_valid(rows, columns):
            self._diag.warn(f"control message with a size out of range: {kind} {rows} {columns}")
        elif kind == RESIZE:
            self._on_resize(rows, columns)
        elif kind == REOPEN_LOGS:
            self._on_reopen()
        else:
            self._diag.info(f"control message of unknown type {kind}")

    def _size_message(self, message: tuple[int, ...]) -> None:
        rows, columns = message
        if size_is_valid(rows, columns):
            self._on_resize(rows, columns)
        else:
            self._diag.warn(f"window size out of range: {rows} {columns}")


class Fifo:
    """One fifo that this process made and reads."""

    def __init__(
        self,
        loop: Loop,
        diag: Diag,
        path: str,
        count: int,
        on_message: Callable[[tuple[int, ...]], None],
    ) -> None:
        self._loop = loop
        self._diag = diag
        self._path = path
        self._messages = Messages(count)
        self._on_message = on_message
        self._fd = -1
        self._identity = (0, 0)

    def open(self) -> None:
        """Make it and read it, in place of what has its name. Raises OSError."""
        fds.compete(self._make)

    def _make(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        os.mkfifo(self._path, 0o660)
        # Opened for writing too: with a writer of our own there is never an end of file, which
        # would make the descriptor readable for ever after the first writer has gone.
        fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(fd)
        if not _stat.S_ISFIFO(status.st_mode):
            os.close(fd)
            raise OSError(errno.EEXIST, "somebody replaced the fifo", self._path)
        self._fd = fd
        self._identity = (status.st_dev, status.st_ino)
        self._loop.watch(fd, select.POLLIN, self._readable)

    def close(self, unlink: bool) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._loop.forget(fd)
        os.close(fd)
        if unlink:
            try:
                status = os.lstat(self._path)
                # The next monitor of this bundle may already have put its own there.
                if (status.st_dev, status.st_ino) == self._identity:
                    os.unlink(self._path)
            except OSError as error:
                self._diag.debug(f"cannot remove {self._path}: {error.strerror}")

    def _readable(self, _events: int) -> None:
        if self._fd < 0:
            return
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._diag.warn(f"cannot read {self._path}: {error.strerror}")
            self._loop.forget(self._fd)
            return
        for message in self._messages.feed(data):
            self._on_message(message)
