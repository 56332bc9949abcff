"""Exit codes: from a monitor's exit file, from a wait status, from the kernel's memory.

Exit files hold a decimal number and nothing else, and appear by a rename, so anything else in one
is an error. `kernel_exit_code` knows how a process ended that is nobody's child (Linux 6.15 and later).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import ExitFileError

_DECIMAL = re.compile(rb"-?[0-9]{1,9}\Z")
# PIDFD_GET_INFO = _IOWR(0xFF, 11, struct pidfd_info of 64 bytes); PIDFD_INFO_EXIT is bit 3 of the
# mask at the beginning, the wait status is at byte 60.
_PIDFD_GET_INFO = 0xC040FF0B
_INFO_EXIT = 1 << 3


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended: `code`, or -1 with `known` False where nobody can tell any more."""

    code: int
    known: bool = True
    finished: datetime | None = None


UNKNOWN = Exit(-1, known=False)


def read_exit_file(path: str) -> Exit | None:
    """The exit that the file tells, None if there is no file; ExitFileError for anything else.

    `finished` is the file's ctime. A code of -1 (the monitor did not know it) is not `known`.
    """
    try:
        # Never through a link, and never blocking on a fifo that was planted there.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ExitFileError(path, error.strerror or str(error)) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ExitFileError(path, "not a regular file")
        data = os.read(fd, 64)
    finally:
        os.close(fd)
    if not _DECIMAL.match(data) or not -1 <= int(data) <= 255:
        raise ExitFileError(path, f"it should hold an exit code, but holds {data!r}")
    finished = datetime.fromtimestamp(status.st_ctime_ns / 1e9, UTC)
    return Exit(int(data), known=int(data) >= 0, finished=finished)


def from_wait_status(status: int) -> int:
    """0..255 as exited, 128+N for signal N."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kernel_exit_code(pidfd: int) -> int | None:
    """How the process of a pidfd ended; None while it has not, or where the kernel cannot say."""
    import fcntl

    buffer = bytearray(64)
    struct.pack_into("=Q", buffer, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", buffer, 0)
    if not mask & _INFO_EXIT:
        return None
    (status,) = struct.unpack_from("=i", buffer, 60)
    return from_wait_status(status)
