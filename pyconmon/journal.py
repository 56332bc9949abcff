"""The journal: what was read from the container and is not yet in the log, in memory that outlives us.

A read takes bytes out of the pipe for good, so between it and the write to the log a killed monitor would
lose them. Here the read goes straight into a mapped file, after a note of how much was going to be read;
the kernel keeps both when we die, and who comes after can tell what had happened:

* the size is known beforehand (FIONREAD; nobody else reads the pipe, so the read gives exactly that);
* the last 16 bytes of the place are filled with a random mark first: still there means not read (a read
  is not cut short, since the pages are there);
* fewer than 16 bytes could equal the mark by chance, so they are spliced to the end of the file instead,
  whose size then tells.

What changes together is changed by one store of 8 bytes, the last one. Space is allocated beforehand: a
full disk later cannot hurt. How a log is continued is out of scope (logs/); here is only what it needs:
the bytes, their time stamp, how far the log had come, and the unfinished lines that a driver holds.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from time import time_ns

from pyconmon import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.stdio import Reader

    # (stream, data, time in ns or 0: not begun, consumed, inode or 0: no file has any, offset,
    # messages that the system's journal has)
    Unlogged = tuple[int, bytes, int, int, int, int, int]
    # (device, inode, ctime in ns) of a link, and (device, inode, kind: S_IFMT, owner, links) of a file
    Link = tuple[int, int, int]
    File = tuple[int, int, int, int, int]
    # (the link that led to the log, the log, inode of the file that was to be the next or 0)
    KnownLog = tuple[Link | None, File, int]


MAGIC = b"pyconmon journal 2\n"
MARK_SIZE = 16
IDLE, READING, SPLICING = 0, 1, 2
LONGEST_HELD = 8192
# After the magic: the mark, then numbers of 8 bytes, in this machine's order, at fixed places.
AT_MARK = 32
AT_STATE, AT_STREAM, AT_SIZE, AT_TIME, AT_TURN, AT_SENT, AT_CAPACITY = range(48, 104, 8)
AT_CHECKPOINTS = 104, 128  # two of (consumed, inode, offset); AT_TURN says which one holds
# Which file is the log: see KnownLog. An inode of 0: none, or not known.
AT_LINK = range(152, 176, 8)
AT_DEVICE, AT_INODE, AT_KIND, AT_OWNER, AT_NAMES, AT_NEXT = range(176, 224, 8)
AT_HELD = 4096  # for each stream two times (description, text); bits 8 and 9 of the state say which
HELD_SIZE = 8 + LONGEST_HELD
HEADER = 40960
CAPACITY = 64 * 1024  # what an ordinary pipe can hold
MOST_CAPACITY = 256 * 1024  # once the container has proved to be quick
MAP_LOCKED = 0x2000  # mmap(2); the module does not have it
PAGE = 4096  # the smallest that any machine has
TOUCH = bytes(MOST_CAPACITY // PAGE)


class Journal:
    """One container's journal; also the lock that keeps a second monitor away.

    Raises OSError if it cannot be made (no space, not permitted), BlockingIOError if another monitor
    has it. `lock`: what `locked` gave (-1: nothing); it is taken over, also if this fails.
    """

    def __init__(self, path: str, *, create: bool, lock: int = -1) -> None:
        self.path = path
        self._resident = False  # in memory, once the container has shown that it writes much
        if lock >= 0 and not _is_named(lock, path):
            os.close(lock)
            lock = -1
        self.fd = lock if lock >= 0 else locked(path, create)
        try:
            if create:
                os.ftruncate(self.fd, 0)
                self._capacity = CAPACITY
                self._map_file(allocate=True)
                self._map[AT_MARK : AT_MARK + MARK_SIZE] = os.urandom(MARK_SIZE)
                self._put(AT_CAPACITY, CAPACITY)
                self._map[0 : len(MAGIC)] = MAGIC
            else:
                start = os.pread(self.fd, AT_CAPACITY + 8, 0)
                self._capacity = int.from_bytes(start[AT_CAPACITY:], sys.byteorder)
                known = start.startswith(MAGIC) and self._capacity in (CAPACITY, MOST_CAPACITY)
                if not known or os.fstat(self.fd).st_size < HEADER + self._capacity:
                    raise OSError(errno.EINVAL, "is no journal of this version", path)
                self._map_file(allocate=False)
        except BaseException:
            os.close(self.fd)
            raise
        self._small = b""
        self._splices = True
        self._grows = self._capacity < MOST_CAPACITY
        self._held = self._get(AT_STATE) >> 8 & 3
        self._next_held = self._held

    def _map_file(self, *, allocate: bool) -> None:
        base = HEADER + self._capacity
        if allocate:
            os.posix_fallocate(self.fd, 0, base)
        try:
            self._map = mmap.mmap(self.fd, base, mmap.MAP_SHARED | MAP_LOCKED * self._resident)
        except OSError:  # more than we may lock: then the kernel may take away what we have touched
            self._map = mmap.mmap(self.fd, base)
        self._view = memoryview(self._map)
        self._numbers = self._view[:HEADER].cast("Q")
        self._base = base

    def _get(self, place: int) -> int:
        return self._numbers[place >> 3]

    def _put(self, place: int, value: int) -> None:
        self._numbers[place >> 3] = value

    def _set_state(self, state: int) -> None:
        self._put(AT_STATE, state | self._held << 8)

    # ---- the reader's side ----

    def read(self, fd: int, stream: int) -> memoryview | None:
        """Read once, as `Reader.read`; what was read stays in the journal until `done`."""
        try:
            waiting = linux.bytes_waiting(fd)
        except OSError:
            return self._read_unprotected(fd, CAPACITY)
        if waiting > self._capacity and self._grows:
            self._grow()
        size = min(waiting, self._capacity)
        self._put(AT_STREAM, stream)
        self._put(AT_TIME, 0)
        self._put(AT_SENT, 0)
        if size < MARK_SIZE:
            return self._splice(fd, max(size, 1))
        end = HEADER + size
        if size > PAGE:
            self._hold_pages(end)
        self._map[end - MARK_SIZE : end] = self._map[AT_MARK : AT_MARK + MARK_SIZE]
        self._put(AT_SIZE, size)
        self._set_state(READING)
        view = self._view[HEADER:end]
        try:
            return view[: os.readv(fd, [view])]
        except BlockingIOError:
            self._set_state(IDLE)
            return None

    def _hold_pages(self, end: int) -> None:
        """Have all pages up to `end` in memory for the read that comes.

        At one that is not, a kill (above all for want of memory) cuts the read short: bytes of the pages
        before it are gone from the pipe then, and the mark still stands. The first page does no harm.
        """
        if not self._resident:
            self._resident = True
            self._map_file(allocate=False)
        self._view[HEADER:end:PAGE] = TOUCH[: (end - HEADER + PAGE - 1) // PAGE]

    def _splice(self, fd: int, size: int) -> memoryview | None:
        try:
            if self._splices:
                self._set_state(SPLICING)
                size = os.splice(fd, self.fd, size, offset_dst=self._base)
                self._small = os.pread(self.fd, size, self._base)
                return memoryview(self._small)
        except BlockingIOError:
            self._set_state(IDLE)
            return None
        except OSError:  # no space for these few bytes: better unprotected than unread
            self._set_state(IDLE)
        return self._read_unprotected(fd, size)

    def _read_unprotected(self, fd: int, size: int) -> memoryview | None:
        try:
            self._small = os.read(fd, size)
        except BlockingIOError:
            return None
        return memoryview(self._small)

    def _grow(self) -> None:
        """Make room for bigger reads; where there is none, small ones have to do."""
        self._grows = False
        old, self._capacity = self._capacity, MOST_CAPACITY
        try:
            self._map_file(allocate=True)
        except OSError:
            self._capacity = old
            self._splices = False  # the file may be longer by now, and its size is what would tell
        else:
            self._put(AT_CAPACITY, self._capacity)

    def done(self) -> None:
        """The log has what was read."""
        spliced = self._get(AT_STATE) & 3 == SPLICING
        self._held = self._next_held
        self._set_state(IDLE)
        if spliced:
            # After the state: what is still there then does not count as unlogged.
            try:
                os.ftruncate(self.fd, self._base)
            except OSError:
                self._splices = False

    # ---- the log's side ----

    def timestamp(self) -> int:
        """The time of the write that begins now, in ns since 1970; kept for who may have to finish it."""
        now = time_ns()
        self._checkpoint(0, 0, 0)
        self._put(AT_TIME, now)
        return now

    def checkpoint(self, consumed: int, inode: int, offset: int) -> None:
        """`consumed` bytes of what was read are in the log, whose file `inode` is `offset` bytes long."""
        self._checkpoint(consumed, inode, offset)

    def _checkpoint(self, consumed: int, inode: int, offset: int) -> None:
        numbers = self._numbers
        turn = 1 - (numbers[AT_TURN >> 3] & 1)
        at = AT_CHECKPOINTS[turn] >> 3
        numbers[at] = consumed
        numbers[at + 1] = inode
        numbers[at + 2] = offset
        numbers[AT_TURN >> 3] = turn

    def announce_log(self, inode: int) -> None:
        """A file is about to get the log's name."""
        self._put(AT_NEXT, inode)

    def note_log(self, link: Link | None, status: os.stat_result) -> None:
        """This file is the log. After a rotation only its inode number is another."""
        for place, value in zip(AT_LINK, link or (0, 0, 0), strict=True):
            self._put(place, value)
        self._put(AT_DEVICE, status.st_dev)
        self._put(AT_KIND, status.st_mode & 0o170000)
        self._put(AT_OWNER, status.st_uid)
        self._put(AT_NAMES, status.st_nlink)
        self._put(AT_INODE, status.st_ino)
        self._put(AT_NEXT, 0)  # files that are gone leave their numbers to strangers

    def sent(self, messages: int) -> None:
        """So many messages of what was read have gone to the system's journal."""
        self._put(AT_SENT, messages)

    def hold(self, stream: int, text: bytes, flags: int) -> None:
        """An unfinished line that the log driver keeps until more comes.

        It counts from `done` on, or at once where no read is being logged.
        """
        if len(text) > LONGEST_HELD:
            return
        bit = 1 << (stream - 1)
        self._next_held = self._held ^ bit
        at = self._held_place(stream, self._next_held)
        self._put(at, len(text) | flags << 32)
        self._map[at + 8 : at + 8 + len(text)] = text
        if self._get(AT_STATE) & 3 == IDLE:
            self._held = self._next_held
            self._set_state(IDLE)

    @staticmethod
    def _held_place(stream: int, bits: int) -> int:
        return AT_HELD + HELD_SIZE * (2 * (stream - 1) + (bits >> (stream - 1) & 1))

    # ---- the successor's side ----

    def unlogged(self) -> Unlogged | None:
        """What the dead monitor had read and not finished to log; None if there is nothing.

        The arguments of `Logs.resume`.
        """
        state = self._get(AT_STATE) & 3
        stream, size = self._get(AT_STREAM), self._get(AT_SIZE)
        data = b""
        if state == SPLICING:
            data = os.pread(self.fd, MARK_SIZE, self._base)
        elif state == READING and MARK_SIZE <= size <= self._capacity:
            end = HEADER + size
            if self._map[end - MARK_SIZE : end] != self._map[AT_MARK : AT_MARK + MARK_SIZE]:
                data = bytes(self._map[HEADER:end])
        if not data or stream not in (1, 2):
            self.clear()
            return None
        at = AT_CHECKPOINTS[self._get(AT_TURN) & 1]
        time = self._get(AT_TIME)
        # Before the time is set the checkpoint is that of an earlier read.
        consumed, inode, offset = (self._get(at + 8 * n) if time else 0 for n in range(3))
        return stream, data, time, consumed, inode, offset, self._get(AT_SENT)

    def held(self) -> dict[int, tuple[bytes, int]]:
        """The unfinished lines of the dead monitor's log driver: stream -> (text, flags)."""
        found = {}
        for stream in (1, 2):
            at = self._held_place(stream, self._held)
            described = self._get(at)
            size = described & 0xFFFFFFFF
            if size <= LONGEST_HELD and described:
                found[stream] = bytes(self._map[at + 8 : at + 8 + size]), described >> 32
        return found

    def known_log(self) -> KnownLog | None:
        """Which file the dead monitor wrote to; None: not known."""
        device, inode, kind, owner, names, following = map(
            self._get, range(AT_DEVICE, AT_NEXT + 8, 8)
        )
        if not inode:
            return None
        first, second, third = map(self._get, AT_LINK)
        link = (first, second, third) if second else None
        return link, (device, inode, kind, owner, names), following

    def clear(self) -> None:
        """What was unlogged is in the log now."""
        self._held = self._next_held
        self._set_state(IDLE)
        if os.fstat(self.fd).st_size > self._base:
            os.ftruncate(self.fd, self._base)

    def has_name(self) -> bool:
        """Nobody has removed or replaced the file."""
        return _is_named(self.fd, self.path)

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
        try:
            self._numbers.release()
            self._view.release()
            self._map.close()  # it has a descriptor of its own, which would keep the lock
        except BufferError:  # a read is still being looked at: the lock goes with the process
            pass


def locked(path: str, create: bool) -> int:
    """Open and lock the file that has this name when the lock is ours. Raises as Journal does."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        # A leftover of an earlier container of this bundle is used again; one in use is locked.
        fd = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        # Who had it before us may have removed it; a lock on a file without a name keeps nobody away.
        if _is_named(fd, path):
            return fd
        os.close(fd)


def _is_named(fd: int, path: str) -> bool:
    """Say whether the open file is the one at `path`."""
    try:
        named, ours = os.lstat(path), os.fstat(fd)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def as_reader(journal: Journal) -> Reader:
    """The journal reads like a Reader; said here once, for the type checker."""
    return journal  # type: ignore[return-value]
