"""How long a caller is willing to wait, and waiting for a descriptor so long."""

from __future__ import annotations

import math
import select
import time

# poll() takes milliseconds as a C int: 24 days. Who waits longer looks at the clock again after it.
_LONGEST = 2**31 - 1


class Deadline:
    """`seconds` from now on the monotonic clock; None (or infinity) never comes."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + max(0.0, seconds)

    def left(self) -> float | None:
        """Seconds that are left, 0.0 once it has passed; None if it never comes."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def milliseconds(self) -> int | None:
        """The same for poll(), see `milliseconds()`."""
        return milliseconds(self.left())

    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.left() == 0.0


def milliseconds(seconds: float | None) -> int | None:
    """For poll(): rounded up, so that a wait does not end just before its time; 24 days at most."""
    return None if seconds is None else math.ceil(min(max(0.0, seconds) * 1000, _LONGEST))


def readable(fd: int, seconds: float | None = 0.0) -> bool:
    """Whether a descriptor can be read (a pidfd: its process has ended) within so many seconds."""
    deadline = Deadline(seconds)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while not poller.poll(deadline.milliseconds()):
        if deadline.passed():
            return False
    return True
