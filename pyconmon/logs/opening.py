"""Opening a log file: the one step of logging that happens before the runtime is started.

Outsiders rely on: a log that cannot be opened is an error of the caller's command line, so it is opened
while the caller still listens. The driver behind it, which is more to import, comes later (k8s_file.py).
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Link = tuple[
        int, int, int
    ]  # device, inode, ctime in ns: numbers of what is gone are used again
    # (descriptor, the link that leads to it, inode of a dead monitor's log that is not there any more or 0)
    Opened = tuple[int, Link | None, int]

MODE = 0o640
# O_NONBLOCK: a log path may be a fifo, and a monitor must not hang on it. Regular files ignore it.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def open_log(path: str, more: int = os.O_CREAT) -> int:
    """Open (and create) the log for appending. A fifo that nobody reads yet is opened as well."""
    try:
        return os.open(path, FLAGS | more, MODE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    # Being its reader too keeps the fifo open; what is written stays in it until a reader comes.
    return os.open(path, FLAGS & ~os.O_WRONLY | os.O_RDWR | more)


def link_at(path: str) -> Link | None:
    """Which symlink is there; None: there is none. Links are never changed, only replaced."""
    try:
        return as_link(os.lstat(path))
    except OSError:
        return None


def as_link(status: os.stat_result) -> Link | None:
    """The link that this is the state of; None: it is none."""
    if status.st_mode & 0o170000 != 0o120000:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns & 2**64 - 1  # kept as 8 bytes


def open_first(path: str) -> Opened:
    """Open the log as the caller names it, also through a link."""
    link = link_at(path)
    return open_log(path), link, 0
