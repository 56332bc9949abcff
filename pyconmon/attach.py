"""The attach socket: clients that see the container's output as it comes and type into its stdin.

Clients rely on: a SOCK_SEQPACKET socket `attach` in the bundle; packets of one stream byte (2
stdout, 3 stderr) and 1 to 8192 bytes of output from the moment of connecting on; what they send
goes to the container's stdin as it is; a half-close (or an empty packet) is the end of their input
only; at the container's end they see an end of file. No client can hold up the container, its log
or other clients (C conmon's can): see MOST_BEHIND. What the end of input means for the container is
decided in stdin.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import sys
from time import monotonic

from pyconmon import fds
from pyconmon.attach_client import AttachClient, InputBuffer
from pyconmon.backlog import Backlog, cut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.attach_client import Stdin
    from pyconmon.diag import Diag
    from pyconmon.loop import Loop, Timer

    Identity = tuple[int, int, int]

NAME = "attach"
LISTEN_BACKLOG = 10
LONGEST_LINK = 107  # a link as long as this is made one byte shorter, as all conmon clients expect
SO_PEERCRED = 17  # asm-generic/socket.h
SEND_BUFFER = 512 * 1024  # asked for; the kernel grants what net.core.wmem_max allows

# A client may lag by this much unnoticed; then the container is slowed down, to this rate and no
# less; then the client loses its output.
UNPACED_BEHIND = 4 * 1024 * 1024
PACED_RATE = 16 * 1024 * 1024  # bytes a second
MOST_BEHIND = 64 * 1024 * 1024
FAREWELL = b"\x03pyconmon: this client is more than 64 MiB behind: output is lost, and it is disconnected\n"

# The end: clients that still read get the rest.
LONGEST_FINISH = 60.0  # seconds, all in all
LONGEST_STALL = 10.0  # seconds in which no client takes anything

NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_PAUSE = 1.0  # seconds; only where a connection can be neither accepted nor refused


class AttachServer:
    """The socket of one container and its clients.

    link is (socket directory, container uuid) for callers that connect by way of a short path
    there, or None (`--full-attach`).
    """

    def __init__(
        self, loop: Loop, diag: Diag, bundle: str, link: tuple[str, str | None] | None, stdin: Stdin
    ) -> None:
        self._loop = loop
        self._diag = diag
        self._bundle = bundle
        self._link = None if link is None else link_path(link[0], link[1])
        self._stdin = stdin
        self._listener: _socket.socket | None = None
        self._spare_fd = -1
        self._socket_identity: Identity | None = None
        self._link_identity: Identity | None = None
        self._clients: list[AttachClient] = []
        self._backlog = Backlog()
        self._buffer = InputBuffer()
        self._on_done: Callable[[], None] | None = None
        self._finish_timer: Timer | None = None
        self._finish_by = 0.0
        self._moved_at = 0.0
        self._complained = False

    @property
    def has_clients(self) -> bool:
        """Somebody would get what is broadcast."""
        return bool(self._clients)

    def open(self) -> None:
        """Make link and socket, in place of what has their names. OSError on failure."""
        if self._link is not None:
            self._link_identity = make_link(self._link, self._bundle)
        self._listener, self._socket_identity = listen_in(self._bundle)
        # Given up for a moment when descriptors have run out: a connection that cannot be accepted
        # would otherwise wake us for ever.
        self._spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._loop.watch(self._listener.fileno(), select.POLLIN, self._connectable)

    def admit(self) -> None:
        """Accept all who have connected: what is broadcast next is for them too."""
        if self._listener is not None:
            for _ in range(LISTEN_BACKLOG + 1):
                if not self._accept(self._listener):
                    break

    def broadcast(self, stream: int, data: memoryview | bytes) -> float:
        """Send one read's output (stream 2 or 3) to all clients; keep what one can't take.

        Returns how many seconds to wait before reading more from the container, 0.0 as a rule.
        """
        if not self._clients:
            return 0.0
        pieces = cut(memoryview(data))
        size = len(data)
        head = b"\x02" if stream == 2 else b"\x03"
        count = len(pieces)
        end = self._backlog.end
        skip = count
        for client in self._clients:
            if not client.listening:
                continue
            if client.position < end:
                client.behind += size
                skip = 0
            else:
                taken = client.send(head, pieces)
                if taken < skip and client.listening:
                    skip = taken
        self._backlog.extend(head, pieces, skip)
        return self._lag(size) if skip < count else 0.0

    def finish(self, on_done: Callable[[], None]) -> None:
        """Let every client get what it still has to get, for a bounded time, and close it.

        on_done() is called when the last one is closed, perhaps before this returns. No new
        clients, and no more input.
        """
        self._on_done = on_done
        self._moved_at = monotonic()
        self._finish_by = self._moved_at + LONGEST_FINISH
        self._stop_listening()
        for client in list(self._clients):
            if client.waiting:
                client.stop_reading()
            else:
                client.close()
        self._clients = [client for client in self._clients if not client.ended]
        self._check_finish()

    def close(self) -> None:
        """Close everything now. The files stay until they are removed."""
        self._on_done = None
        if self._finish_timer is not None:
            self._finish_timer.cancel()
        self._stop_listening()
        for client in self._clients:
            client.close()
        self._clients = []
        self._backlog.forget_before(self._backlog.end)

    def remove_socket(self) -> None:
        """Remove the socket file, unless it is a later monitor's."""
        self._remove(os.path.join(self._bundle, NAME), self._socket_identity)
        self._socket_identity = None

    def remove_link(self) -> None:
        """Remove the link, unless it is a later monitor's."""
        if self._link is not None:
            self._remove(self._link, self._link_identity)
            self._link_identity = None

    def _remove(self, path: str, identity: Identity | None) -> None:
        if identity is None:
            return
        try:
            if identify(path) == identity:
                os.unlink(path)
        except OSError as error:
            self._diag.debug(f"cannot remove {path}: {error.strerror}")

    # Clients that come

    def _connectable(self, _events: int) -> None:
        self.admit()  # all of them: output that is ready in the same turn is for all

    def _accept(self, listener: _socket.socket) -> bool:
        """Take one client; False if none was waiting (or none could be taken)."""
        try:
            fd, _address = listener._accept()  # type: ignore[attr-defined]  # as socket.accept() does
        except OSError as error:
            if error.errno in NO_ROOM:
                self._refuse(listener, error)
            return False
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        # The container's user has no business here, but may see the socket's directory.
        credentials = connection.getsockopt(_socket.SOL_SOCKET, SO_PEERCRED, 12)
        uid = int.from_bytes(credentials[4:8], sys.byteorder)
        if uid not in (0, os.geteuid()):
            self._diag.warn(f"refused an attach client of user {uid}")
            connection.close()
            return True
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, SEND_BUFFER)
        connection.setblocking(False)
        connection.detach()
        self._clients.append(
            AttachClient(self._loop, fd, self._backlog, self._stdin, self._buffer, self._changed)
        )
        return True

    def _refuse(self, listener: _socket.socket, problem: OSError) -> None:
        """Close a connection for which there is no descriptor, so that its client does not wait."""
        if not self._complained:
            self._complained = True
            self._diag.warn(f"cannot accept attach clients: {problem.strerror}")
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1
        refused = False
        try:
            os.close(listener._accept()[0])  # type: ignore[attr-defined]
            refused = True
        except BlockingIOError:
            refused = True
        except OSError:
            pass
        try:
            self._spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass
        if not refused:
            self._loop.forget(listener.fileno())
            self._loop.call_after(ACCEPT_PAUSE, self._listen_again)

    def _listen_again(self) -> None:
        if self._listener is not None:
            self._loop.watch(self._listener.fileno(), select.POLLIN, self._connectable)

    def _stop_listening(self) -> None:
        listener = self._listener
        if listener is None:
            return
        # Who has connected by now gets the end of file that all get; a closed listener would reset
        # it.
        self.admit()
        self._listener = None
        self._loop.forget(listener.fileno())
        listener.close()
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1

    # Clients that lag, and clients that go

    def _lag(self, size: int) -> float:
        """See to the clients that lag; how long to pause after `size` bytes."""
        pause = 0.0
        for client in self._clients:
            if client.behind > MOST_BEHIND:
                self._diag.warn("an attach client is too far behind and loses output")
                client.drop(FAREWELL)
            elif client.behind > UNPACED_BEHIND:
                pause = size / PACED_RATE
            if client.waiting:
                client.watch()
        self._forget_taken()
        return pause

    def _forget_taken(self) -> None:
        if len(self._backlog):
            end = self._backlog.end
            self._backlog.forget_before(
                min((client.position for client in self._clients if client.listening), default=end)
            )

    def _changed(self, client: AttachClient) -> None:
        if client.ended and client in self._clients:
            self._clients.remove(client)
        self._forget_taken()
        if self._on_done is not None:
            self._moved_at = monotonic()
            if not client.waiting:
                client.close()
            self._clients = [other for other in self._clients if not other.ended]
            self._check_finish()

    def _check_finish(self) -> None:
        """After finish(): is it over, and if not, when to look again?"""
        on_done = self._on_done
        if on_done is None:
            return
        now = monotonic()
        last = min(self._finish_by, self._moved_at + LONGEST_STALL)
        if self._finish_timer is not None:
            self._finish_timer.cancel()
        if self._clients and now < last:
            self._finish_timer = self._loop.call_after(last - now, self._check_finish)
            return
        if self._clients:
            self._diag.info("attach clients that do not read lose the end of the output")
        self.close()
        on_done()


def link_path(directory: str, uuid: str | None) -> str:
    """Where the link to the bundle is, given `--socket-dir-path` and the container's uuid."""
    path = os.path.join(directory, uuid) if uuid else directory
    encoded = os.fsencode(path)
    return os.fsdecode(encoded[:-1]) if len(encoded) == LONGEST_LINK else path


def make_link(path: str, bundle: str) -> Identity:
    """Make `path` a symlink to the bundle; its identity. OSError if that fails."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    os.symlink(bundle, path)
    return identify(path)


def listen_in(bundle: str) -> tuple[_socket.socket, Identity | None]:
    """Listen on the socket `attach` in the bundle; the socket and the file's identity. OSError.

    Commands that are exec'ed at the same time may share a bundle: the last one has the name then, and
    there is no identity for one whose file was taken away at once.
    """
    directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = None
    try:
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK
        listener = _socket.socket(_socket.AF_UNIX, kind, 0)
        # The file gets the socket's mode, so that it is nobody else's from its birth on.
        os.fchmod(listener.fileno(), 0o700)
        bound = listener
        fds.compete(lambda: _bind(bound, directory))
        listener.listen(LISTEN_BACKLOG)
        try:
            return listener, identify(NAME, directory)
        except FileNotFoundError:
            return listener, None  # another monitor's will be there
    except OSError:
        if listener is not None:
            listener.close()
        raise
    finally:
        os.close(directory)


def _bind(listener: _socket.socket, directory: int) -> None:
    """Bind to the name in place of what has it. OSError."""
    try:
        os.unlink(NAME, dir_fd=directory)
    except FileNotFoundError:
        pass
    # By way of the descriptor a bundle's path may be longer than the 107 bytes of an address.
    listener.bind(f"/proc/self/fd/{directory}/{NAME}")


def identify(path: str, directory: int | None = None) -> Identity:
    """Which file this is, not following a link. OSError if there is none."""
    status = os.stat(path, dir_fd=directory, follow_symlinks=False)
    return status.st_dev, status.st_ino, status.st_mtime_ns  # the number alone is soon used again
