"""The lines of a log on the event loop: logs.LogReader's asyncio form.

The same lines in the same order, over rotations and to the container's end, with `async for`. Files
are read as they are needed; only the waiting for more is the loop's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .. import inotify
from ..closing import AsyncClosing
from ..errors import LogFormatError
from ..logs import _CAUGHT_UP
from ..logs import LogReader as BlockingReader
from ..records import Line
from ..series import BLOCK, MAX_RECORD, has_more, is_removed, skip_to_tail
from .watch import readable


class _Reader(BlockingReader):
    """A LogReader whose generator says `_CAUGHT_UP` instead of waiting."""

    def _stamped(self, line: Line) -> Line:
        return line if line is _CAUGHT_UP else super()._stamped(line)

    def _last(self, lines: Iterator[Line]) -> Iterator[Line]:
        if self._tail is not None:
            held: deque[Line] = deque(maxlen=self._tail)
            for line in lines:
                if line is _CAUGHT_UP:
                    break
                held.append(line)
            yield from held
            if self._follow:
                yield _CAUGHT_UP
        yield from lines

    def _records(self) -> Iterator[tuple[bytes, bool] | None]:
        if self._tail is not None and self._since is None and self._tail < 100_000:
            skip_to_tail(self._files, self._tail, {name.encode() for name in self._streams})
        rest = b""
        while not self._closed:
            if self._files:
                file = self._files[0]
                if data := file.read(BLOCK):
                    *records, rest = (rest + data).split(b"\n")
                    for record in records:
                        yield record, True
                    if len(rest) > MAX_RECORD:
                        raise LogFormatError(
                            f"log {self.path}: a record of over {MAX_RECORD} bytes"
                        )
                    continue
                if self._follow and len(self._files) == 1:
                    self._files.extend(self._successors(file))
                if len(self._files) > 1 or (self._follow and is_removed(file)):
                    if not has_more(file):
                        if rest:
                            yield rest, False
                            rest = b""
                        self._files.popleft().close()
                    continue
            if not self._follow:
                break
            yield None
        if rest and not self._closed:
            yield rest, False

    async def idle(self) -> None:
        """Until there may be more to read, as the blocking one's `_wait`."""
        assert self._watcher is not None
        if self._ended():
            # Everything is in the log before the exit file appears: one last look.
            self._follow = False
            self._open()
            return
        fds = [self._watcher.fileno(), self._wake]
        if self._pidfd is not None:
            fds.append(self._pidfd)
        names = {os.path.basename(self.path), os.path.basename(os.path.realpath(self.path)), ""}
        if self._exit_file is not None:
            names.add(os.path.basename(self._exit_file))
        while not self._closed:
            if self._pidfd in await readable(fds) or self._closed:
                return
            events = self._watcher.read()
            if any(event.mask & inotify.DELETE_SELF for event in events):
                self._follow = False
            if any(event.overflow or event.name in names for event in events):
                self._open()
                return


class LogReader(AsyncClosing):
    """An async iterator over the lines of a log; the arguments are those of logs.logs().

    Close it with `close()`, best by `async with`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._reader = _Reader(path, **options)

    @property
    def path(self) -> str:
        return self._reader.path

    def __aiter__(self) -> AsyncIterator[Line]:
        return self

    async def __anext__(self) -> Line:
        for line in self._reader:
            if line is not _CAUGHT_UP:
                return line
            await self._reader.idle()
        raise StopAsyncIteration

    def close(self) -> None:
        """Give the files back. May be called twice."""
        self._reader.close()
