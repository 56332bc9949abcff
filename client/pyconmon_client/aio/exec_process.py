"""A live process in a container, in the manner of asyncio.subprocess.

`stdin` is a StreamWriter, `stdout` and `stderr` are StreamReaders, `await wait()` gives the exit
code; leaving the `async with` block, or `await close()`, ends the command and all it has started.
With a terminal there is one `attachment` instead of the three. It has started when Runtime.exec
returns it. The readers end when the command has, also if a background process holds the pipes.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Self

from ..attach import Output
from ..control import resize_message
from ..errors import (
    ContainerStateError,
    ExecStartError,
    MonitorError,
    PyconmonError,
    WaitTimeout,
)
from ..exec_session import ExecRequest, ExecSession, drain
from ..exec_sync import MAX_OUTPUT, Capture, ExecResult, broken, reason
from ..wire import SyncReader
from .attach import Attachment, attach, send_control
from .ending import close_session, end_session
from .gate import Gate
from .watch import deadline_in, readable, seconds_left, see_through

_LIMIT = 1 << 16
_ATTACH_SECONDS = 60.0
_LEAVING_SECONDS = 5.0


class _Session(ExecSession):
    """An ExecSession that leaves connecting to its socket, which takes time, to `connect()`."""

    _attach_pipe = _start_pipe = -1

    def _attach(self, attach_pipe: int, start_pipe: int) -> None:
        # Copies: the originals are closed when this returns.
        self._attach_pipe, self._start_pipe = os.dup(attach_pipe), os.dup(start_pipe)

    async def connect(self) -> Attachment:
        """Attached first, started second: not a byte of the output is missed."""
        container, monitor = self.request.container, self.request.monitor_path
        ready = SyncReader(self._attach_pipe)
        while not (messages := ready.read()):
            fds = [self._attach_pipe, self.child.pidfd]
            if ready.eof or not await readable(fds, _ATTACH_SECONDS):
                await see_through(end_session(self))
                said = drain(self.stderr).decode("utf-8", "replace").strip()
                raise MonitorError(
                    f"could not run a command in container {container}: its monitor {monitor} "
                    f"offers no attach socket: {said or 'no reason'}",
                    said,
                )
        if messages[0].value < 0:
            raise MonitorError(
                f"could not run a command in container {container}: {messages[0].message}"
            )
        attachment = await attach(self.directory)
        self._let_start(self._start_pipe)
        self.close_own()
        return attachment

    def close_own(self) -> None:
        for role in ("_attach_pipe", "_start_pipe"):
            fd: int = getattr(self, role)
            setattr(self, role, -1)
            if fd >= 0:
                os.close(fd)


class _Reader:
    """A pipe as a StreamReader, and its end when the command has ended."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "rb", buffering=0)
        self.stream = asyncio.StreamReader(limit=_LIMIT)
        self._transport: asyncio.ReadTransport | None = None

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.stream), self._file
        )

    def finish(self) -> None:
        """What is in the pipe now is the last."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.pause_reading()
        if rest := drain(self._file.fileno()):
            self.stream.feed_data(rest)
        self.stream.feed_eof()
        transport.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        else:
            self._file.close()


class ExecProcess:
    """A command that was started in a container by Runtime.exec."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._readers: list[_Reader] = []
        self._reads: dict[str, asyncio.Task[bytes]] = {}
        self._ending: asyncio.Task[int] | None = None
        self._closed = False
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.attachment: Attachment | None = None
        """The terminal's other end, for a command that has one."""

    @classmethod
    async def start(cls, request: ExecRequest, gate: Gate, *, stdin: bool) -> ExecProcess:
        """Start it, and return when it runs; ExecStartError with the reason if it does not."""
        async with gate.slot():
            try:
                session = _Session(request, stdin=stdin and not request.attach)
            except (OSError, PyconmonError) as error:
                raise ExecStartError(b"", b"", -1, error) from error
            process = cls(session)
            try:
                if request.attach:
                    process.attachment = await session.connect()
                await process._see_started()
                await process._connect()
            except BaseException as error:
                await see_through(process.close())
                if isinstance(error, ExecStartError):
                    raise
                if isinstance(error, (OSError, PyconmonError)):
                    raise ExecStartError(b"", b"", -1, error) from error
                raise
            return process

    async def _see_started(self) -> None:
        session = self._session
        while not (ended := session.advance()) and not session.messages:
            await readable([session.child.pidfd if session.sync.eof else session.sync.fd])
        if session.messages and session.messages[0].value > 0:
            return  # perhaps it has ended meanwhile
        while not ended:
            await readable([session.child.pidfd])
            ended = session.advance()
        self._refuse()

    def _refuse(self) -> None:
        """It has never run; what is on its stderr is the runtime's reason."""
        session = self._session
        outcome = session.outcome()
        said = drain(session.stderr)
        cause = reason(outcome.failure or "it did not start", said, session.request)
        raise ExecStartError(b"", said, outcome.exit_code, cause)

    async def _connect(self) -> None:
        session, loop = self._session, asyncio.get_running_loop()
        if session.stdin >= 0:
            pipe = os.fdopen(session.release("stdin"), "wb", buffering=0)
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
            transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        if self.attachment is None:
            for role in ("stdout", "stderr"):
                reader = _Reader(session.release(role))
                self._readers.append(reader)
                setattr(self, role, reader.stream)
                await reader.connect()
        self._ending = asyncio.create_task(self._watch_end(), name=f"exec {session.pid}")

    async def _watch_end(self) -> int:
        session = self._session
        try:
            while not session.advance():
                await readable([session.child.pidfd if session.sync.eof else session.sync.fd])
            outcome = session.outcome()
            if outcome.failure:
                raise broken(session, outcome, b"", b"")
            return outcome.exit_code
        finally:
            for reader in self._readers:
                reader.finish()

    @property
    def pid(self) -> int:
        """The command's pid in the caller's pid namespace."""
        return self._session.pid

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended; None before."""
        task = self._ending
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()

    async def wait(self, timeout: float | None = None) -> int:
        """The exit code (128+N for signal N). WaitTimeout after `timeout` seconds; it goes on then.

        Read the output meanwhile: a command whose pipe is full does not end.
        """
        if self._ending is None or self._ending.cancelled():
            raise ContainerStateError(f"could not wait for {self._words}: nobody saw it end")
        done, _ = await asyncio.wait([self._ending], timeout=timeout)
        if not done:
            raise WaitTimeout(
                f"could not see {self._words} in container {self._session.request.container} end: "
                f"still running after {timeout} s"
            )
        return self._ending.result()

    async def output(self, timeout: float | None = None) -> AsyncIterator[Output]:
        """Output pieces as they come (stream "stdout" or "stderr"), to the command's end.

        WaitTimeout after `timeout` seconds in all.
        """
        deadline = deadline_in(timeout)
        if self.attachment is not None:
            while (piece := await self.attachment.recv(seconds_left(deadline))) is not None:
                yield piece
            return
        assert self.stdout is not None and self.stderr is not None
        streams = {"stdout": self.stdout, "stderr": self.stderr}
        try:
            while streams:
                for name in streams.keys() - self._reads.keys():
                    self._reads[name] = asyncio.create_task(streams[name].read(_LIMIT))
                reads = [self._reads[name] for name in streams]
                done, _ = await asyncio.wait(
                    reads, timeout=seconds_left(deadline), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise self._late()
                for name in [name for name in streams if self._reads[name] in done]:
                    # What is not taken now, because the caller leaves, is the next one's.
                    task = self._reads.pop(name)
                    if task.cancelled():
                        continue
                    if data := task.result():
                        yield Output(name, data)
                    else:
                        del streams[name]
        finally:
            await self._stop_reading()

    async def _stop_reading(self) -> None:
        """What has been read stays; a read that is stopped takes nothing with it."""
        waiting = [task for task in self._reads.values() if not task.done()]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    async def communicate(
        self, data: bytes = b"", timeout: float | None = None, max_output: int = MAX_OUTPUT
    ) -> ExecResult:
        """Send `data`, end the input, collect the output, wait for the end.

        `max_output` bytes of each stream are kept. WaitTimeout after `timeout` seconds: it goes on.
        """
        kept = {"stdout": Capture(max_output), "stderr": Capture(max_output)}
        feeding = asyncio.create_task(self._feed(data))
        try:
            async with asyncio.timeout(timeout):
                async for piece in self.output():
                    kept[piece.stream].add(piece.data)
                code = await self.wait()
        except TimeoutError:
            raise self._late() from None
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        out, err = kept["stdout"], kept["stderr"]
        return ExecResult(bytes(out.data), bytes(err.data), code, out.truncated or err.truncated)

    async def _feed(self, data: bytes) -> None:
        if self.attachment is not None:
            await self.attachment.send(data)
        elif self.stdin is not None:
            try:
                self.stdin.write(data)
                await self.stdin.drain()
            except ConnectionError:
                pass  # it does not want it
            self.stdin.close()

    def send_signal(self, number: int) -> None:
        """Signal the command's main process; nothing happens if it has ended."""
        self._session.signal(number)

    def terminate(self) -> None:
        """SIGTERM to the main process."""
        self.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End the command and everything it has started, now; `wait()` tells its exit code."""
        if self._ending is not None and not self._ending.done():
            await see_through(self._end(self._ending))

    async def _end(self, task: asyncio.Task[int]) -> None:
        await end_session(self._session)
        # It has its own look at the end. One that the kernel can't end is not waited for.
        await asyncio.wait([task], timeout=_LEAVING_SECONDS)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal a new size."""
        if self.attachment is None:
            raise ContainerStateError(f"could not resize: {self._words} has no terminal")
        await send_control(self._session.directory, resize_message(rows, columns))

    async def close(self) -> None:
        """End it if it still runs, and give everything back. May be called twice.

        Afterwards `wait` tells how it ended.
        """
        if self._closed:
            return
        self._closed = True
        task = self._ending
        try:
            await self.kill()
            await close_session(self._session)
        finally:
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
            if task is not None and not task.cancelled():
                task.exception()  # nobody has to have asked
            await self._stop_reading()
            self._session.close_own()
            for reader in self._readers:
                reader.close()
            if self.stdin is not None and not self.stdin.transport.is_closing():
                self.stdin.transport.abort()
            if self.attachment is not None:
                self.attachment.close()
            # Transports close their pipes in the loop's next round.
            await asyncio.sleep(0)

    def _late(self) -> WaitTimeout:
        return WaitTimeout(f"could not see {self._words} end in time: it goes on")

    @property
    def _words(self) -> str:
        return repr(" ".join(self._session.request.command))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await see_through(self.close())
