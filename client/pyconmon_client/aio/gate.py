"""How many monitors are being started at the same time; the rest wait for their turn.

Each start is a monitor and a runtime for some tens of milliseconds. Hundreds at once would only take
memory from each other; one after the other they are through as soon. A command that has started
leaves its slot: however many may run.
"""

from __future__ import annotations

import asyncio
import os
from typing import Self
from weakref import WeakKeyDictionary


class Gate:
    """`slots` starts at the same time; default: four for each CPU."""

    def __init__(self, slots: int | None = None) -> None:
        self._slots = slots or 4 * (os.cpu_count() or 1)
        # A program may run one event loop after the other; a semaphore belongs to one of them.
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._semaphores = WeakKeyDictionary()

    def slot(self) -> Slot:
        """An async context manager."""
        loop = asyncio.get_running_loop()
        return Slot(self._semaphores.setdefault(loop, asyncio.Semaphore(self._slots)))


class Slot:
    """One start. `leave()` when it has started; the end of the block does it at the latest."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore
        self._held = False

    async def __aenter__(self) -> Self:
        await self._semaphore.acquire()
        self._held = True
        return self

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._semaphore.release()

    async def __aexit__(self, *_: object) -> None:
        self.leave()
