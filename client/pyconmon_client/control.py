"""Messages to a container's monitor through the `ctl` FIFO in its bundle: window size, reopen the
logs.

Callers rely on both returning within a second whatever state the monitor is in: a dead one leaves
its FIFO behind, where an ordinary open would wait for ever, and a stopped one reads nothing.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from .deadline import Deadline
from .errors import AttachError, InvalidArgumentError, NotRunningError

_LIMIT = 0.5  # seconds, so that a call is over within one

# Monitors take 0 to 1000; 0 means that the program can't know.
LARGEST = 1000


def resize(bundle: str | os.PathLike[str], rows: int, columns: int) -> None:
    """Gives the container's (or the exec's) terminal this size. Without a terminal nothing happens.

    bundle: the directory that the monitor was started with. Raises InvalidArgumentError for sizes
    outside 0 to 1000, NotRunningError if no monitor reads, AttachError if it doesn't within a
    second.
    """
    send(bundle, resize_message(rows, columns))


def reopen_logs(bundle: str | os.PathLike[str]) -> None:
    """Makes the monitor open its log file anew, after it was moved away. Errors are those of
    `resize`.

    The monitor gives no answer; the new file at the log's path is the sign.
    """
    send(bundle, b"2 0 0\n")


def resize_message(rows: int, columns: int) -> bytes:
    """The line that stands for a window of that size."""
    for what, value in (("rows", rows), ("columns", columns)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise InvalidArgumentError(
                f"{what}: {value!r}; give a whole number from 0 to {LARGEST}"
            )
    return b"1 %d %d\n" % (rows, columns)


def open_control(bundle: str | os.PathLike[str]) -> int:
    """The FIFO's write end, non-blocking; the caller closes it. NotRunningError if no monitor reads
    it.
    """
    path = os.path.join(os.fspath(bundle), "ctl")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTDIR):
            raise NotRunningError(
                f"could not reach the monitor by {path}: nobody reads it"
            ) from None
        raise AttachError(f"could not reach the monitor by {path}: {error.strerror}") from error
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise AttachError(f"could not reach the monitor by {path}: it is not a FIFO")


def send(bundle: str | os.PathLike[str], message: bytes) -> None:
    """Writes one line to the monitor's `ctl`; whole or not at all."""
    name = os.fspath(bundle)
    fd = open_control(name)
    deadline = Deadline(_LIMIT)
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    try:
        while not write(fd, message, name):
            if deadline.passed():
                raise not_read(message, name)
            poller.poll(deadline.milliseconds())
    finally:
        os.close(fd)


def write(fd: int, message: bytes, bundle: str) -> bool:
    """False if there is no room now. NotRunningError if nobody reads any more."""
    try:
        os.write(fd, message)
    except BlockingIOError:
        return False
    except BrokenPipeError:
        raise NotRunningError(
            f"could not send {message!r} to the monitor of {bundle}: it is gone"
        ) from None
    return True


def not_read(message: bytes, bundle: str) -> AttachError:
    return AttachError(f"could not send {message!r} to the monitor of {bundle}: it doesn't read")
