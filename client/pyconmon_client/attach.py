"""A live connection to a container's standard streams, through the monitor's attach socket.

Callers rely on `attach()`, which returns an `Attachment` within a second or raises, for paths of
any length; on `recv()` giving output from the moment of attaching (nothing before it is repeated);
and on `send()` taking part in back-pressure instead of losing input. Pure parts, for other kinds of
loops: `decode()`, `packets()`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from . import control
from .closing import Closing
from .deadline import Deadline
from .errors import AttachError, NotRunningError, WaitTimeout

# Monitors read input packets with a buffer of this size; the kernel would cut the rest off.
LARGEST_INPUT = 32768
_LARGEST_OUTPUT = 1 << 16
CONNECT_LIMIT = 0.5  # seconds, so that a call is over within one
# The queue of a monitor that doesn't accept is full. The kernel has no event for room in it.
PAUSE = 0.02

_STREAMS = {2: "stdout", 3: "stderr"}


class Output(NamedTuple):
    """A piece of output: stream is "stdout" (with a terminal, everything) or "stderr"."""

    stream: str
    data: bytes


class Streams(NamedTuple):
    """All output of a conversation; truncated if there was more than its limit."""

    stdout: bytes
    stderr: bytes
    truncated: bool


def decode(packet: bytes) -> Output | None:
    """The output in one packet of the socket; None for the empty one, which is the end.

    Raises AttachError for a packet of no known stream.
    """
    if not packet:
        return None
    stream = _STREAMS.get(packet[0])
    if stream is None:
        raise AttachError(
            f"could not read the attach socket: a packet of stream {packet[0]}, which there is not"
        )
    return Output(stream, packet[1:])


def packets(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """Input cut into packets that a monitor takes whole. None of them is empty: that would end the
    input.
    """
    view = memoryview(data).cast("B")
    for start in range(0, len(view), LARGEST_INPUT):
        yield view[start : start + LARGEST_INPUT]


def attach(bundle: str | os.PathLike[str], *, timeout: float = CONNECT_LIMIT) -> Attachment:
    """Connects to the container (or exec) whose monitor was started with this bundle directory.

    timeout: seconds that the monitor may take. Raises NotRunningError if there is no monitor,
    AttachError if there is one that doesn't answer.
    """
    return Attachment(
        connect(os.path.join(os.fspath(bundle), "attach"), timeout), os.fspath(bundle)
    )


def connect(path: str, timeout: float = CONNECT_LIMIT) -> socket.socket:
    """A non-blocking SEQPACKET socket that is connected to `path`, which may be longer than a
    socket address.
    """
    deadline = Deadline(timeout)
    with Connecting(path) as connecting:
        while not connecting.done():
            if deadline.passed():
                raise connecting.no_answer(timeout)
            time.sleep(PAUSE)
        return connecting.take()


class Connecting(Closing):
    """A socket on its way to `path`: ask again and again whether it is `done()`, then `take()` it."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotRunningError(f"could not attach to {path}: there is no such socket") from None
        except OSError as error:
            raise AttachError(f"could not attach to {path}: {error.strerror}") from error
        try:
            self._socket: socket.socket | None = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
            )
        except OSError as error:
            os.close(self._target)
            raise AttachError(f"could not attach to {path}: {error.strerror}") from error

    def done(self) -> bool:
        """False as long as the monitor has no room for us. NotRunningError, AttachError."""
        assert self._socket is not None
        number = self._socket.connect_ex(f"/proc/self/fd/{self._target}")
        if number == errno.ECONNREFUSED:
            raise NotRunningError(
                f"could not attach to {self._path}: nobody listens there any more"
            )
        if number not in (0, errno.EAGAIN):
            raise AttachError(f"could not attach to {self._path}: {os.strerror(number)}")
        return number == 0

    def no_answer(self, timeout: float) -> AttachError:
        return AttachError(
            f"could not attach to {self._path}: the monitor doesn't answer within {timeout} s"
        )

    def take(self) -> socket.socket:
        """The socket, which is the caller's from now on."""
        assert self._socket is not None
        taken, self._socket = self._socket, None
        return taken

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        os.close(self._target)


class Attachment(Closing):
    """A connection made by `attach()`. One thread may read while another one writes; `close()` when
    done.

    Iterating gives `Output` pieces until the container's streams end. That comes shortly before its
    exit code is known: wait for that separately.
    """

    def __init__(self, connection: socket.socket, bundle: str) -> None:
        connection.setblocking(False)
        self._socket = connection
        self.bundle = bundle
        self.ended = False

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The socket's descriptor, to poll."""
        return self._socket.fileno()

    def recv(self, timeout: float | None = None) -> Output | None:
        """The next piece of output, None at the end. WaitTimeout if nothing comes within `timeout`
        seconds.
        """
        deadline = Deadline(timeout)
        while True:
            try:
                return self.recv_now()
            except BlockingIOError:
                self._wait(
                    select.POLLIN, deadline, f"no output of {self.bundle} within {timeout} s"
                )

    def recv_now(self) -> Output | None:
        """As `recv`, but raises BlockingIOError if there is nothing now."""
        if self.ended:
            return None
        try:
            output = decode(self._socket.recv(_LARGEST_OUTPUT))
        except ConnectionResetError:
            # The end as well: the monitor closes with input unread if the container didn't want it.
            output = None
        except OSError:
            if not self.closed:
                raise
            output = None  # another thread has just closed it
        self.ended = output is None
        return output

    def __iter__(self) -> Iterator[Output]:
        while (output := self.recv()) is not None:
            yield output

    def send(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Sends all of it to the container's stdin, waiting while the container doesn't read.

        Raises WaitTimeout after `timeout` seconds, with how much was sent in `sent`;
        NotRunningError if the container or its monitor has ended. Sending nothing does nothing.
        """
        deadline = Deadline(timeout)
        sent = 0
        for packet in packets(data):
            while not self.send_now(packet):
                try:
                    self._wait(
                        select.POLLOUT, deadline, f"the container reads nothing within {timeout} s"
                    )
                except WaitTimeout as error:
                    raise SendTimeout(f"{error}: {sent} bytes were sent", sent) from None
            sent += len(packet)

    def send_now(self, packet: bytes | memoryview) -> bool:
        """Sends one packet (1 to 32768 bytes) if there is room; whether there was. NotRunningError
        as `send`.
        """
        if not 0 < len(packet) <= LARGEST_INPUT:
            raise ValueError(f"a packet of {len(packet)} bytes; 1 to {LARGEST_INPUT} fit")
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except (BlockingIOError, OSError) as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise NotRunningError(
                    f"could not send to {self.bundle}: its input has ended"
                ) from None
            raise AttachError(f"could not send to {self.bundle}: {error.strerror}") from error
        return True

    def close_stdin(self) -> None:
        """Ends the input: the container reads end of file, unless it has a terminal. Output goes
        on.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise AttachError(
                    f"could not end the input of {self.bundle}: {error.strerror}"
                ) from error

    def communicate(
        self, data: bytes = b"", *, timeout: float | None = None, limit: int | None = 16 << 20
    ) -> Streams:
        """Sends `data`, ends the input, and collects output to its end: at most `limit` bytes a
        stream.

        What is over the limit is read and dropped, so that the container goes on. A container that
        ends without reading its input is no error. Raises WaitTimeout after `timeout` seconds.
        """
        collected = {"stdout": bytearray(), "stderr": bytearray()}
        truncated = False
        problem = f"{self.bundle} goes on after {timeout} s"
        for output in self.exchange(data, Deadline(timeout), problem, end_input=True):
            kept = collected[output.stream]
            room = len(output.data) if limit is None else limit - len(kept)
            truncated |= room < len(output.data)
            kept += output.data[: max(0, room)]
        return Streams(bytes(collected["stdout"]), bytes(collected["stderr"]), truncated)

    def exchange(
        self, data: bytes, deadline: Deadline, problem: str, *, end_input: bool
    ) -> Iterator[Output]:
        """Output as it comes, to its end, while `data` is sent as there is room for it.

        WaitTimeout with that text at the deadline.
        """
        waiting = list(packets(data))[::-1]
        if end_input and not waiting:
            self.close_stdin()
        while not self.ended:
            events = select.POLLIN | (select.POLLOUT if waiting else 0)
            ready = self._wait(events, deadline, problem)
            if waiting and ready & select.POLLOUT:
                try:
                    if self.send_now(waiting[-1]):
                        waiting.pop()
                except NotRunningError:
                    waiting.clear()
                if end_input and not waiting:
                    self.close_stdin()
            try:
                output = self.recv_now() if ready & ~select.POLLOUT else None
            except BlockingIOError:
                continue
            if output is not None:
                yield output

    def resize(self, rows: int, columns: int) -> None:
        """Gives the terminal a new size; see `control.resize`."""
        control.resize(self.bundle, rows, columns)

    def reopen_logs(self) -> None:
        """Makes the monitor reopen its log; see `control.reopen_logs`."""
        control.reopen_logs(self.bundle)

    def _wait(self, events: int, deadline: Deadline, problem: str) -> int:
        fd = self._socket.fileno()
        if fd < 0:
            return events  # closed: the next try tells
        poller = select.poll()
        poller.register(fd, events)
        while not (ready := poller.poll(deadline.milliseconds())):
            if deadline.passed():
                raise WaitTimeout(problem)
        return ready[0][1]

    def close(self) -> None:
        """Leaves the container alone. With an input of its own (no terminal) it reads end of file.
        Idempotent; a thread that waits in `recv()` gets None.
        """
        self.ended = True
        try:
            # Closing alone would not wake it.
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side has gone, or it is closed already
        self._socket.close()


class SendTimeout(WaitTimeout):
    """The container did not take all input in time; `sent` bytes are on their way."""

    def __init__(self, message: str, sent: int) -> None:
        self.sent = sent
        super().__init__(message)
