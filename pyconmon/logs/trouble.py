"""Says once that a log does not take output, and once that it does again.

A full disk fails every write; a message each would only fill the next disk. So the first failure
is a warning, the rest are counted, and a log that keeps failing and working in turn is not reported
again before QUIET seconds have gone by.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.diag import Diag

QUIET = 60.0


class Trouble:
    """The state of one log: fine, or failing with `lost` bytes of output so far."""

    __slots__ = ("_diag", "_effect", "_name", "_spoken", "bad", "lost")

    def __init__(self, diag: Diag, name: str, effect: str) -> None:
        """Messages read ``<name>: <errno text>; <effect>``."""
        self._diag = diag
        self._effect = effect
        self._name = name
        self._spoken = -QUIET
        self.bad = False
        self.lost = 0

    def failed(self, why: object, lost: int) -> None:
        """Output of `lost` bytes could not be written because of `why` (an exception or a text)."""
        self.lost += lost
        if self.bad:
            return
        self.bad = True
        now = time.monotonic()
        if now - self._spoken >= QUIET:
            self._spoken = now
            text = why.strerror or str(why) if isinstance(why, OSError) else str(why)
            self._diag.warn(f"{self._name}: {text}; {self._effect}")

    def worked(self) -> None:
        """A write went through."""
        if self.bad:
            self.bad = False
            self._diag.info(f"{self._name}: works again; at most {self.lost} bytes were lost")
            self.lost = 0
