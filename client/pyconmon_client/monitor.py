"""Is that process still the same one? A process's identity is its pid together with its start time.

Pids are reused; a pid with the start time (clock ticks since boot, from /proc/PID/stat) is not.
Outsiders rely on `ProcessId` for monitors and for containers' first processes. Waiting is done on
pidfds, which `open()` hands out only for the very same process.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from itertools import pairwise

from .deadline import readable
from .errors import PyconmonError


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: pid and start time in clock ticks since boot."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None if there is none."""
        fields = stat_fields(pid)
        return cls(pid, int(fields[19])) if fields else None

    def alive(self) -> bool:
        """Still there, and not a zombie that only waits for its parent."""
        fields = stat_fields(self.pid)
        return bool(fields) and int(fields[19]) == self.start_time and fields[0] not in b"ZX"

    def open(self) -> int | None:
        """A pidfd (close it) for this very process, or None once it has ended.

        PyconmonError if it can't be told: out of descriptors is not the process's end.
        """
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        except OSError as error:
            raise PyconmonError(f"could not watch process {self.pid}: {error.strerror}") from error
        try:
            # Looked at after opening: from here on the pidfd cannot come to mean another process.
            same = self.alive()
        except BaseException:
            os.close(pidfd)
            raise
        if same:
            return pidfd
        os.close(pidfd)
        return None

    def wait(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        pidfd = self.open()
        if pidfd is None:
            return True
        try:
            return readable(pidfd, seconds)
        finally:
            os.close(pidfd)

    def send_signal(self, number: int) -> bool:
        """Signal this very process; False if it has ended."""
        pidfd = self.open()
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True


def stat_fields(pid: int) -> list[bytes]:
    """/proc/PID/stat from the state on ([0] state, [1] ppid, [3] session, [19] start); [] if gone.

    PyconmonError if there is no descriptor or memory to look with.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise PyconmonError(f"could not look at process {pid}: {error.strerror}") from error
        return []
    # The command name is in parentheses and may contain anything.
    return data[data.rindex(b")") + 2 :].split()


def parent_monitor(init: ProcessId, name: str) -> ProcessId | None:
    """The monitor of a container of which only the first process is known.

    A monitor is child subreaper, so it is the parent of the container's first process once the
    runtime has gone. Its command line must name the container; otherwise some other process
    adopted an orphan, and None is returned.
    """
    fields = stat_fields(init.pid)
    if not fields or int(fields[1]) <= 1:
        return None
    parent = ProcessId.of(int(fields[1]))
    if parent is None:
        return None
    try:
        with open(f"/proc/{parent.pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return None
    wanted = os.fsencode(name)
    if any(option in (b"-c", b"--cid") and value == wanted for option, value in pairwise(words)):
        return parent
    return None
