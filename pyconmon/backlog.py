"""What attached clients have not taken yet: each packet once, however many wait for it.

Part of the attach room. Packets are numbered without gaps from 0; a client remembers the number of
the next one that it wants. Nothing is kept while every client keeps up. How far a client may fall
behind is decided in attach.py.
"""

from __future__ import annotations

LONGEST_PACKET_DATA = 8192  # C conmon's read size: clients have buffers of 8193 bytes
# Where a read has to be cut anyway: the kernel needs 448 bytes of its own beside a packet, and has half
# the work, and half the memory, with one that fits into two pages with them.
CHEAPEST_PACKET_DATA = 7744


def cut(data: memoryview) -> list[memoryview]:
    """Cut one read of the container into pieces that fit a packet. No data gives no piece."""
    size = len(data)
    if size <= LONGEST_PACKET_DATA:
        return [data] if size else []
    return [data[at : at + CHEAPEST_PACKET_DATA] for at in range(0, size, CHEAPEST_PACKET_DATA)]


class Backlog:
    """The packets from the slowest client's next one up to `end`, the coming one's number."""

    __slots__ = ("_first", "_packets", "end")

    def __init__(self) -> None:
        self._packets: dict[int, bytes] = {}
        self._first = 0
        self.end = 0

    def __len__(self) -> int:
        return len(self._packets)

    def extend(self, head: bytes, pieces: list[memoryview], skip: int) -> None:
        """Number the packets of `pieces`, and keep a copy of all but the first `skip` of them.

        `skip` may be above 0 only while nothing is kept.
        """
        if not self._packets:
            self._first = self.end + skip
        for number, piece in enumerate(pieces[skip:], self.end + skip):
            self._packets[number] = b"".join((head, piece))
        self.end += len(pieces)

    def packet(self, number: int) -> bytes:
        """The packet of that number: its stream byte and its data."""
        return self._packets[number]

    def forget_before(self, number: int) -> None:
        """Nobody wants the packets before `number` any more."""
        if number >= self.end:
            self._packets.clear()
            return
        while self._packets and self._first < number:
            self._packets.pop(self._first, None)
            self._first += 1
