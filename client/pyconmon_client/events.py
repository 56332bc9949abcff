"""Events of containers that end: what a monitor writes into its exit directory, as it happens.

Callers rely on `ExitEvents`, an iterator that gives one `ExitEvent` for every exit file that
appears, without polling and without knowing who started the container. Monitors rename a finished
file into place, so a name that appears is complete; scratch files beside it are never reported. Out
of scope: directories below it.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from . import inotify
from .deadline import Deadline
from .errors import PyconmonError, WaitTimeout

# An exit code has at most four characters; a longer file is something else.
_LONGEST = 16


@dataclass(frozen=True, slots=True)
class ExitEvent:
    """A container's end. exit_code: 0-255 (128+N for signal N), or -1 after a time-out.
    finished_at: aware, UTC.
    """

    container_id: str
    exit_code: int
    finished_at: datetime


class ExitEvents:
    """Iterates over the exit files that appear in `directory` from now on; it never ends by itself.

    existing: begin with the files that are there already, in the order of their times. `close()`
    or the end of a `with` block end it, also in another thread that waits. Raises PyconmonError if the directory can't be
    watched, and when it goes away.
    """

    def __init__(self, directory: str | os.PathLike[str], *, existing: bool = False) -> None:
        self.directory = os.path.abspath(os.fspath(directory))
        self._ready: deque[ExitEvent] = deque()
        # What has been reported, by name: a file that is replaced is news, one that is seen twice
        # is not.
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._waiting = 0
        self._behind = False
        self._closed = False
        mask = inotify.MOVED_TO | inotify.DELETE | inotify.DELETE_SELF | inotify.MOVE_SELF
        with ExitStack() as opened:
            try:
                self._inotify = opened.enter_context(inotify.Inotify())
                self._inotify.watch(self.directory, mask | inotify.ONLYDIR)
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError as error:
                why = error.strerror
                raise PyconmonError(f"could not watch {self.directory}: {why}") from error
            opened.pop_all()
        try:
            self._scan()
        except BaseException:
            self.close()
            raise
        if not existing:
            self._ready.clear()

    def fileno(self) -> int:
        """A descriptor that is readable when `take()` may have something."""
        return self._inotify.fileno()

    def take(self) -> list[ExitEvent]:
        """The events that are there now, without waiting."""
        self._collect()
        events = list(self._ready)
        self._ready.clear()
        return events

    def wait(self, timeout: float | None = None) -> ExitEvent | None:
        """The next event; None after `close()`. WaitTimeout if there is none within `timeout`
        seconds.
        """
        deadline = Deadline(timeout)
        with self._lock:
            if self._closed:
                return None
            self._waiting += 1
        try:
            return self._next(
                deadline, f"no container ended in {self.directory} within {timeout} s"
            )
        finally:
            with self._lock:
                self._waiting -= 1
            self._release()

    def _next(self, deadline: Deadline, problem: str) -> ExitEvent | None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._inotify.fileno(), select.POLLIN)
        while not self._closed:
            if self._ready:
                return self._ready.popleft()
            if not poller.poll(deadline.milliseconds()) and deadline.passed():
                raise WaitTimeout(problem)
            if not self._closed:
                self._collect()
        return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ExitEvent:
        event = self.wait()
        if event is None:
            raise StopIteration
        return event

    def _collect(self) -> None:
        if self._behind:
            self._scan()
        while batch := self._inotify.read():
            for event in batch:
                self._take_in(event)

    def _take_in(self, event: inotify.Event) -> None:
        if event.overflow:
            self._scan()
        elif event.mask & (inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.IGNORED):
            raise PyconmonError(f"could not go on watching {self.directory}: it is gone")
        elif event.mask & inotify.DELETE:
            self._seen.pop(event.name, None)
        elif event.mask & inotify.MOVED_TO:
            self._look(event.name)

    def _scan(self) -> None:
        try:
            names = os.listdir(self.directory)
        except OSError as error:
            raise self._cannot_look(error) from error
        self._behind = False
        self._seen = {name: mark for name, mark in self._seen.items() if name in names}
        before = len(self._ready)
        for name in names:
            self._look(name)
        found = sorted(list(self._ready)[before:], key=lambda event: event.finished_at)
        while len(self._ready) > before:
            self._ready.pop()
        self._ready.extend(found)

    def _look(self, name: str) -> None:
        try:
            # Not through links and not into FIFOs: the directory may be writable by others.
            fd = os.open(
                os.path.join(self.directory, name),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise self._cannot_look(error) from error
            return  # removed since, or never an exit file
        try:
            status = os.fstat(fd)
            text = os.read(fd, _LONGEST)
        except OSError:
            return
        finally:
            os.close(fd)
        mark = (status.st_ino, status.st_mtime_ns)
        event = parse_exit_file(name, text, status.st_mtime_ns)
        if event is not None and self._seen.get(name) != mark:
            self._seen[name] = mark
            self._ready.append(event)

    def _cannot_look(self, error: OSError) -> PyconmonError:
        """What there is to see now is not lost: the next time looks at everything."""
        self._behind = True
        return PyconmonError(f"could not look into {self.directory}: {error.strerror}")

    def close(self) -> None:
        """Ends the iteration. May be called twice, and while another thread waits."""
        with self._lock:
            self._closed = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        self._release()

    def _release(self) -> None:
        """Once closed, give the descriptors back; the last one who waits for them does it."""
        with self._lock:
            if self._waiting or not self._closed:
                return
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        self._inotify.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_wake"):
            self.close()


def parse_exit_file(name: str, text: bytes, mtime_ns: int) -> ExitEvent | None:
    """The event of an exit file's name, content and time; None if the content is none of one."""
    digits = text[1:] if text.startswith(b"-") else text
    # Only digits: int() alone would take blanks, underscores and a plus sign as well.
    if not digits.isdigit() or len(text) >= _LONGEST:
        return None
    finished = datetime.fromtimestamp(mtime_ns // 10**9, UTC)
    finished = finished.replace(microsecond=mtime_ns // 1000 % 10**6)
    return ExitEvent(name, int(text), finished)
