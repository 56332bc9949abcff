"""Opening a dead monitor's log again.

While nobody watches, whoever can write to the log's directory can put something else in its place: a link
to a file of his choice, another name of one, a fifo. Outsiders rely on: what is opened is the file that the
dead monitor wrote to, or a new one, or one that only our own user can have put there (others may rotate a log
at any time). It is reached through a symlink only if that very link was there when the container began.

What is in the way of a log that was a file is replaced. A log that was something else, and what a link of
the caller's leads to, is better not logged to than replaced: that could be a part of the machine.
"""

from __future__ import annotations

import errno
import os

from pyconmon.logs import rotation
from pyconmon.logs.opening import MODE, as_link, link_at, open_log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.diag import Diag
    from pyconmon.journal import KnownLog
    from pyconmon.logs.opening import Link, Opened

KIND, REGULAR, FIFO, DEVICE = 0o170000, 0o100000, 0o010000, 0o020000


def opener(known: KnownLog | None, diag: Diag) -> Callable[[str], Opened | None]:
    """What `open_logs` is to open a file with; `known` is what the journal has of it.

    It gives None, and an error message, for a log that cannot be opened: the exit code is worth more.
    """

    def reopen(path: str) -> Opened | None:
        try:
            return _reopen(path, known, diag)
        except OSError as error:
            diag.error(f"Failed to open log file {path}: {error.strerror}")
            return None

    return reopen


def _reopen(path: str, known: KnownLog | None, diag: Diag) -> Opened:
    link = link_at(path)
    if link is not None and known is not None and link == known[0]:
        fd = _open_through(path, link, known)
    else:
        link = None
        fd = _open(path, known)
        if fd < 0:
            diag.warn(f"{path} is not the log any more: it is replaced by a new file")
            fd = rotation.put_fresh(path, lambda fd: None)
    gone = 0
    if known is not None and not known[2] and not _is_same(os.fstat(fd), known):
        gone = known[1][1]  # and not by a rotation of the dead monitor's
    return fd, link, gone


def _open(path: str, known: KnownLog | None, replaceable: bool = True) -> int:
    """Open or create the log without following a link; -1: something is there that is to be replaced."""
    try:
        present = os.lstat(path)
    except FileNotFoundError:
        return os.open(path, rotation.CREATE, MODE)
    if _is_log(present, known):
        fd = open_log(path, os.O_NOFOLLOW)
        if _is_log(os.fstat(fd), known):
            return fd
        os.close(fd)
    was_file = rotation.is_regular(present) if known is None else known[1][2] == REGULAR
    if not replaceable or not was_file:
        raise OSError(errno.EPERM, "it is not what it was", path)
    return -1


def _open_through(path: str, link: Link, known: KnownLog) -> int:
    """Open or create what this link leads to."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if as_link(os.fstat(fd)) != link:  # replaced since we looked
            raise OSError(errno.EPERM, "it is not what it was", path)
        target = os.path.join(os.path.dirname(path), os.readlink("", dir_fd=fd))
    finally:
        os.close(fd)
    try:
        if _is_same(os.stat(target), known):  # over further links, too
            fd = open_log(target, 0)
            if _is_same(os.fstat(fd), known):
                return fd
            os.close(fd)
    except FileNotFoundError:
        pass
    return _open(target, known, replaceable=False)


def _is_same(status: os.stat_result, known: KnownLog) -> bool:
    """The file that the dead monitor wrote to.

    Its number alone does not tell: as soon as a file is gone the next one gets that. But strangers can
    neither make files of another owner, nor give them this name without there being one more.
    """
    _, (device, inode, kind, owner, names), following = known
    return (
        status.st_dev == device
        and status.st_ino in (inode, following)
        and status.st_mode & KIND == kind
        and status.st_uid == owner
        and status.st_nlink <= names
    )


def _is_log(status: os.stat_result, known: KnownLog | None) -> bool:
    """It is the log, or one that somebody with our own rights has put there instead."""
    kind = status.st_mode & KIND
    if known is None:
        likely = kind in (REGULAR, DEVICE)
    elif _is_same(status, known):
        return True
    else:
        likely = kind in (REGULAR, FIFO) and kind == known[1][2]
    return likely and rotation.is_ours(status)
