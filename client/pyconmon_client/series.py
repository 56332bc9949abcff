"""A log and its rotated files as one series: `log.N`, ..., `log.1`, `log`, oldest first.

`logs.py` relies on `open_series()` opening files of one moment although the monitor renames them
at any time, and on `skip_to_tail()` finding the last lines without reading what is before them.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from .errors import PyconmonError
from .records import MAX_LINE

BLOCK = 1 << 16
# Longer than any record a monitor writes (one read of at most 64 KiB and its prefix), by far.
MAX_RECORD = 1 << 20


def open_series(path: str, after: os.stat_result | None = None) -> list[BinaryIO]:
    """The log and its rotated files, open, oldest first; with `after`, only those newer than it.

    All are of one moment: a rotation while they are opened would show a file twice, or not at all,
    so then it starts again. None of them is no error.
    """
    for _ in range(50):
        opened: list[BinaryIO] = []
        try:
            chosen = _choose(path, after)
            for name, status in chosen:
                opened.append(open(name, "rb", buffering=0))
                if not same_file(os.fstat(opened[-1].fileno()), status):
                    raise FileNotFoundError
            if [_mark(each) for each in _choose(path, after)] == [_mark(each) for each in chosen]:
                return opened
        except FileNotFoundError:
            pass
        except OSError as error:
            _close(opened)
            raise PyconmonError(f"log {error.filename} can't be read: {error.strerror}") from error
        _close(opened)
        time.sleep(0.002)  # the rotation is a few renames; there is no event for its end
    raise PyconmonError(f"log {path} is rotated faster than it can be opened")


def _close(files: list[BinaryIO]) -> None:
    for file in files:
        file.close()


def _mark(named: tuple[str, os.stat_result]) -> tuple[str, int, int]:
    name, status = named
    return name, status.st_dev, status.st_ino


def _choose(path: str, after: os.stat_result | None) -> list[tuple[str, os.stat_result]]:
    """Names and identities of the files that there are, oldest first, or of those after one."""
    directory, base = os.path.split(path)
    pattern = re.compile(re.escape(base) + r"\.([1-9]\d{0,5})", re.ASCII)
    names = os.listdir(directory) if os.path.isdir(directory) else []
    rotated = sorted(
        (match for name in names if (match := pattern.fullmatch(name))),
        key=lambda match: -int(match[1]),
    )
    files = [(name, os.stat(name)) for name in (f"{directory}/{match[0]}" for match in rotated)]
    if os.path.exists(path):
        files.append((path, os.stat(path)))
    if after is None:
        return files
    for position, (_, status) in enumerate(files):
        if same_file(status, after):
            return files[position + 1 :]
    # It is gone: begun anew without a copy, or rotated out while we were behind. Numbered files
    # that were last written before it ended are from before it.
    return [
        (name, status)
        for name, status in files
        if name == path or status.st_mtime_ns > after.st_mtime_ns
    ]


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def has_more(file: BinaryIO) -> bool:
    """Whether something was written since it was last read."""
    return os.fstat(file.fileno()).st_size > file.tell()


def is_removed(file: BinaryIO) -> bool:
    """Whether it has no name any more, so that nobody can ever open it again."""
    return os.fstat(file.fileno()).st_nlink == 0


def skip_to_tail(files: deque[BinaryIO], count: int, streams: set[bytes]) -> None:
    """Closes and seeks so that reading starts soon before the last `count` lines, without reading
    what is older.

    It may start too early, never too late; but pieces of one line that lie further apart than a
    line's limit, in the middle of other lines, are not looked for.
    """
    left = count + 1
    beyond = 0
    for index in range(len(files) - 1, -1, -1):
        for offset, record in _backwards(files[index]):
            parts = record.split(b" ", 3)
            if left > 0:
                if len(parts) > 2 and parts[1] in streams and parts[2] == b"F":
                    left -= 1
            else:
                beyond += len(record)
                if beyond > MAX_LINE:
                    files[index].seek(offset)
                    for _ in range(index):
                        files.popleft().close()
                    return
    for file in files:
        file.seek(0)


def _backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, record) of a file, from its end; a last piece without LF counts as one."""
    end = file.seek(0, os.SEEK_END)
    held = b""
    while end > 0:
        start = max(0, end - BLOCK)
        block = os.pread(file.fileno(), end - start, start) + held
        first, *records = block.split(b"\n")
        offset = start + len(block)
        for record in reversed(records):
            offset -= len(record)
            if record:
                yield offset, record
            offset -= 1
        held = first
        end = start
        if len(held) > MAX_RECORD:
            return  # not a log; reading it from the start says so
    if held:
        yield 0, held
