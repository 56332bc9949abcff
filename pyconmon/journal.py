"""The journal: what was read from the container and is not yet in the log, in memory that outlives us.

A read takes bytes out of the pipe for good, so between it and the write to the log a killed monitor would
lose them. Here the read goes straight into a mapped file, after a note of how much was going to be read;
the kernel keeps both when we die, and who comes after can tell what had happened:

* the size is known beforehand (FIONREAD; nobody else reads the pipe, so the read gives exactly that);
* the last 16 bytes of the place are filled with a random mark first: still there means not read;
* fewer than 16 bytes could equal the mark by chance, so they are spliced to the end of the file instead,
  whose size then tells.

Space is allocated when the file is made: a full disk later cannot hurt. How a log is continued is out of
scope (logs/); here is only what it needs: the bytes, their time stamp, and how far the log had come.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from pyconmon import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.stdio import Reader

HEADER = 4096
CAPACITY = 256 * 1024
BASE = HEADER + CAPACITY
MARK_SIZE = 16
IDLE, READING, SPLICING = 0, 1, 2
MAGIC = b"pyconmon journal 1\n"
# After the magic, at fixed places: the mark, then little-endian numbers of 8 bytes.
AT_MARK, AT_STATE, AT_STREAM, AT_SIZE, AT_TIME, AT_CONSUMED, AT_INODE, AT_OFFSET = (
    32,
    48,
    56,
    64,
    72,
    80,
    88,
    96,
)


class Journal:
    """One container's journal; also the lock that keeps a second monitor away.

    Raises OSError if it cannot be made (no space, not permitted), BlockingIOError if another monitor
    has it.
    """

    def __init__(self, path: str, *, create: bool) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if create:
            # A leftover of an earlier container of this bundle; one in use is locked, which we see below.
            flags |= os.O_CREAT
        self.fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if create:
                os.ftruncate(self.fd, 0)
                os.posix_fallocate(self.fd, 0, BASE)
            elif os.fstat(self.fd).st_size < BASE:
                raise OSError(errno.EINVAL, "is no journal", path)
            self._map = mmap.mmap(self.fd, BASE)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._map)
        self._small = b""
        if create:
            self._map[AT_MARK : AT_MARK + MARK_SIZE] = os.urandom(MARK_SIZE)
            self._map[0 : len(MAGIC)] = MAGIC

    def _get(self, place: int) -> int:
        return int.from_bytes(self._map[place : place + 8], "little")

    def _put(self, place: int, value: int) -> None:
        self._map[place : place + 8] = value.to_bytes(8, "little")

    # ---- the reader's side ----

    def read(self, fd: int, stream: int) -> memoryview | None:
        """Read once, as `Reader.read`; what was read stays in the journal until `done`."""
        size = min(linux.bytes_waiting(fd), CAPACITY)
        self._put(AT_STREAM, stream)
        self._put(AT_TIME, 0)
        if size < MARK_SIZE:
            return self._splice(fd, max(size, 1))
        end = HEADER + size
        self._map[end - MARK_SIZE : end] = self._map[AT_MARK : AT_MARK + MARK_SIZE]
        self._put(AT_SIZE, size)
        self._put(AT_STATE, READING)
        view = self._view[HEADER:end]
        try:
            return view[: os.readv(fd, [view])]
        except BlockingIOError:
            self._put(AT_STATE, IDLE)
            return None

    def _splice(self, fd: int, size: int) -> memoryview | None:
        self._put(AT_STATE, SPLICING)
        try:
            size = os.splice(fd, self.fd, size, offset_dst=BASE)
            self._small = os.pread(self.fd, size, BASE)
        except BlockingIOError:
            self._put(AT_STATE, IDLE)
            return None
        except OSError:  # no space for these few bytes: better unprotected than unread
            self._put(AT_STATE, IDLE)
            try:
                self._small = os.read(fd, size)
            except BlockingIOError:
                return None
        return memoryview(self._small)

    def done(self) -> None:
        """The log has what was read."""
        state = self._get(AT_STATE)
        if state == SPLICING:
            # First the size: an interrupted `done` must not leave bytes that count as unlogged twice.
            self._put(AT_STATE, IDLE)
            os.ftruncate(self.fd, BASE)
        elif state == READING:
            self._put(AT_STATE, IDLE)

    # ---- the log's side ----

    def timestamp(self) -> int:
        """The time of the write that begins now, in ns since 1970; kept for who may have to finish it."""
        from time import time_ns

        now = time_ns()
        self._put(AT_CONSUMED, 0)
        self._put(AT_INODE, 0)
        self._put(AT_TIME, now)
        return now

    def checkpoint(self, consumed: int, inode: int, offset: int) -> None:
        """`consumed` bytes of what was read are in the log, whose file `inode` is `offset` bytes long."""
        self._put(AT_INODE, 0)
        self._put(AT_CONSUMED, consumed)
        self._put(AT_OFFSET, offset)
        self._put(AT_INODE, inode)

    # ---- the successor's side ----

    def unlogged(self) -> tuple[int, bytes, int, int, int, int] | None:
        """What the dead monitor had read and not finished to log; None if there is nothing.

        Gives (stream, data, time stamp in ns or 0, consumed, inode or 0, offset).
        """
        state = self._get(AT_STATE)
        if state == SPLICING:
            data = os.pread(self.fd, MARK_SIZE, BASE)
        elif state == READING:
            end = HEADER + self._get(AT_SIZE)
            if self._map[end - MARK_SIZE : end] == self._map[AT_MARK : AT_MARK + MARK_SIZE]:
                data = b""
            else:
                data = bytes(self._map[HEADER:end])
        else:
            data = b""
        if not data:
            self.clear()
            return None
        numbers = tuple(self._get(at) for at in (AT_TIME, AT_CONSUMED, AT_INODE, AT_OFFSET))
        return (self._get(AT_STREAM), data, *numbers)  # type: ignore[return-value]

    def clear(self) -> None:
        """Nothing is pending."""
        self._put(AT_STATE, IDLE)
        if os.fstat(self.fd).st_size > BASE:
            os.ftruncate(self.fd, BASE)

    def close(self, *, remove: bool) -> None:
        """Let go of the lock, and of the file if it has done its work."""
        if self.fd < 0:
            return
        if remove:
            try:
                os.unlink(self.path)
            except OSError:
                pass
        fd, self.fd = self.fd, -1
        os.close(fd)


def as_reader(journal: Journal) -> Reader:
    """The journal reads like a Reader; said here once, for the type checker."""
    return journal  # type: ignore[return-value]
