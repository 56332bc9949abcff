"""A point in time up to which a caller is willing to wait."""

from __future__ import annotations

import math
import time


class Deadline:
    """`seconds` from now on the monotonic clock; None never comes."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + max(0.0, seconds)

    def left(self) -> float | None:
        """Seconds that are left, 0.0 once it has passed; None if it never comes."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def milliseconds(self) -> int | None:
        """The same for poll(): rounded up, so that a wait does not end just before its time."""
        left = self.left()
        return None if left is None else math.ceil(left * 1000)

    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.left() == 0.0
