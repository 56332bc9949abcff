"""Containers that end, on the event loop: events.ExitEvents' asyncio form."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from .. import events as blocking
from ..closing import AsyncClosing
from ..errors import WaitTimeout
from ..events import ExitEvent
from .watch import deadline_in, readable, seconds_left


class ExitEvents(AsyncClosing):
    """An async iterator that gives an `ExitEvent` for every container that ends; it never ends by
    itself. Close it, best by `async with`.
    """

    def __init__(self, events: blocking.ExitEvents) -> None:
        self._events = events
        self._ready: deque[ExitEvent] = deque()

    async def wait(self, timeout: float | None = None) -> ExitEvent:
        """The next one; WaitTimeout if there is none within `timeout` seconds."""
        deadline = deadline_in(timeout)
        while True:
            self._ready.extend(self._events.take())
            if self._ready:
                return self._ready.popleft()
            if not await readable([self._events.fileno()], seconds_left(deadline)):
                directory = self._events.directory
                raise WaitTimeout(f"no container ended in {directory} within {timeout} s")

    def __aiter__(self) -> AsyncIterator[ExitEvent]:
        return self

    async def __anext__(self) -> ExitEvent:
        return await self.wait()

    def close(self) -> None:
        """Give the watch back."""
        self._events.__exit__(None, None, None)
