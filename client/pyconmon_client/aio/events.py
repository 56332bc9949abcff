"""Containers that end, on the event loop: events.ExitEvents' asyncio form."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from .. import events as blocking
from ..errors import WaitTimeout
from ..events import ExitEvent
from .watch import Waits, deadline_in, seconds_left


class ExitEvents(Waits):
    """An async iterator that gives an `ExitEvent` for every container that ends; it never ends by
    itself. Close it, best by `async with`.
    """

    def __init__(self, events: blocking.ExitEvents) -> None:
        super().__init__()
        self._events = events
        self._closed = False
        self._found: deque[ExitEvent] = deque()

    async def wait(self, timeout: float | None = None) -> ExitEvent | None:
        """The next one; None after `close()`. WaitTimeout if there is none within `timeout` seconds."""
        deadline = deadline_in(timeout)
        while not self._closed:
            self._found.extend(self._events.take())
            if self._found:
                return self._found.popleft()
            ready = await self._ready([self._events.fileno()], seconds_left(deadline))
            if not ready and not self._closed:
                directory = self._events.directory
                raise WaitTimeout(f"no container ended in {directory} within {timeout} s")
        return None

    def __aiter__(self) -> AsyncIterator[ExitEvent]:
        return self

    async def __anext__(self) -> ExitEvent:
        event = await self.wait()
        if event is None:
            raise StopAsyncIteration
        return event

    def close(self) -> None:
        """End the iteration, also one that waits in another task. May be called twice."""
        self._closed = True
        self._stop_waiting()
        self._events.close()
