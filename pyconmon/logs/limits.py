"""Where a log's size limits cut the output: pure arithmetic on the bytes of one read.

``--log-size-max``: a record that would take the file beyond the limit goes to a fresh file
instead. A fresh file takes its first record whatever its size, so that a limit below the length of
a record still logs.
``--log-global-size-max``: a record is dropped, with all that follows for good, once as many
bytes as the limit have been written; so the last record may go beyond it.

No loop over records: a read of a mebibyte can hold a million of them.
"""

from __future__ import annotations

from pyconmon.logs.record import HEAD, LF, RECORD_MAX, first_record, runs, text_size


def fit(block: bytes, start: int, stop: int, room: int) -> int:
    """The end of the most records from `start` on whose text is no longer than `room` bytes."""
    # What begins beyond `room` cannot fit: not looking there keeps tiny limits cheap.
    stop = min(stop, start + max(room, 0) + RECORD_MAX)
    for begin, end, partial in runs(block, start, stop):
        if partial:
            size = end - begin + (HEAD + 1) * partial
            if size > room:
                return begin + max(room, 0) // (HEAD + RECORD_MAX + 1) * RECORD_MAX
        else:
            size = end - begin + HEAD * block.count(LF, begin, end)
            if size > room:
                return _fit_lines(block, begin, end, room)
        room -= size
    return stop


def _fit_lines(block: bytes, low: int, high: int, room: int) -> int:
    """fit() for full lines only, by bisection: lines up to `low` fit, those from `high` do not."""
    high = min(high, low + max(room, 0))
    while low < high:
        end = block.rfind(LF, low, (low + high) // 2) + 1 or block.find(LF, low, high) + 1
        if not end:
            break
        size = end - low + HEAD * block.count(LF, low, end)
        if size > room:
            high = end - 1
        else:
            low = end
            room -= size
    return low


def global_end(block: bytes, start: int, stop: int, room: int) -> int:
    """Where the global limit ends block[start:stop], `room` bytes being left of it."""
    if room <= 0:
        return start
    end = fit(block, start, stop, room)
    if end < stop and text_size(block, start, end) < room:
        end = first_record(block, end, stop)
    return end


def portions(
    block: bytes, start: int, stop: int, size: int, size_max: int, keep: int
) -> list[tuple[int, int, bool]]:
    """Divide block[start:stop] among files: (start, stop, fresh), fresh asking for a new file.

    `size` is that of the present file, `size_max` (> 0) its limit; `keep` the number of old files
    that are kept. What would be written only to be removed in the same go is left out: with a
    limit much below the size of a read, that would be thousands of files that nobody sees.
    """
    result: list[tuple[int, int, bool]] = []
    fresh = False
    while start < stop:
        end = fit(block, start, stop, size_max - size)
        if end == start and size == 0:
            end = first_record(block, start, stop)
        if end > start:
            result.append((start, end, fresh))
            head = 0 if result[0][2] else 1
            if len(result) > head + keep + 1:
                del result[head]
        start = end
        size = 0
        fresh = True
    return result
