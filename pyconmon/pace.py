"""How long to wait before the next read of a stream: pure arithmetic over what the last reads gave.

A read costs about the same whether it brings ten bytes or a hundred thousand. A stream that trickles in
quick succession is therefore read a little later and in larger pieces: never so late that its writer
could fill the pipe, nor that a reader of the log would notice (40 ms; 2 ms while somebody is attached).
A stream that speaks now and then is read at once. Waiting itself is stdio.py's matter.
"""

from __future__ import annotations

WINDOW = 16  # reads between two decisions
SLOW = 0.05  # seconds between reads: nothing to be gained
LONGEST = 0.04
LONGEST_ATTACHED = 0.002
SHORTEST = 0.0005
QUICK = 1 << 20  # bytes/s: such a writer gets a bigger pipe
GAIN = 1.5  # reads must have grown by this much, or the waiting is not worth its own cost


class Pace:
    """The pace of one stream. `capacity` is its pipe's size in bytes, to be kept up to date."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.quick = (
            False  # the writer fills an ordinary pipe in a moment: a bigger one is worth it
        )
        self.pause = 0.0  # seconds to wait after each read, until the next decision
        self._count = 0
        self._bytes = 0
        self._since = 0.0
        self._before = 0  # mean size of the reads when no pause was made

    def after(self, size: int, now: float, attached: bool) -> float:
        """A read at `now` (s, monotonic) brought `size` bytes: give the pause in seconds, 0.0 for none."""
        self._count += 1
        self._bytes += size
        if now - self._since > SLOW * WINDOW:
            self._begin(now)
            self.pause = 0.0
        elif self._count >= WINDOW:
            self._decide(now, attached)
        if attached and self.pause > LONGEST_ATTACHED:
            return LONGEST_ATTACHED
        return self.pause

    def _begin(self, now: float) -> None:
        self._count = self._bytes = 0
        self._since = now

    def _decide(self, now: float, attached: bool) -> None:
        elapsed = max(now - self._since, 1e-6)
        mean = self._bytes // self._count
        self.quick = self._bytes / elapsed > QUICK
        if self.pause > 0.0 and mean < self._before * GAIN:
            self.pause = 0.0
            self._begin(now)
            return
        if self.pause == 0.0:
            self._before = mean
        longest = LONGEST_ATTACHED if attached else LONGEST
        pause = min(longest, self.capacity / 4 * elapsed / self._bytes)
        # Saturated: the pipe fills faster than we can read, so that waiting would hold its writer up.
        if pause < SHORTEST or mean >= self.capacity // 4:
            pause = 0.0
        self.pause = pause
        self._begin(now)
