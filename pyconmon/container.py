"""The container's first process (or the exec'ed command): found by pid, watched to its end.

Outsiders rely on: the end is told once; a status that nobody can know is told as -1, never as 0; a signal
reaches this very process or nobody. What the end leads to is monitor.py's matter.
"""

from __future__ import annotations

import _signal

from pyconmon import fds, linux
from pyconmon.loop import READABLE
from pyconmon.reaper import UNKNOWN, exit_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.loop import Loop
    from pyconmon.reaper import Reaper

ROUNDS_FOR_STATUS = 100
ROUND = 0.05  # seconds; in 5 s the parent of a process that is not our child should have reaped it


class ContainerProcess:
    """One process. Owns its pidfd (-1: it was gone before we could open one)."""

    def __init__(
        self, loop: Loop, reaper: Reaper, pid: int, on_end: Callable[[int], None], pidfd: int = -1
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._loop = loop
        self._reaper = reaper
        self._on_end: Callable[[int], None] | None = on_end
        self._patience = ROUNDS_FOR_STATUS

    def watch(self) -> None:
        """Call `on_end(exit code)` when it has ended; at once if it has already."""
        ours = self._reaper.is_child(self.pid)
        if self.pidfd < 0:
            self.pidfd = linux.pidfd_open(self.pid)
        self._reaper.watch(self.pid, lambda status: self._end(exit_status(status)))
        self._reaper.all_known()
        if self._on_end is None:
            return
        if ours:
            if self.pidfd >= 0:  # besides SIGCHLD, so that one which got lost costs nothing
                self._loop.watch(self.pidfd, READABLE, lambda revents: self._own_ended())
            return
        # Somebody else's child (an odd runtime, or our predecessor's): the pidfd tells when it ends.
        if self.pidfd < 0:
            self._end(UNKNOWN)
        else:
            self._loop.watch(self.pidfd, READABLE, lambda revents: self._foreign_ended())

    def _own_ended(self) -> None:
        self._loop.forget(self.pidfd)
        self._reaper.reap()

    def _foreign_ended(self) -> None:
        """The kernel tells the status of another's child while it is a zombie, or once it is reaped."""
        if self._on_end is None:
            return
        status = self.status_of_dead()
        if status is None and self._patience > 0:
            self._patience -= 1
            self._loop.modify(self.pidfd, 0)
            self._loop.call_after(ROUND, self._foreign_ended)
        else:
            self._end(UNKNOWN if status is None else exit_status(status))

    def status_of_dead(self) -> int | None:
        """The wait status if it has ended and the kernel tells; None otherwise."""
        if self.pidfd < 0:
            return None
        status = linux.pidfd_exit_status(self.pidfd)
        return linux.zombie_status(self.pid) if status is None else status

    def _end(self, code: int) -> None:
        callback, self._on_end = self._on_end, None
        self._loop.forget(self.pidfd)
        if callback is not None:
            callback(code)

    def send_signal(self, number: int) -> None:
        """Send a signal; to a process that is gone it goes nowhere."""
        try:
            if self.pidfd >= 0:
                _signal.pidfd_send_signal(self.pidfd, number)
        except OSError:
            pass

    def close(self) -> None:
        self._on_end = None
        self._loop.forget(self.pidfd)
        self.pidfd = fds.close(self.pidfd)
