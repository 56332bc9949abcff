"""exec_sync: run a command in a container, wait for it, return what it printed and its exit code.

Callers rely on: no deadlock however much comes on both streams, memory bounded by `max_output` per
stream, a timeout that ends the command and everything it started, and no wait for background
processes that keep the output open. One poll loop, no threads.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass

from .deadline import milliseconds
from .errors import ExecExitError, ExecStartError, ExecSyncError, ExecTimeout, PyconmonError
from .exec_session import ExecRequest, ExecSession, Outcome, drain, write_some

MAX_OUTPUT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Output (bytes) and exit code; `truncated` if a stream was longer than the limit."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    truncated: bool = False


class Capture:
    """A stream's first `limit` bytes; the rest is counted as cut, not kept."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit

    def add(self, chunk: bytes) -> None:
        room = self._limit - len(self.data)
        if len(chunk) > room:
            self.truncated = True
        self.data += chunk[: max(0, room)]


class Run:
    """The poll loop of one call."""

    def __init__(self, session: ExecSession, stdin: bytes, max_output: int) -> None:
        self.session = session
        self.captures = {session.stdout: Capture(max_output), session.stderr: Capture(max_output)}
        self._out, self._err = self.captures[session.stdout], self.captures[session.stderr]
        self._input = memoryview(stdin)
        self._poller = select.poll()
        for fd in (*self.captures, session.sync.fd, session.child.pidfd):
            self._poller.register(fd, select.POLLIN)
        if session.stdin >= 0:
            os.set_blocking(session.stdin, False)
            self._poller.register(session.stdin, select.POLLOUT)

    def until_end(self, timeout: float | None) -> bool:
        """False if the time is over. The monitor's end is the end, whoever holds the output."""
        wake = None if timeout is None else time.monotonic() + timeout
        while not self.session.advance():
            if wake is not None and timeout is not None and time.monotonic() >= wake:
                left = self.session.time_left(timeout)
                if left <= 0:
                    return False
                wake = time.monotonic() + left
            seconds = None if wake is None else wake - time.monotonic()
            for fd, _ in self._poller.poll(milliseconds(seconds)):
                self._serve(fd)
        return True

    def _serve(self, fd: int) -> None:
        session = self.session
        if fd in self.captures:
            chunk = os.read(fd, 65536)
            self.captures[fd].add(chunk)
            if not chunk:
                self._poller.unregister(fd)
        elif fd == session.stdin:
            self._feed()
        elif fd == session.child.pidfd:
            # Readable for good from now on; the sync pipe says the rest.
            self._poller.unregister(fd)
        elif session.advance() or session.sync.eof:
            self._poller.unregister(fd)

    def _feed(self) -> None:
        self._input = write_some(self.session.stdin, self._input)
        if not self._input:
            self._poller.unregister(self.session.stdin)
            self.session.close_stdin()

    def finish(self) -> tuple[bytes, bytes, bool]:
        for fd, capture in self.captures.items():
            capture.add(drain(fd))
        truncated = self._out.truncated or self._err.truncated
        return bytes(self._out.data), bytes(self._err.data), truncated


def run(
    request: ExecRequest,
    *,
    timeout: float | None,
    stdin: bytes | None,
    max_output: int,
    check: bool,
) -> ExecResult:
    """Run it to its end. Raises ExecSyncError's subclasses as Runtime.exec_sync documents."""
    try:
        session = ExecSession(request, stdin=stdin is not None)
    except (OSError, PyconmonError) as error:
        raise ExecStartError(b"", b"", -1, error) from error
    loop: Run | None = None
    try:
        loop = Run(session, stdin or b"", max_output)
        if not loop.until_end(timeout):
            session.end_everything()
            # Once more: it may have ended by itself in the last moment, or printed more.
            cause = "command timed out" if session.pid else "command not started in time"
            raise ExecTimeout(*_parts(loop.finish(), -1, cause))
        outcome = session.outcome()
        if outcome.failure:
            session.end_everything()
            raise broken(session, outcome, *loop.finish())
        output = loop.finish()
    except ExecSyncError:
        raise
    except (OSError, PyconmonError) as error:
        session.end_everything()
        output = loop.finish() if loop is not None else (b"", b"", False)
        raise ExecSyncError(*_parts(output, -1, error)) from error
    finally:
        session.close()
    if check and outcome.exit_code != 0:
        cause = f"container workload exited with error {outcome.exit_code}"
        raise ExecExitError(*_parts(output, outcome.exit_code, cause))
    return ExecResult(output[0], output[1], outcome.exit_code, output[2])


def _parts(
    output: tuple[bytes, bytes, bool], code: int, cause: BaseException | str
) -> tuple[bytes, bytes, int, BaseException | str, bool]:
    return output[0], output[1], code, cause, output[2]


def broken(
    session: ExecSession, outcome: Outcome, stdout: bytes, stderr: bytes, truncated: bool = False
) -> ExecSyncError:
    """The error of an exec without an exit code: it never ran, or its monitor was lost."""
    request, code = session.request, outcome.exit_code
    if not session.pid:
        cause = reason(outcome.failure, stderr, request)
        return ExecStartError(stdout, stderr, code, cause, truncated)
    words = " ".join(request.command)
    cause = f"could not see {words!r} in container {request.container} end: {outcome.failure}"
    return ExecSyncError(stdout, stderr, code, cause, truncated)


def reason(failure: str, stderr: bytes, request: ExecRequest) -> str:
    """The runtime's own words are on the command's stderr, where monitor and runtime share it."""
    text = stderr.decode("utf-8", "replace").strip() or failure
    command = " ".join(request.command)
    return f"could not run {command!r} in container {request.container}: {text}"
