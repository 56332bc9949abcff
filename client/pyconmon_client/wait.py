"""Waiting for a container's end, without polling, whoever started it.

The exit file is the truth; inotify on the bundle tells of it. A monitor writes it before it leaves,
so the monitor's pidfd bounds the wait: with monitor and first process gone and no file there, the
code is unknown at once (the kernel is asked first). A container that lives on without its monitor
is waited for by its own pidfd.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from . import inotify
from .closing import Closing
from .deadline import Deadline, readable
from .errors import WaitTimeout
from .exit_status import UNKNOWN, Exit, kernel_exit_code, read_exit_file
from .monitor import ProcessId

_EVENTS = inotify.MOVED_TO | inotify.CLOSE_WRITE | inotify.DELETE_SELF


class ExitWatch(Closing):
    """Poll `descriptors()` (again after every event: they change), then ask `check()`."""

    def __init__(
        self,
        exit_file: str,
        init: ProcessId | None,
        monitor: ProcessId | None,
        successor: Callable[[], ProcessId | None] = lambda: None,
    ) -> None:
        """`successor` looks for the monitor that has taken over from one which died."""
        self.exit_file = exit_file
        self._successor = successor
        self._inotify: inotify.Inotify | None = None
        self._init: int | None = None
        self._monitor: int | None = None
        try:
            self._init = init.open() if init else None
            self._monitor = monitor.open() if monitor else None
        except BaseException:
            self.close()
            raise
        try:
            self._inotify = inotify.Inotify()
            self._inotify.watch(os.path.dirname(exit_file), _EVENTS)
        except OSError:
            # Out of inotify instances, or no bundle left: the monitor's end still tells.
            self._close_inotify()

    @property
    def idle(self) -> bool:
        """Whether neither the container's first process nor its monitor is there to be watched."""
        return self._init is None and self._monitor is None

    def descriptors(self) -> list[int]:
        """What becomes readable when `check()` may have news; empty once it has its answer."""
        fds = [] if self._inotify is None else [self._inotify.fileno()]
        if self._monitor is not None:
            fds.append(self._monitor)
        elif self._init is not None:
            fds.append(self._init)
        return fds

    def check(self) -> Exit | None:
        """The container's exit, or None while it goes on (or its monitor is about to report)."""
        if self._inotify is not None:
            self._inotify.read()
        monitored = self._monitor is not None and not readable(self._monitor)
        # Looked for after the monitor: a file written just before the monitor's end is not missed.
        found = read_exit_file(self.exit_file)
        if found is not None or monitored:
            return found
        if self._monitor is not None:
            os.close(self._monitor)
            self._monitor = None
        if self._init is None:
            return UNKNOWN
        if not readable(self._init):
            return None
        later = self._successor()
        self._monitor = later.open() if later is not None else None
        if self._monitor is not None:
            return None
        found = read_exit_file(self.exit_file)  # one that took over may have left meanwhile
        if found is not None:
            return found
        code = kernel_exit_code(self._init)
        return UNKNOWN if code is None else Exit(code)

    def wait(self, timeout: float | None = None, what: str = "the container") -> Exit:
        """Until it has ended, `timeout` seconds at most, then WaitTimeout."""
        deadline = Deadline(timeout)
        while (found := self.check()) is None:
            if deadline.passed():
                raise WaitTimeout(f"could not see {what} end: still running after {timeout} s")
            poller = select.poll()
            for fd in self.descriptors():
                poller.register(fd, select.POLLIN)
            poller.poll(deadline.milliseconds())
        return found

    def close(self) -> None:
        self._close_inotify()
        for role in ("_init", "_monitor"):
            fd: int | None = getattr(self, role)
            setattr(self, role, None)
            if fd is not None:
                os.close(fd)

    def _close_inotify(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
