"""The text of a k8s-file log: bytes of one read in, records out. Pure: no descriptor, no clock.

A record is ``<time> <stream> <tag> <data>\\n``: a time of 35 bytes with nine digits and a numeric
offset, ``stdout`` or ``stderr``, then ``F`` for a full line (or the last piece of one) or ``P`` for
a piece that did not end in a newline. Podman, CRI-O and the kubelet parse it by its blanks, so the
blank after the tag is there even when the data is empty. Data is copied byte for byte. No record
carries more than RECORD_MAX bytes of it, however much was read at once; so a reader can rely on
that, and the monitor's memory does not follow the length of a line.

Out of scope: size limits (limits.py) and the file itself (k8s_file.py).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD_MAX = 8192  # data bytes of a record; the newline of a full line counts
HEAD = 45  # bytes in front of a record's data
LF = b"\n"

# Whole lines are formatted this many bytes at a time. Text can be 46 times as long as its data
# (empty lines): small pieces stay in the processor's cache and below malloc's mmap threshold.
RUN = 32768
MOST_PARTIAL = 32  # records of one line in a run: two buffers each


class Stamp:
    """Turns times into record heads. Keeps the text of the current second, as most calls share it."""

    __slots__ = ("_clock", "_second", "_tails")

    def __init__(self) -> None:
        self._second = -1
        self._clock = b""
        self._tails = (b"", b"", b"")
        self._turn(0)

    def _turn(self, second: int) -> None:
        # localtime() follows TZ and, a second at a time, daylight saving. A clock that jumps,
        # either way, is just another second.
        local = time.localtime(second)
        offset = abs(local.tm_gmtoff) // 60  # seconds of an odd offset are dropped
        zone = b"%c%02d:%02d" % (b"-" if local.tm_gmtoff < 0 else b"+", offset // 60, offset % 60)
        self._second = second
        self._clock = b"%04d-%02d-%02dT%02d:%02d:%02d." % local[:6]
        self._tails = (b"", zone + b" stdout F ", zone + b" stderr F ")

    def head(self, stream: int, nanoseconds: int) -> bytes:
        """The HEAD bytes before the data of a full record; stream 1 is stdout, 2 is stderr."""
        second, fraction = divmod(nanoseconds, 1_000_000_000)
        if second != self._second:
            self._turn(second)
        return b"%b%09d%b" % (self._clock, fraction, self._tails[stream])


def whole_lines(block: bytes, start: int, stop: int) -> int:
    """The end of the full lines, none longer than RECORD_MAX, that begin at `start`.

    Hops from newline to newline, each as far away as a record may reach, so it looks at a few
    places only, however short the lines are.
    """
    while start < stop:
        end = block.rfind(LF, start, min(start + RECORD_MAX, stop)) + 1
        if not end:
            break
        start = end
    return start


def runs(block: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut block[start:stop] at record boundaries into (start, stop, partial).

    A run is whole lines, each an F record (`partial` 0), or so many P records: pieces of one line,
    all of RECORD_MAX bytes but perhaps the last. Cutting again from any record's boundary gives the
    same records: recovery depends on that.
    """
    while start < stop:
        end = whole_lines(block, start, min(start + RUN, stop))
        if end > start:
            yield start, end, 0
        else:
            # Not the run's limit but the line is what ended: RUN is longer than any record.
            limit = min(start + MOST_PARTIAL * RECORD_MAX, stop)
            newline = block.find(LF, start + RECORD_MAX, limit)
            end = limit if newline < 0 else start + (newline - start) // RECORD_MAX * RECORD_MAX
            yield start, end, -(-(end - start) // RECORD_MAX)
        start = end


def first_record(block: bytes, start: int, stop: int) -> int:
    """The end of the record that begins at `start`."""
    limit = min(start + RECORD_MAX, stop)
    return block.find(LF, start, limit) + 1 or limit


def text_size(block: bytes, start: int, stop: int) -> int:
    """Length of the text that block[start:stop] becomes, in bytes."""
    size = 0
    for begin, end, partial in runs(block, start, stop):
        size += end - begin
        size += (HEAD + 1) * partial if partial else HEAD * block.count(LF, begin, end)
    return size


def add_run(
    buffers: list[bytes | memoryview],
    head: bytes,
    block: bytes,
    start: int,
    stop: int,
    partial: int,
) -> int:
    """Append the text of one run to `buffers`; returns its length in bytes."""
    if not partial:
        # One replace() puts a head behind every newline; the one behind the last is left out.
        text = block[start:stop].replace(LF, LF + head)
        buffers += (head, memoryview(text)[:-HEAD])
        return len(text)
    view = memoryview(block)[:stop]
    before = head = head[:-2] + b"P "
    for at in range(start, stop, RECORD_MAX):
        buffers += (before, view[at : at + RECORD_MAX])
        before = LF + head
    buffers.append(LF)
    return stop - start + (HEAD + 1) * partial
