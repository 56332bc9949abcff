"""A live connection to a container's streams on the event loop: attach.Attachment's asyncio form.

Callers rely on the same as there: output from the moment of attaching, back-pressure for input, an
answer within half a second from a monitor that does not answer. One task may read while another one
writes.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator

from .. import attach as blocking
from .. import control
from ..attach import CONNECT_LIMIT, PAUSE, Output, SendTimeout, Streams, packets
from ..errors import NotRunningError, WaitTimeout
from .watch import Waits, deadline_in, seconds_left, writable


async def attach(bundle: str | os.PathLike[str], *, timeout: float = CONNECT_LIMIT) -> Attachment:
    """Connect to the container (or exec) of that bundle directory. NotRunningError, AttachError."""
    directory = os.fspath(bundle)
    connection = await _connect(os.path.join(directory, "attach"), timeout)
    return Attachment(blocking.Attachment(connection, directory))


async def _connect(path: str, timeout: float) -> socket.socket:
    deadline = deadline_in(timeout)
    with blocking.Connecting(path) as connecting:
        while not connecting.done():
            if seconds_left(deadline) == 0.0:
                raise connecting.no_answer(timeout)
            await asyncio.sleep(PAUSE)
        return connecting.take()


class Attachment(Waits):
    """A connection made by `attach()`; `close()` it, best by `async with`.

    `async for` gives `Output` pieces until the container's streams end.
    """

    def __init__(self, connection: blocking.Attachment) -> None:
        super().__init__()
        self._connection = connection

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection.fileno()

    @property
    def ended(self) -> bool:
        """Whether all output has come."""
        return self._connection.ended

    @property
    def bundle(self) -> str:
        """The directory of the socket."""
        return self._connection.bundle

    async def recv(self, timeout: float | None = None) -> Output | None:
        """The next piece of output, None at the end; WaitTimeout after `timeout` seconds."""
        deadline = deadline_in(timeout)
        while True:
            try:
                return self._connection.recv_now()
            except BlockingIOError:
                ready = await self._ready([self.fileno()], seconds_left(deadline))
                if not ready and not self.ended:
                    raise WaitTimeout(f"no output of {self.bundle} within {timeout} s") from None

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (output := await self.recv()) is not None:
            yield output

    async def send(
        self, data: bytes | bytearray | memoryview, timeout: float | None = None
    ) -> None:
        """Send all of it to the container's stdin; errors as attach.Attachment.send."""
        deadline = deadline_in(timeout)
        sent = 0
        for packet in packets(data):
            while not self._connection.send_now(packet):
                fds, left = [self.fileno()], seconds_left(deadline)
                if not await self._ready(fds, left, select.POLLOUT) and not self._connection.closed:
                    raise SendTimeout(
                        f"the container reads nothing within {timeout} s: {sent} bytes were sent",
                        sent,
                    )
            sent += len(packet)

    def close_stdin(self) -> None:
        """End the input; output goes on."""
        self._connection.close_stdin()

    async def communicate(
        self, data: bytes = b"", *, timeout: float | None = None, limit: int | None = 16 << 20
    ) -> Streams:
        """Send `data`, end the input, collect output to its end, at most `limit` bytes a stream."""
        kept = {"stdout": bytearray(), "stderr": bytearray()}
        truncated = False

        async def feed() -> None:
            try:
                await self.send(data)
            except NotRunningError:
                pass
            self.close_stdin()

        feeding = asyncio.ensure_future(feed())
        try:
            async with asyncio.timeout(timeout):
                async for piece in self:
                    stream = kept[piece.stream]
                    room = len(piece.data) if limit is None else limit - len(stream)
                    truncated |= room < len(piece.data)
                    stream += piece.data[: max(0, room)]
        except TimeoutError:
            raise WaitTimeout(f"{self.bundle} goes on after {timeout} s") from None
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        return Streams(bytes(kept["stdout"]), bytes(kept["stderr"]), truncated)

    async def resize(self, rows: int, columns: int) -> None:
        """Give the terminal a new size."""
        await send_control(self.bundle, control.resize_message(rows, columns))

    async def reopen_logs(self) -> None:
        """Make the monitor reopen its log."""
        await send_control(self.bundle, b"2 0 0\n")

    def close(self) -> None:
        """Leave the container alone. Idempotent; a task that waits in `recv()` gets None."""
        self._stop_waiting()
        self._connection.close()


async def send_control(bundle: str, message: bytes) -> None:
    """control.send: one line to the monitor's `ctl`, whole or not at all, within half a second."""
    fd = control.open_control(bundle)
    try:
        while not control.write(fd, message, bundle):
            if not await writable(fd, CONNECT_LIMIT):
                raise control.not_read(message, bundle)
    finally:
        os.close(fd)
