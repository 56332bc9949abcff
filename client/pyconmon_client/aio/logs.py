"""The lines of a log on the event loop: logs.LogReader's asyncio form.

The same lines in the same order, over rotations and to the container's end, with `async for`. Files
are read as they are needed; only the waiting for more is the loop's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator
from typing import Any

from ..logs import CAUGHT_UP
from ..logs import LogReader as BlockingReader
from ..records import Line
from .watch import Waits


class _Reader(BlockingReader):
    """One that says `CAUGHT_UP` instead of waiting."""

    def _run(self) -> Generator[Line, None, None]:
        return self.steps()


class LogReader(Waits):
    """An async iterator over the lines of a log; the arguments are those of logs.LogReader.

    Close it with `close()`, best by `async with`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__()
        self._reader = _Reader(path, **options)

    @property
    def path(self) -> str:
        return self._reader.path

    def __aiter__(self) -> AsyncIterator[Line]:
        return self

    async def __anext__(self) -> Line:
        for line in self._reader:
            if line is not CAUGHT_UP:
                return line
            await self._idle()
        raise StopAsyncIteration

    async def _idle(self) -> None:
        """Until there may be more to read."""
        fds = self._reader.waited_for()
        while fds and not self._reader.has_news(await self._ready(fds, None)):
            pass

    def close(self) -> None:
        """End the iteration, also one that waits in another task. May be called twice."""
        self._stop_waiting()
        self._reader.close()
