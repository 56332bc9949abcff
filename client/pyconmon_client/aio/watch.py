"""Waiting for descriptors on the running event loop, and cleaning up in spite of cancellation.

The rest of this package relies on `Watch`, which has the words of select.poll and waits on the loop,
on `readable()`, and on `see_through()`. No threads, no polling. A descriptor may be waited for by
one task at a time.
"""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from ..closing import AsyncClosing, Closing

T = TypeVar("T")


class Watch(Closing):
    """Descriptors that are watched on the running loop; `close()` gives them back to it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The loop only wakes: what it has seen may have been read by now. This one tells.
        self._poller = select.poll()
        self._events: dict[int, int] = {}
        self._closed = False
        self._waiting: asyncio.Future[None] | None = None

    def register(self, fd: int, events: int = select.POLLIN) -> None:
        """Watch a descriptor for reading (POLLIN), writing (POLLOUT), or both."""
        self.unregister(fd)
        self._events[fd] = events
        self._poller.register(fd, events)
        if events & select.POLLIN:
            self._loop.add_reader(fd, self._wake)
        if events & select.POLLOUT:
            self._loop.add_writer(fd, self._wake)

    def unregister(self, fd: int) -> None:
        """Before the descriptor is closed. One that is not watched is fine."""
        events = self._events.pop(fd, 0)
        if events:
            self._poller.unregister(fd)
        if events & select.POLLIN:
            self._loop.remove_reader(fd)
        if events & select.POLLOUT:
            self._loop.remove_writer(fd)

    def has(self, fd: int, events: int) -> bool:
        """Whether it watches a descriptor for one of these events."""
        return bool(self._events.get(fd, 0) & events)

    async def poll(self, seconds: float | None = None) -> list[tuple[int, int]]:
        """Descriptors with their events, as poll() has it; none after so many seconds, or closed."""
        # Other tasks get their turn, however much there is to read here.
        await asyncio.sleep(0)
        deadline = deadline_in(seconds)
        while not (found := self._poller.poll(0)) and seconds_left(deadline) != 0.0:
            if self._closed:
                break
            self._waiting = self._loop.create_future()
            timer = None
            if deadline is not None:
                timer = self._loop.call_at(deadline, self._wake)
            try:
                await self._waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        return found

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Before the descriptors are closed. Who waits goes on, without any."""
        self._closed = True
        for fd in tuple(self._events):
            self.unregister(fd)
        self._wake()


class Waits(AsyncClosing):
    """What waits for descriptors of its own: one task may close it while another one waits."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    async def _ready(
        self, fds: Iterable[int], seconds: float | None, events: int = select.POLLIN
    ) -> list[int]:
        """Which of them are; none after so many seconds, or once it is closed."""
        fds = list(fds)
        if any(watch.has(fd, events) for watch in self._watches for fd in fds):
            # The loop would forget the other one, which would wait for ever.
            raise RuntimeError(f"another task waits already for this {type(self).__name__}")
        with Watch() as watch:
            self._watches.add(watch)
            try:
                for fd in fds:
                    watch.register(fd, events)
                return [fd for fd, _ in await watch.poll(seconds)]
            finally:
                self._watches.discard(watch)

    def _stop_waiting(self) -> None:
        """Before the descriptors are closed: nobody would wake the tasks any more."""
        for watch in self._watches:
            watch.close()


async def readable(fds: Iterable[int], seconds: float | None = None) -> list[int]:
    """Which of them can be read (a pidfd: has ended) first; none after so many seconds."""
    with Watch() as watch:
        for fd in fds:
            watch.register(fd)
        return [fd for fd, _ in await watch.poll(seconds)]


async def writable(fd: int, seconds: float | None = None) -> bool:
    """Whether there is room within so many seconds."""
    with Watch() as watch:
        watch.register(fd, select.POLLOUT)
        return bool(await watch.poll(seconds))


async def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end although the caller is cancelled meanwhile, and be cancelled then.

    For what must not be left half done; it has to be short by itself.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            break  # the task's own
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at: the cancellation is what the caller gets
        raise cancelled
    return task.result()


def seconds_left(deadline: float | None) -> float | None:
    """Until a time of the loop's clock; None never comes."""
    if deadline is None:
        return None
    return max(0.0, deadline - asyncio.get_running_loop().time())


def deadline_in(seconds: float | None) -> float | None:
    """That time, so many seconds from now."""
    if seconds is None or math.isinf(seconds):
        return None
    return asyncio.get_running_loop().time() + max(0.0, seconds)
