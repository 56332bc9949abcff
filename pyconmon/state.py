"""Reading a dead monitor's state: locked, trusted, checked.

Outsiders rely on: who holds what `take` gives is the only one who may watch the container; a state that
another user could have planted or changed is refused (it holds commands that we would run), and so is one
of another version. What to do with a state is recovery.py's matter.
"""

from __future__ import annotations

import json  # these commands are run rarely, and nobody waits 5 ms for it
import os
import select

from pyconmon import fds, linux
from pyconmon.journal import Journal
from pyconmon.survival import JOURNAL_FILE, STATE_FILE, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST_STATE = 16 * 1024 * 1024  # argv and environment may have some megabytes
PHASES = ("running", "ended", "reported")
FIELDS = {
    "argv": list,
    "cwd": str,
    "environment": list,
    "container_pid": int,
    "container_start": int,
    "monitor_pid": int,
    "monitor_start": int,
    "pipes": dict,
    "begun": (int, float),
}


class NothingOwed(Exception):
    """The state is of a container whose reports have all been made."""


def take(directory: str) -> tuple[dict[str, Any], Journal]:
    """Lock and read the state of the container that is kept in `directory`.

    Raises OSError, FileNotFoundError if there is none (any more), BlockingIOError if its monitor lives
    or another recovery is at work, NothingOwed, ValueError for one that is not to be used.
    """
    path = os.path.join(directory, JOURNAL_FILE)
    try:
        journal = Journal(path, create=False)
    except FileNotFoundError:
        state = _read(directory)
        if _lives(state["monitor_pid"], state["monitor_start"]):
            raise BlockingIOError("the journal is gone, but the monitor lives") from None
        journal = Journal(path, create=True)
    try:
        state = _read(directory)
        fds.remove_temporaries(os.path.join(directory, STATE_FILE))
    except BaseException:
        journal.close(remove=False)
        raise
    return state, journal


def _lives(pid: int, start: int) -> bool:
    """Say whether this very process has not ended; a zombie has."""
    pidfd = linux.pidfd_open(pid)
    if pidfd < 0:
        return False
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return linux.start_time(pid) == start and not poller.poll(0)
    finally:
        os.close(pidfd)


def _read(directory: str) -> dict[str, Any]:
    fd = os.open(
        os.path.join(directory, STATE_FILE),
        os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
    )
    try:
        status = os.fstat(fd)
        if status.st_mode & 0o170000 != 0o100000:
            raise ValueError(f"{STATE_FILE} is no file")
        if not _trusted(status) or not _trusted(os.stat(directory)):
            raise ValueError(f"another user could have written {STATE_FILE}")
        with open(fd, "rb", closefd=False) as file:
            text = file.read(LONGEST_STATE)
    finally:
        os.close(fd)
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{STATE_FILE} is no JSON: {error}") from None
    return _checked(state)


def _trusted(status: os.stat_result) -> bool:
    """Nobody but root and ourselves could have written there."""
    shared = status.st_mode & 0o002 or (
        status.st_mode & 0o020 and status.st_gid not in (0, os.getegid())
    )
    return status.st_uid in (0, os.geteuid()) and not shared


def _checked(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ValueError(f"{STATE_FILE} is not of version {VERSION}")
    if state.get("phase") == "lost":
        raise NothingOwed
    if state.get("phase") not in PHASES:
        raise ValueError(f"{STATE_FILE} has no usable 'phase'")
    for key, kind in FIELDS.items():
        if not isinstance(state.get(key), kind) or isinstance(state[key], bool):  # type: ignore[arg-type]
            raise ValueError(f"{STATE_FILE} has no usable {key!r}")
    if not all(isinstance(word, str) for key in ("argv", "environment") for word in state[key]):
        raise ValueError(f"{STATE_FILE} has words that are no text")
    for stream, inode in state["pipes"].items():
        if stream not in ("0", "1", "2") or not isinstance(inode, int):
            raise ValueError(f"{STATE_FILE} has no usable 'pipes'")
    if not all(0 < state[key] < 1 << 31 for key in ("container_pid", "monitor_pid")):  # pid_t
        raise ValueError(f"{STATE_FILE} names no process")
    if state.get("boot", "") not in ("", linux.boot_id()):
        # They have gone, whoever has their pids now.
        state["container_start"] = state["monitor_start"] = -1
    return state
