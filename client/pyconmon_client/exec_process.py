"""A live process in a container: its streams while it runs, its end, signals, its terminal.

Habits are those of subprocess.Popen: `stdin`, `stdout` and `stderr` are binary files, `wait()`
gives the exit code, a `with` block ends it. With a terminal there is one `attachment` instead of
the three files. Leaving the block (or `close()`) ends the command and everything it started.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from typing import BinaryIO

from . import control
from .attach import Attachment, Output
from .closing import Closing
from .deadline import Deadline
from .errors import ContainerStateError, ExecStartError, ExecSyncError, PyconmonError, WaitTimeout
from .exec_session import ExecRequest, ExecSession, drain, write_some
from .exec_sync import MAX_OUTPUT, Capture, ExecResult, broken


class ExecProcess(Closing):
    """A command that was started in a container by Runtime.exec. One thread at a time, please."""

    def __init__(self, request: ExecRequest, *, stdin: bool = True) -> None:
        try:
            self._session = ExecSession(request, stdin=stdin and not request.attach)
        except (OSError, PyconmonError) as error:
            raise ExecStartError(b"", b"", -1, error) from error
        self._request = request
        self._ended = False
        self._refusal: ExecSyncError | None = None
        self.stdin: BinaryIO | None = None
        self.stdout: BinaryIO | None = None
        self.stderr: BinaryIO | None = None
        self.attachment: Attachment | None = self._session.attachment
        """The terminal's other end, for a command that has one."""
        if self._session.stdin >= 0:
            self.stdin = os.fdopen(self._session.release("stdin"), "wb", buffering=0)
        if self.attachment is None:
            self.stdout = os.fdopen(self._session.release("stdout"), "rb", buffering=0)
            self.stderr = os.fdopen(self._session.release("stderr"), "rb", buffering=0)

    @property
    def pid(self) -> int:
        """The command's pid in the caller's pid namespace; 0 before it has started."""
        return self._session.pid

    @property
    def returncode(self) -> int | None:
        """The exit code once `poll`, `wait` or `close` has seen the end; None before."""
        return self._session.exit_code if self._ended else None

    def fileno(self) -> int:
        """Becomes readable when there is something for `poll()` to see."""
        return self._session.sync.fd

    def poll(self) -> int | None:
        """The exit code if it has ended, else None.

        ExecStartError if it never ran, ExecSyncError if its monitor was killed and nobody knows.
        """
        if not self._ended:
            self._ended = self._session.advance()
        if not self._ended:
            return None
        if self._refusal is None:
            outcome = self._session.outcome()
            if not outcome.failure:
                return outcome.exit_code
            self._refusal = broken(self._session, outcome, b"", self._last_words())
        raise self._refusal

    def _last_words(self) -> bytes:
        """The runtime's reason is on the command's stderr."""
        self._session.end_everything()
        if self.stderr is None:
            return drain(self._session.stderr)
        return b"" if self.stderr.closed else drain(self.stderr.fileno())

    def wait(self, timeout: float | None = None) -> int:
        """The exit code (128+N for signal N). WaitTimeout after `timeout` seconds; it goes on then.

        Read the output meanwhile: a command whose pipe is full does not end.
        """
        deadline = Deadline(timeout)
        while (code := self.poll()) is None:
            if deadline.passed():
                raise WaitTimeout(
                    f"could not see {self._words} in container {self._request.container} end: "
                    f"still running after {timeout} s"
                )
            poller = select.poll()
            fd = self._session.child.pidfd if self._session.sync.eof else self._session.sync.fd
            poller.register(fd, select.POLLIN)
            poller.poll(deadline.milliseconds())
        return code

    def output(self, timeout: float | None = None) -> Iterator[Output]:
        """Output pieces as they come (stream "stdout" or "stderr"), to the command's end.

        Not longer: a background process that holds the output open does not prolong it.
        WaitTimeout after `timeout` seconds in all.
        """
        return self._pieces(b"", Deadline(timeout), feed=False)

    def communicate(
        self, data: bytes = b"", timeout: float | None = None, max_output: int = MAX_OUTPUT
    ) -> ExecResult:
        """Send `data`, end the input, collect the output, wait for the end.

        `max_output` bytes of each stream are kept. WaitTimeout after `timeout` seconds.
        """
        deadline = Deadline(timeout)
        kept = {"stdout": Capture(max_output), "stderr": Capture(max_output)}
        for piece in self._pieces(data, deadline, feed=True):
            kept[piece.stream].add(piece.data)
        code = self.wait(deadline.left())
        out, err = kept["stdout"], kept["stderr"]
        return ExecResult(bytes(out.data), bytes(err.data), code, out.truncated or err.truncated)

    def _pieces(self, data: bytes, deadline: Deadline, *, feed: bool) -> Iterator[Output]:
        late = f"could not see {self._words} end in time: it goes on"
        if self.attachment is not None:
            yield from self.attachment.exchange(data, deadline, late, end_input=False)
            return
        assert self.stdout is not None and self.stderr is not None
        sync, session = self._session.sync, self._session
        streams = {self.stdout.fileno(): "stdout", self.stderr.fileno(): "stderr"}
        poller = select.poll()
        for fd in (*streams, sync.fd):
            poller.register(fd, select.POLLIN)
        stdin = self.stdin if feed and self.stdin is not None and not self.stdin.closed else None
        if stdin is not None:
            os.set_blocking(stdin.fileno(), False)
            poller.register(stdin.fileno(), select.POLLOUT)
        left, ended = memoryview(data), set[int]()
        while not sync.eof:
            ready = poller.poll(deadline.milliseconds())
            if not ready and deadline.passed():
                raise WaitTimeout(late)
            for fd, _ in ready:
                if fd == sync.fd:
                    session.advance()
                elif stdin is not None and fd == stdin.fileno():
                    left = write_some(fd, left)
                    if not left:
                        poller.unregister(fd)
                        stdin.close()
                        stdin = None
                elif chunk := os.read(fd, 65536):
                    yield Output(streams[fd], chunk)
                else:
                    poller.unregister(fd)
                    ended.add(fd)
        for fd in streams.keys() - ended:
            if rest := drain(fd):
                yield Output(streams[fd], rest)

    def send_signal(self, number: int) -> None:
        """Signal the command's main process; nothing happens if it has ended."""
        self._session.signal(number)

    def terminate(self) -> None:
        """SIGTERM to the main process."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the command and everything it has started, now; `wait()` tells its exit code."""
        self._session.end_everything()

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal a new size."""
        if self.attachment is None:
            raise ContainerStateError(f"could not resize: {self._words} has no terminal")
        control.resize(self._session.directory, rows, columns)

    def close(self) -> None:
        """End it if it still runs, and give everything back. May be called twice.

        Afterwards `poll` and `wait` tell how it ended.
        """
        try:
            self._session.close()
        finally:
            self._ended = True
            for file in (self.stdin, self.stdout, self.stderr):
                if file is not None:
                    file.close()

    @property
    def _words(self) -> str:
        return repr(" ".join(self._request.command))
