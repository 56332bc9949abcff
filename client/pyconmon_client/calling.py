"""Calling a program that is short by itself: the runtime, or the monitor for its version.

Callers rely on its own end being the end: a process that it leaves behind (a shim, say) may hold its
output, and is not waited for. `call()` blocks; `Call` is for other kinds of loops.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from . import spawn
from .closing import Closing
from .deadline import Deadline
from .errors import PyconmonError
from .exec_session import drain
from .exec_sync import Capture

_MOST_OUTPUT = 4 << 20
_DYING_SECONDS = 10.0


class Done(NamedTuple):
    """Its exit status (-N: signal N), and what it printed, up to 4 MiB of each."""

    status: int
    stdout: bytes
    stderr: bytes


def call(argv: Sequence[str], environment: Mapping[str, str], seconds: float) -> Done | None:
    """None if it did not end in time; it is killed then. PyconmonError if it can't be started."""
    deadline = Deadline(seconds)
    with Call(argv, environment) as running:
        poller = select.poll()
        for fd in running.descriptors():
            poller.register(fd, select.POLLIN)
        while not running.ended():
            if deadline.passed():
                return None
            for fd, _ in poller.poll(deadline.milliseconds()):
                if not running.serve(fd):
                    poller.unregister(fd)
        return running.done()


class Call(Closing):
    """Started: `serve()` its descriptors until it has `ended()`. Killed at the end of the block."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._captures: dict[int, Capture] = {}
        try:
            with ExitStack() as theirs:
                given = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)]
                theirs.callback(os.close, given[0])
                for _ in ("stdout", "stderr"):
                    ours, its = os.pipe()
                    theirs.callback(os.close, its)
                    self._captures[ours] = Capture(_MOST_OUTPUT)
                    os.set_blocking(ours, False)
                    given.append(its)
                self._child = spawn.start(argv[0], argv[1:], environment, descriptors=given)
        except BaseException as error:
            self._close_pipes()
            if isinstance(error, OSError) and not isinstance(error, PyconmonError):
                raise PyconmonError(f"could not call {argv[0]}: {error.strerror}") from error
            raise

    def descriptors(self) -> list[int]:
        return [*self._captures, self._child.pidfd]

    def serve(self, fd: int) -> bool:
        """When it is readable; False if it has nothing more to tell."""
        if fd not in self._captures:
            return False
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return True
        self._captures[fd].add(chunk)
        return bool(chunk)

    def ended(self) -> bool:
        return self._child.poll() is not None

    def done(self) -> Done:
        """After its end."""
        for fd, capture in self._captures.items():
            capture.add(drain(fd))
        out, err = (bytes(capture.data) for capture in self._captures.values())
        # A program that ignores its children's end does not learn the status: take it for good.
        status = 0 if self._child.lost else self._child.poll()
        return Done(-1 if status is None else status, out, err)

    def close(self) -> None:
        if not self.ended():
            self._child.send_signal(signal.SIGKILL)
            self._child.wait(_DYING_SECONDS)
        self._child.close()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for fd in self._captures:
            os.close(fd)
        self._captures.clear()
