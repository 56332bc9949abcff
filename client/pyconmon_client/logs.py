"""Reading a container's k8s-file log: all of it, its end, or along with the container.

Callers rely on `LogReader` (also called `logs`), which gives whole lines from the log and its
rotated files `.1` to `.N`, oldest first, without loss over rotations while it follows, and on
following without polling. The format itself is in `records.py`. Out of scope: the journal, and compressed files.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import BinaryIO, Self, TypedDict

from . import inotify
from .closing import Closing
from .deadline import readable
from .errors import ExitFileError, InvalidArgumentError, LogFormatError, PyconmonError
from .records import MAX_LINE, Joiner, Line, parse_since
from .series import BLOCK, MAX_RECORD, has_more, is_removed, open_series, same_file, skip_to_tail
from .wait import ExitWatch


class LogOptions(TypedDict, total=False):
    """Which lines, and how: keyword arguments of LogReader, which says what they mean."""

    tail: int | None
    since: datetime | timedelta | str | int | float | None
    timestamps: bool
    stdout: bool
    stderr: bool
    skip_bad: bool
    max_line: int


CAUGHT_UP = Line("", b"", "")
"""Among the lines that come: there are no more now."""


class LogReader(Closing):
    """The lines of the log at `path`, with those of its rotated files before them.

    follow: go on with what is written from now, across rotations, until the file `exit_file` exists
    or `pidfd` (the monitor's) is readable or what `watch` gives (which is closed with this) sees the
    container's end, or else until `close()`; the log need not exist yet.
    tail: only that many of the lines there are now. since: only lines from then on: an aware
    datetime, RFC 3339, seconds since 1970, or how long ago (a timedelta or "1h30m"). timestamps:
    the time stamp and a blank before each line's data. stdout, stderr: which streams. skip_bad:
    pass over what is not a log record instead of raising LogFormatError. max_line: a line of more
    bytes comes in pieces.

    Iterating gives `Line` objects; descriptors are held until that ends or `close()`, which another
    thread may call; best use `with`. Raises InvalidArgumentError at once, PyconmonError while
    iterating if the log is missing or can't be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        follow: bool = False,
        tail: int | None = None,
        since: datetime | timedelta | str | int | float | None = None,
        timestamps: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        exit_file: str | os.PathLike[str] | None = None,
        pidfd: int | None = None,
        watch: Callable[[], ExitWatch | None] | None = None,
        skip_bad: bool = False,
        max_line: int = MAX_LINE,
    ) -> None:
        if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
            raise InvalidArgumentError(
                f"tail: {tail!r}; give the number of last lines, 0 or more, or None for all"
            )
        if max_line < 1:
            raise InvalidArgumentError(
                f"max_line: {max_line!r}; give a number of bytes of at least 1"
            )
        self.path = os.path.abspath(os.fspath(path))
        self._since = parse_since(since, time.time())
        self._tail = tail
        self._timestamps = timestamps
        self._inside: dict[str, bool] = {}
        self._streams = {
            name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted
        }
        self._follow = follow
        self._exit_file = None if exit_file is None else os.path.abspath(os.fspath(exit_file))
        self._pidfd = pidfd
        self._watch_end = watch
        self._end: ExitWatch | None = None
        self._skip_bad = skip_bad
        self._joiner = Joiner(max_line)
        self._files: deque[BinaryIO] = deque()
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise PyconmonError(f"log {self.path} can't be read: {error.strerror}") from error
        self._lock = threading.Lock()
        self._closed = False
        self._watcher: inotify.Inotify | None = None
        self._lines = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Line:
        if not self._closed:
            line = next(self._lines)
            if self._timestamps and line is not CAUGHT_UP:
                line = self._stamped(line)
            if not self._closed:
                return line
        self._lines.close()
        raise StopIteration

    def _stamped(self, line: Line) -> Line:
        inside, self._inside[line.stream] = self._inside.get(line.stream, False), not line.complete
        if inside:
            return line  # the next piece of a long line
        return Line(line.stream, f"{line.timestamp} ".encode() + line.data, line.timestamp)

    def close(self) -> None:
        """Ends the iteration, also one that waits in another thread. May be called twice."""
        self._closed = True
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        try:
            self._lines.close()
        except ValueError:
            return  # it runs in another thread, which lets go of everything
        self._release()

    def __del__(self) -> None:
        if hasattr(self, "_lines"):
            self.close()

    def _release(self) -> None:
        while self._files:
            self._files.popleft().close()
        if self._watcher is not None:
            self._watcher.close()
        if self._end is not None:
            self._end.close()
        with self._lock:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _run(self) -> Generator[Line, None, None]:
        with closing(self.steps()) as steps:
            for line in steps:
                if line is CAUGHT_UP:
                    self._wait()
                else:
                    yield line

    def steps(self) -> Generator[Line, None, None]:
        """The lines, and `CAUGHT_UP` whenever there is something to wait for."""
        try:
            if self._follow:
                self._watch()
            self._files.extend(open_series(self.path))
            if not self._files and not self._follow:
                raise PyconmonError(f"log {self.path} can't be read: there is no such file")
            yield from self._last(self._wanted(self._records()))
        finally:
            self._release()

    def _wanted(self, records: Iterator[tuple[bytes, bool] | None]) -> Iterator[Line]:
        """The wanted lines among the records, `CAUGHT_UP` for None."""
        for record in records:
            if record is None:
                yield CAUGHT_UP
                continue
            try:
                line = self._joiner.add(*record)
            except LogFormatError as error:
                if self._skip_bad:
                    continue
                raise LogFormatError(f"log {self.path}: {error}") from None
            if line is not None and self._wants(line):
                yield line
        yield from filter(self._wants, self._joiner.rest())

    def _wants(self, line: Line) -> bool:
        return line.stream in self._streams and (self._since is None or line.time_ns >= self._since)

    def _last(self, lines: Iterator[Line]) -> Iterator[Line]:
        """With a tail only the last lines of what is there now; then all that come."""
        if self._tail is not None:
            held: deque[Line] = deque(maxlen=self._tail)
            for line in lines:
                if line is CAUGHT_UP:
                    break
                held.append(line)
            yield from held
            if self._follow:
                yield CAUGHT_UP
        yield from lines

    def _records(self) -> Iterator[tuple[bytes, bool] | None]:
        """Every record of the series, and whether it has its LF; None where there are no more now."""
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
                # A removed log is let go of (it would keep its directory from being seen to go);
                # one that takes its place is read from its start.
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

    # --- following

    def _watch(self) -> None:
        if self._watch_end is not None:
            self._end = self._watch_end()
        log_events = inotify.MODIFY | inotify.CREATE | inotify.MOVED_TO
        log_events |= inotify.DELETE | inotify.DELETE_SELF
        try:
            self._watcher = inotify.Inotify()
            self._watcher.watch(os.path.dirname(self.path), log_events | inotify.ONLYDIR)
            # A log that is a link is written in another directory.
            target = os.path.dirname(os.path.realpath(self.path))
            if target != os.path.dirname(self.path):
                self._watcher.watch(target, log_events | inotify.ONLYDIR)
            if self._exit_file is not None:
                # One watch per directory: the mask replaces an earlier one, so it is the same.
                self._watcher.watch(os.path.dirname(self._exit_file), log_events | inotify.ONLYDIR)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise PyconmonError(
                f"log {self.path} can't be followed: {where}{error.strerror}"
            ) from error

    def _wait(self) -> None:
        """Until there may be more to read, or the reader is closed."""
        poller = select.poll()
        for fd in (fds := self.waited_for()):
            poller.register(fd, select.POLLIN)
        while fds and not self.has_news([fd for fd, _ in poller.poll()]):
            pass

    def waited_for(self) -> list[int]:
        """Descriptors, one of which is readable when there may be more; none for a last look."""
        assert self._watcher is not None
        if self._closed:
            return []
        if self._ended():
            # Everything is in the log before the exit file appears.
            self._follow = False
            self._open()
            return []
        fds = [self._watcher.fileno(), self._wake, *self._end_descriptors()]
        return fds if self._pidfd is None else [*fds, self._pidfd]

    def _end_descriptors(self) -> list[int]:
        return [] if self._end is None else self._end.descriptors()

    def has_news(self, ready: Collection[int]) -> bool:
        """Whether that was worth waking up for; `ready` are those that are readable."""
        assert self._watcher is not None
        if self._closed or self._pidfd in ready:
            return True
        if any(fd in ready for fd in self._end_descriptors()):
            return True
        events = self._watcher.read()
        if any(event.mask & inotify.DELETE_SELF for event in events):
            self._follow = False  # the directory is gone, and the last writer's file with it
        names = {os.path.basename(self.path), os.path.basename(os.path.realpath(self.path)), ""}
        if self._exit_file is not None:
            names.add(os.path.basename(self._exit_file))
        if any(event.overflow or event.name in names for event in events):
            self._open()
            return True
        return False

    def _open(self) -> None:
        if not self._files:
            self._files.extend(open_series(self.path))

    def _ended(self) -> bool:
        if self._exit_file is not None and os.path.lexists(self._exit_file):
            return True
        if self._end is not None:
            try:
                if self._end.check() is not None:
                    return True
            except ExitFileError:
                return True  # an end all the same
        return self._pidfd is not None and readable(self._pidfd)

    def _successors(self, file: BinaryIO) -> list[BinaryIO]:
        """What came after `file`, if the log was rotated or begun anew since it was opened."""
        status = os.fstat(file.fileno())
        try:
            if same_file(os.stat(self.path), status):
                return []
        except OSError:
            return []  # in the middle of a rotation, or removed; its return is an event
        return open_series(self.path, after=status)


logs = LogReader
