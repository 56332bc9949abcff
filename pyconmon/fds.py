"""Descriptors and the files behind them: writing whole, replacing atomically, pipes from the environment.

Outsiders rely on: a status file appears under its name complete or not at all, and is never written
through a symlink. Who owns a descriptor closes it; nothing here keeps one.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_STATUS = 4096  # bytes of a pid or exit file that are looked at
MOST_TRIES = 100  # to get a name for which others compete
LOST = (errno.EADDRINUSE, errno.EEXIST, errno.ENOENT)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of `data` to a blocking descriptor. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def close(fd: int) -> int:
    """Close `fd` unless it is -1, and give -1, so that an owner can write `self.fd = close(self.fd)`."""
    if fd >= 0:
        try:
            os.close(fd)
        except OSError:
            pass
    return -1


def replace_file(path: str, data: bytes, mode: int = 0o644) -> tuple[int, int]:
    """Put `data` under `path` in one step (temporary file beside it, then rename). Raises OSError.

    Gives device and inode of the new file.

    Readers act on the name's appearance (CRI-O watches the exit directory with inotify, Podman reads as
    soon as the name exists), so the content has to be whole by then. The temporary name is fresh and
    opened O_EXCL: a link planted there is refused, not followed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    temporary = f"{path}.{os.urandom(4).hex()}"
    fd = os.open(temporary, flags, mode)
    try:
        try:
            write_all(fd, data)
            status = os.fstat(fd)
        finally:
            os.close(fd)  # a disk far away (NFS) may tell only now that it is full
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    return status.st_dev, status.st_ino


def compete(take: Callable[[], None]) -> None:
    """Call `take()`, which makes something in place of what has its name, until the name is had.

    Monitors of execs at the same time may share a bundle, and each removes what another one has just
    made. Raises what `take` raises for other reasons, or all the time.
    """
    for left in range(MOST_TRIES, 0, -1):
        try:
            take()
            return
        except OSError as error:
            if error.errno not in LOST or left == 1:
                raise


def remove_temporaries(path: str) -> None:
    """Remove what a `replace_file` of this path left that was killed half-way. Raises OSError."""
    directory, name = os.path.split(path)
    for found in os.listdir(directory or "."):
        tail = found.removeprefix(name + ".")
        if tail != found and len(tail) == 8 and not tail.strip("0123456789abcdef"):
            os.unlink(os.path.join(directory, found))


def read_status(path: str) -> bytes:
    """Read a small status file (pid file, exit file); at most 4096 bytes. Raises OSError."""
    # O_NONBLOCK: a FIFO put in its place must not hold the monitor up.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, LONGEST_STATUS)
    finally:
        os.close(fd)


def from_environment(name: str) -> int:
    """Give the descriptor that the environment variable `name` names, made close-on-exec; -1 if unset.

    An empty value counts as unset (as a number it would be descriptor 0). Raises ValueError for a value
    that is no number or no open descriptor, with a text that says which.
    """
    text = os.environ.get(name, "")
    if not text:
        return -1
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be the number of an open descriptor, not {text!r}")
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
    except (OSError, OverflowError):
        raise ValueError(f"{name} names descriptor {text}, which is not open") from None
    return fd


def describe(error: OSError) -> bytes:
    """Say what went wrong, and with which file, as one text."""
    text = f"{error.strerror or error}"
    if error.filename is not None:
        text = f"{text}: {error.filename}"
    return text.encode("utf-8", "surrogateescape")
