"""run: one container from its bundle to its exit code in a single call, with its output.

Callers rely on the container being gone afterwards in every way out, on memory bounded by
`max_output` per stream, and on outcomes told apart: ended by itself, out of time, out of memory,
too much output. The container writes straight into pipes of the caller: no log, no copy.
"""

from __future__ import annotations

import os
import select
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .container import Container
from .deadline import Deadline
from .errors import ContainerNotFound, CreateError, PyconmonError
from .exec_session import drain, write_some
from .exec_sync import Capture
from .exit_status import Exit
from .wait import ExitWatch

if TYPE_CHECKING:
    from .operations import Operations

# After a kill: how long the end may take, the kernel's and the monitor's.
_KILL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a container ended and what it printed.

    `exit_code` is 128+N after signal N, -1 if unknown. `timed_out`, `output_exceeded`: it was
    killed for that. `truncated`: output was cut at the limit. `oom_killed`: the kernel ended one of
    its processes for its memory limit. `seconds` it ran.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False
    output_exceeded: bool = False
    oom_killed: bool = False
    seconds: float = 0.0


class RunError(PyconmonError):
    """A container that was run with check=True did not end with exit code 0; `result` tells all."""

    def __init__(self, name: str, result: RunResult) -> None:
        self.result = result
        if result.timed_out:
            why = f"it was ended after {result.seconds:.1f} s, its time limit"
        elif result.output_exceeded:
            why = "it was ended for printing more than its limit"
        elif result.oom_killed:
            why = f"it ran out of memory (exit code {result.exit_code})"
        else:
            why = f"exit code {result.exit_code}"
        super().__init__(f"container {name} did not succeed: {why}")


class Streams:
    """The pipes of one run: [0] the container's ends, then ours."""

    def __init__(self, stdin: bytes | None, max_output: int) -> None:
        self._fds: set[int] = set()
        self._input = memoryview(stdin or b"")
        self.stdin, child_in = -1, -1
        try:
            if stdin:
                child_in, self.stdin = self._pipe()
            self.stdout, child_out = self._pipe()
            self.stderr, child_err = self._pipe()
        except OSError as error:
            self.close()
            raise CreateError(f"could not create a container: {error.strerror}") from error
        self.child = (child_in, child_out, child_err)
        self.captures = {self.stdout: Capture(max_output), self.stderr: Capture(max_output)}

    def _pipe(self) -> tuple[int, int]:
        pair = os.pipe()
        self._fds.update(pair)
        return pair

    def close(self, *fds: int) -> None:
        for fd in fds or tuple(self._fds):
            if fd in self._fds:
                self._fds.discard(fd)
                os.close(fd)

    def register(self, poller: select.poll) -> None:
        for fd in (self.stdout, self.stderr):
            os.set_blocking(fd, False)
            poller.register(fd, select.POLLIN)
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
            poller.register(self.stdin, select.POLLOUT)

    def serve(self, fd: int, poller: select.poll) -> None:
        if fd == self.stdin:
            self._input = write_some(fd, self._input)
            if not self._input:
                poller.unregister(fd)
                self.close(fd)
            return
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return
        self.captures[fd].add(chunk)
        if not chunk:
            poller.unregister(fd)

    @property
    def truncated(self) -> bool:
        return any(capture.truncated for capture in self.captures.values())

    def explained(self, error: CreateError) -> CreateError:
        """Monitor and runtime have complained on the container's stderr."""
        said = drain(self.stderr).decode("utf-8", "replace")
        return type(error)(f"{error} {said}".strip(), said)

    def result(
        self, container: Container, ended: Exit, limits: Limits, seconds: float
    ) -> RunResult:
        """After the container's end, with what is left in the pipes."""
        for fd, capture in self.captures.items():
            capture.add(drain(fd))
        state = container.state
        return RunResult(
            ended.code,
            bytes(self.captures[self.stdout].data),
            bytes(self.captures[self.stderr].data),
            truncated=self.truncated,
            timed_out=limits.timed_out,
            output_exceeded=limits.output_exceeded,
            oom_killed=state.oom_killed if state else False,
            seconds=seconds,
        )


@dataclass(slots=True)
class Limits:
    timeout: float | None
    kill_on_output: bool
    timed_out: bool = False
    output_exceeded: bool = False


def run(
    operations: Operations,
    container: Container,
    *,
    stdin: bytes | None,
    timeout: float | None,
    max_output: int,
    kill_on_output: bool,
    watch_exit: Callable[[Container], ExitWatch],
) -> RunResult:
    """Create, start, collect, delete."""
    streams = Streams(stdin, max_output)
    try:
        # The modern dialect tells of memory running out; the classic one has nowhere to.
        setting = operations.dialect
        try:
            operations.create_container(
                container,
                output="caller",
                stdio=streams.child,
                dialect="modern" if setting == "auto" else setting,
            )
        except CreateError as error:
            raise streams.explained(error) from error
        try:
            streams.close(*streams.child)
            limits = Limits(timeout, kill_on_output)
            with watch_exit(container) as watch:
                begun = time.monotonic()
                operations.start_container(container)
                ended = _follow(operations, container, streams, watch, limits)
                seconds = time.monotonic() - begun
            operations.note_exit(container, ended)
        finally:
            _delete(operations, container)
        return streams.result(container, ended, limits, seconds)
    finally:
        streams.close()


def _follow(
    operations: Operations,
    container: Container,
    streams: Streams,
    watch: ExitWatch,
    limits: Limits,
) -> Exit:
    """Copy output until the container has ended; kill it at a limit."""
    deadline = Deadline(limits.timeout)
    poller = select.poll()
    streams.register(poller)
    watched: list[int] = []
    killed = False
    while (ended := watch.check()) is None:
        limits.output_exceeded = limits.kill_on_output and streams.truncated
        if not killed and (limits.output_exceeded or deadline.passed()):
            limits.timed_out = not limits.output_exceeded
            _kill(operations, container)
            killed, deadline = True, Deadline(_KILL_SECONDS)
        elif killed and deadline.passed():
            raise PyconmonError(
                f"could not end container {container.name}: it was killed {_KILL_SECONDS} s ago"
            )
        # What the watch wants to be polled for changes as processes go.
        for fd in watched:
            poller.unregister(fd)
        watched = watch.descriptors()
        for fd in watched:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(deadline.milliseconds()):
            if fd not in watched:
                streams.serve(fd, poller)
    return ended


def _kill(operations: Operations, container: Container) -> None:
    try:
        operations.kill_container(container, "KILL")
    except PyconmonError:
        pass  # It has just ended by itself; if not, the deletion by force ends it.


def _delete(operations: Operations, container: Container) -> None:
    try:
        operations.delete_container(container, force=True)
    except ContainerNotFound:
        pass


def new_name() -> str:
    """A name for a container that nobody names."""
    return f"run-{uuid.uuid4().hex[:16]}"
