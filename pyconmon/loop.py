"""One poll: descriptors, timers, wake-ups.

Outsiders rely on: callbacks run one at a time, on one thread, in the order in which the kernel reports
them; a callback may watch, forget and stop freely. Knows nothing of containers. Signals are out of
scope: whoever handles them writes into a pipe that is watched here.
"""

from __future__ import annotations

import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
MOST_FAILURES = 100
FAR = float("inf")
HUNG_UP = select.EPOLLHUP | select.EPOLLERR


class Timer:
    """One call in the future; `cancel` may be called at any time, also twice."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Waits for descriptors and timers and calls who asked for them."""

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        """`on_error` hears of exceptions that a callback lets out; without it `turn` raises them."""
        self._on_error = on_error
        self._failures = 0
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        # Regular files cannot be polled (EPERM): they are always ready, as poll(2) says of them.
        self._always: dict[int, int] = {}
        self._timers: list[Timer] = []
        self._stopped = False

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(revents)` whenever one of `events` (EPOLL*/POLL* bits) holds for `fd`.

        Watching a descriptor that is watched already replaces events and callback.
        """
        try:
            if fd in self._always:
                self._always[fd] = events
            elif fd in self._callbacks:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events)
        except PermissionError:
            self._always[fd] = events
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change the events of a watched descriptor; 0 leaves only hang-up and error."""
        if fd in self._always:
            self._always[fd] = events
        elif fd in self._callbacks:
            self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching. An unknown descriptor is fine; call it before closing the descriptor."""
        if self._callbacks.pop(fd, None) is None:
            return
        if self._always.pop(fd, None) is None:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closed already: the kernel has forgotten it by itself
                pass

    def call_after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback()` once, `seconds` from now on the monotonic clock."""
        timer = Timer(monotonic() + seconds, callback)
        self._timers.append(timer)
        return timer

    def stop(self) -> None:
        """Make `run` return after the callback that is running now."""
        self._stopped = True

    def run(self) -> None:
        """Serve until `stop`."""
        self._stopped = False
        while not self._stopped:
            self.turn()

    def turn(self, longest: float | None = None) -> None:
        """Wait for something (at most `longest` seconds) and serve it."""
        for fd, revents in self._epoll.poll(self._patience(longest)):
            self._serve(fd, revents)
            if self._stopped:
                return
        if self._always:
            for fd, events in list(self._always.items()):
                if events:
                    self._serve(fd, events)
        if self._timers:
            self._run_timers()

    def _serve(self, fd: int, revents: int) -> None:
        callback = self._callbacks.get(fd)
        if callback is None:
            return
        try:
            callback(revents)
        except Exception as error:
            self._failed(error)
            if self._failures % MOST_FAILURES == 0:
                self.forget(fd)  # what fails for ever must not keep the processor busy for ever

    def _failed(self, error: Exception) -> None:
        """One room's fault must not take the others with it: a container's exit code above all."""
        self._failures += 1
        if self._on_error is None:
            raise error
        self._on_error(error)

    def _patience(self, longest: float | None) -> float | None:
        if self._always and any(self._always.values()):
            return 0.0
        # Plain loops: a comprehension is a function made and called, at every wake-up.
        nearest = FAR
        for timer in self._timers:
            if timer.callback is not None and timer.deadline < nearest:
                nearest = timer.deadline
        if nearest == FAR:
            self._timers.clear()
            return longest
        left = max(0.0, nearest - monotonic())
        return left if longest is None else min(left, longest)

    def _run_timers(self) -> None:
        now = monotonic()
        due: list[Timer] = []
        rest: list[Timer] = []
        for timer in self._timers:
            if timer.callback is not None:
                (due if timer.deadline <= now else rest).append(timer)
        self._timers = rest
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                try:
                    callback()
                except Exception as error:
                    self._failed(error)
                if self._stopped:
                    return
