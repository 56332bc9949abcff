"""inotify for Python: watch directories and files for changes without polling.

Callers rely on `Inotify`: a descriptor to poll, `watch()`, and `read()`, which never blocks and
never raises for lost events but reports `overflow`. Only what this package needs; recursion and
unwatching are out of scope.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from .closing import Closing

MODIFY = 0x00000002
CLOSE_WRITE = 0x00000008
MOVED_FROM = 0x00000040
MOVED_TO = 0x00000080
CREATE = 0x00000100
DELETE = 0x00000200
DELETE_SELF = 0x00000400
MOVE_SELF = 0x00000800
Q_OVERFLOW = 0x00004000
IGNORED = 0x00008000
ONLYDIR = 0x01000000

_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


class Event(NamedTuple):
    """One change: which watch, the mask of inotify bits, and the name in a watched directory (else
    "").
    """

    watch: int
    mask: int
    name: str

    @property
    def overflow(self) -> bool:
        """The kernel dropped events; look at everything again."""
        return bool(self.mask & Q_OVERFLOW)


class Inotify(Closing):
    """An inotify instance; `fileno()` is readable when there are events."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(
                number, f"inotify: {os.strerror(number)} (fs.inotify.max_user_instances?)"
            )

    def fileno(self) -> int:
        return self._fd

    def watch(self, path: str | os.PathLike[str], mask: int) -> int:
        """Watches `path` for the events in `mask`; returns the watch's number. Raises OSError."""
        watch: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
        return watch

    def read(self) -> list[Event]:
        """The events that are there now, perhaps none."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        return parse(data)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def parse(data: bytes) -> list[Event]:
    """The events in what was read from an inotify descriptor."""
    events = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        watch, mask, _cookie, length = _HEADER.unpack_from(data, offset)
        offset += _HEADER.size
        name = data[offset : offset + length].rstrip(b"\0")
        offset += length
        events.append(Event(watch, mask, os.fsdecode(name)))
    return events
