"""One attached client: its packets out, its bytes in.

Part of the attach room. What peers rely on is told in attach.py, which also decides when a client
is too slow; here is how one connection behaves without ever blocking or spinning.
"""

from __future__ import annotations

import _socket
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyconmon.backlog import Backlog
    from pyconmon.loop import Loop

    class Stdin(Protocol):
        """The container's standard input."""

        def write(self, data: memoryview) -> int:
            """Take bytes and say how many (0: full). Swallows them when it is closed."""

        def when_writable(self, callback: Callable[[], None]) -> None:
            """Call once when it can take bytes again. Several clients may wait."""

        def client_eof(self) -> None:
            """A client has sent all that it will send."""


# Packets at one wake-up, so that one busy client leaves time for the others and the container.
MOST_SENT = 128
MOST_RECEIVED = 16
# More than a sender's default socket buffer holds, so that no packet is ever cut. Pages that a
# packet never reached cost no memory.
INPUT_SIZE = 256 * 1024


class InputBuffer:
    """One buffer for all clients' packets, made when the first one sends something."""

    __slots__ = ("_view",)

    def __init__(self) -> None:
        self._view: memoryview | None = None

    def view(self) -> memoryview:
        if self._view is None:
            self._view = memoryview(bytearray(INPUT_SIZE))
        return self._view


class AttachClient:
    """A connection. Owns its descriptor.

    on_change(client) is called after it took packets from the backlog and when it has ended
    (`ended`).
    """

    __slots__ = (
        "_backlog",
        "_buffer",
        "_events",
        "_farewell",
        "_held",
        "_hung_up",
        "_loop",
        "_on_change",
        "_reading",
        "_stdin",
        "behind",
        "fd",
        "listening",
        "position",
    )

    def __init__(
        self,
        loop: Loop,
        fd: int,
        backlog: Backlog,
        stdin: Stdin,
        buffer: InputBuffer,
        on_change: Callable[[AttachClient], None],
    ) -> None:
        self.fd = fd
        self.position = backlog.end  # number of the packet it gets next: no replay of older ones
        self.behind = 0  # bytes of output that it has not taken
        self.listening = True  # it takes output
        self._loop = loop
        self._backlog = backlog
        self._stdin = stdin
        self._buffer = buffer
        self._on_change = on_change
        self._reading = True  # it may still send input
        self._held = b""  # input that the container's stdin did not take yet
        self._farewell = b""  # the last packet, for one that is dropped
        self._hung_up = False
        self._events = select.POLLIN
        loop.watch(fd, select.POLLIN, self._ready)

    @property
    def ended(self) -> bool:
        return self.fd < 0

    @property
    def waiting(self) -> bool:
        """There is something to send to it."""
        return bool(self._farewell) or (self.listening and self.position < self._backlog.end)

    def send(self, head: bytes, pieces: list[memoryview]) -> int:
        """Send new packets to a client that has everything before them; how many it took."""
        fd = self.fd
        sent = 0
        try:
            for piece in pieces:
                os.writev(fd, (head, piece))
                sent += 1
        except BlockingIOError:
            self.behind = sum(map(len, pieces[sent:]))
        except OSError:
            self.stop_listening()
        self.position = self._backlog.end + sent
        return sent

    def stop_listening(self) -> None:
        """It takes no more output; it may go on sending input, and its end is seen by that."""
        self.listening = False
        self.behind = 0

    def drop(self, farewell: bytes) -> None:
        """Leave out everything that waits for it but a last packet, after which it is closed."""
        self.stop_listening()
        self._farewell = farewell
        self.watch()

    def stop_reading(self) -> None:
        """The container is gone: what the client sends from now on is nobody's."""
        self._reading = False
        self._held = b""
        self.watch()

    def watch(self) -> None:
        """Ask the loop for what can go on now."""
        if self.fd < 0:
            return
        events = select.POLLIN if self._reading and not self._held else 0
        if self.waiting:
            events |= select.POLLOUT
        if events == 0 and self._hung_up:
            # A hang-up is reported for ever and cannot be masked. There is input of it yet to be
            # written to the container (else it would be closed), so what wakes us is its stdin.
            self._loop.forget(self.fd)
            self._events = -1
        elif self._events < 0:
            self._loop.watch(self.fd, events, self._ready)
            self._events = events
        elif events != self._events:
            self._loop.modify(self.fd, events)
            self._events = events

    def close(self) -> None:
        """End the connection: an end of file for the client, even if it is just sending."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        self.listening = False
        self._loop.forget(fd)
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        try:
            # Closed with unread packets, it would give the client an ECONNRESET.
            connection.shutdown(_socket.SHUT_RD)
            ends = 0
            while ends < 2:  # an empty packet looks like the end, too
                ends += 1 if not connection.recv(1) else 0
        except OSError:
            pass
        connection.close()

    def _ready(self, events: int) -> None:
        if self.fd < 0:
            return
        if events & select.POLLOUT:
            self._flush()
        if events & select.POLLHUP:
            self._hung_up = True
            self._farewell = b""
            self.stop_listening()
        if self._reading and not self._held and events & ~select.POLLOUT:
            self._receive()
        self._settle()

    def _settle(self) -> None:
        """Close what has nothing left to do, else wait for the rest."""
        done_reading = not self._reading and not self._held
        if not self.listening and not self._farewell and done_reading:
            self.close()
        else:
            self.watch()
        self._on_change(self)

    def _flush(self) -> None:
        try:
            if self._farewell:
                os.write(self.fd, self._farewell)
                self._farewell = b""
                self._end_input()
                return
            last = min(self._backlog.end, self.position + MOST_SENT)
            while self.listening and self.position < last:
                packet = self._backlog.packet(self.position)
                os.write(self.fd, packet)
                self.position += 1
                self.behind -= len(packet) - 1
        except BlockingIOError:
            pass
        except OSError:
            self._farewell = b""
            self.stop_listening()

    def _receive(self) -> None:
        view = self._buffer.view()
        for _ in range(MOST_RECEIVED):
            try:
                size = os.readv(self.fd, [view])
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It closed with output unread. That is said once; what it has sent comes after.
                self.stop_listening()
                continue
            except OSError:
                size = 0
            if size == 0:  # or an empty packet, which C conmon takes for the end as well
                self._end_input()
                return
            taken = self._stdin.write(view[:size])
            if taken < size:
                self._held = bytes(view[taken:size])
                self._stdin.when_writable(self._stdin_writable)
                return

    def _end_input(self) -> None:
        if self._reading:
            self._reading = False
            self._held = b""
            self._stdin.client_eof()

    def _stdin_writable(self) -> None:
        if self.fd < 0 or not self._held:
            return
        self._held = self._held[self._stdin.write(memoryview(self._held)) :]
        if self._held:
            self._stdin.when_writable(self._stdin_writable)
        else:
            self._settle()
