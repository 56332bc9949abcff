"""Who has died: waitpid, early exits kept, wait status to exit status.

Outsiders rely on: a status is never lost, also when a process ends before anybody has asked for it (the
container can be gone before its pid file is read). What a status means to a container is out of scope.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

UNKNOWN = -1  # the exit status of a process of which nobody can say how it ended
MOST_EARLY_EXITS = 4096


def exit_status(wait_status: int) -> int:
    """Turn a wait status into the code that callers expect: 0-255, 128+N for signal N, else -1."""
    if os.WIFEXITED(wait_status):
        return os.WEXITSTATUS(wait_status)
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return UNKNOWN


class Reaper:
    """Collects dead children and tells those who wait for them."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._early: dict[int, int] = {}
        self._keep_early = True

    def watch(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call `callback(wait status)` once `pid` has ended; at once where that has been seen already."""
        if pid in self._early:
            callback(self._early.pop(pid))
        else:
            self._waiting[pid] = callback

    def forget(self, pid: int) -> None:
        """Nobody waits for `pid` any more; an unknown one is fine."""
        self._waiting.pop(pid, None)

    def all_known(self) -> None:
        """Every pid of interest is watched by now: stop keeping the exits of others (adopted orphans)."""
        self._keep_early = False
        self._early.clear()

    def is_child(self, pid: int) -> bool:
        """Say whether `pid` is a child of ours that can still be waited for, or was reaped early."""
        if pid in self._early:
            return True
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, OSError):
            return False
        return True

    def reap(self) -> None:
        """Collect everything that has ended; never blocks."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._waiting.pop(pid, None)
            if callback is not None:
                callback(status)
            elif self._keep_early:
                if len(self._early) >= MOST_EARLY_EXITS:
                    self._early.pop(next(iter(self._early)))
                self._early[pid] = status
