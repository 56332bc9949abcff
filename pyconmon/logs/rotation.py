"""Opening a log file, and putting a fresh one in its place.

Two ways, as in conmon: `replace` (the old content goes, unless somebody has moved the file away)
and `rotate` (--log-rotate: the old file becomes ``PATH.1``, that one ``PATH.2``, up to ``PATH.N``
with exactly the N of --log-max-files; conmon keeps two for N=1). After either a new file is at the
path at once: CRI-O waits for it. A file that was renamed by somebody else is simply created
again, which is how the kubelet rotates.

The path given to us may be a symlink, names that we make up are never followed: they are created
with O_EXCL after removing what a crash has left there. A log reached through a symlink is emptied
in place and never rotated: a rename would put the file where the link is. A link that somebody puts
there later is not followed but replaced: it could lead anywhere. So is a fifo in the place of a file.

All functions take and return descriptors without closing any, and raise OSError. `announce` is called with
the descriptor of a fresh file before that gets the log's name: should we be killed in between, the next
monitor knows it.
"""

from __future__ import annotations

import errno
import os

from pyconmon.logs.opening import FLAGS, MODE, link_at, open_log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.logs.opening import Link

    Announce = Callable[[int], None]

CREATE = FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def is_regular(status: os.stat_result) -> bool:
    return status.st_mode & 0o170000 == 0o100000


def is_ours(status: os.stat_result) -> bool:
    """Whether nobody else can have put it there, made of a file of his choice: our own, with one name."""
    return status.st_nlink == 1 and status.st_uid in (0, os.geteuid())


def ends_torn(path: str, size: int) -> bool:
    """Whether the file's last record has no newline: a monitor or a machine died while writing it."""
    if not size:
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.pread(fd, 1, size - 1) != b"\n"
    except OSError:
        return False
    finally:
        os.close(fd)


def replace(path: str, fd: int, announce: Announce, linked: Link | None = None) -> int:
    """A fresh file at `path`; `fd` is the present one. Returns the new descriptor.

    `linked`: the path was this link (see `opening.link_at`) from the beginning.
    """
    present = _look(path)
    if present is None:
        return os.open(path, CREATE, MODE)
    link = link_at(path)
    if link is not None and link == linked:
        # What it points to is emptied, or created if it has been moved away.
        return os.open(path, FLAGS | os.O_CREAT | os.O_TRUNC, MODE)
    if link is None and not is_regular(present) and not is_regular(os.fstat(fd)):
        return open_log(path, os.O_CREAT | os.O_NOFOLLOW)
    try:
        return put_fresh(path, announce)
    except OSError:
        # No room or no right to make a file here: the limit still holds if this one is emptied.
        if not os.path.samestat(present, os.fstat(fd)):
            raise
        os.ftruncate(fd, 0)
        return os.dup(fd)


def put_fresh(path: str, announce: Announce) -> int:
    """A new file in the place of whatever is there, but for a directory; its descriptor."""
    new = _create(path + ".tmp")
    try:
        announce(new)
        os.rename(path + ".tmp", path)
    except OSError:
        os.close(new)
        os.unlink(path + ".tmp")
        raise
    return new


def rotate(path: str, fd: int, keep: int, announce: Announce) -> int:
    """Move `path` to ``path.1`` and so on, keeping `keep` old files. Returns the new descriptor.

    If it fails, the present file is still the log and can be written on.
    """
    present = _look(path)
    if present is None:
        return os.open(path, CREATE, MODE)
    if not is_regular(present):
        raise OSError(errno.ELOOP, "only a regular file can be rotated")
    new = _create(path + ".new")
    announce(new)
    try:
        last = 1
        while last < keep and _look(f"{path}.{last}") is not None:
            last += 1
        for number in range(last, 1, -1):
            os.rename(f"{path}.{number - 1}", f"{path}.{number}")
        os.rename(path, path + ".1")
        os.rename(path + ".new", path)
    except OSError:
        os.close(new)
        _remove(path + ".new")
        raise
    return new


def find_inode(path: str, inode: int) -> str | None:
    """The regular file beside `path` with that inode number: where somebody has moved the log to."""
    try:
        with os.scandir(os.path.dirname(path) or ".") as entries:
            for entry in entries:
                if entry.inode() == inode and entry.is_file(follow_symlinks=False):
                    return entry.path
    except OSError:
        pass
    return None


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _create(path: str) -> int:
    try:
        return os.open(path, CREATE, MODE)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, CREATE, MODE)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
