"""The sd-notify relay: a container's state, passed on to the host's service manager.

Callers make the directory `notify` in the bundle and show it to the container; the socket
`notify.sock` in it is open to every user of the container. Only harmless assignments are passed on:
a container can say how it is, not which process to watch or which descriptors to keep.
"""

from __future__ import annotations

import _socket
import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.diag import Diag
    from pyconmon.loop import Loop

DIRECTORY = "notify"
NAME = "notify.sock"
LONGEST_ADDRESS = 107
LONGEST_DATAGRAM = 32768  # a longer one is left out; systemd itself takes 4096 bytes
MOST_AT_ONCE = 16  # datagrams at one wake-up: others have their turn, however much a container says
MOST_HELD = 64  # datagrams kept for a host that does not read; the oldest go first

EXACT = (b"READY=1", b"RELOADING=1", b"STOPPING=1", b"WATCHDOG=1", b"WATCHDOG=trigger")
BEGINNINGS = (b"STATUS=", b"ERRNO=", b"BUSERROR=", b"MONOTONIC_USEC=")
GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.ENOENT)


def allowed(datagram: bytes) -> bytes:
    """The lines of a datagram that may be passed on, joined by LF; empty if there is none."""
    lines = datagram.replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line for line in lines if line in EXACT or line.startswith(BEGINNINGS))


class NotifyRelay:
    """Receives in the bundle, sends to host_socket (a path, or `@name` if abstract)."""

    def __init__(self, loop: Loop, diag: Diag, bundle: str, host_socket: str) -> None:
        self._loop = loop
        self._diag = diag
        self._directory = os.path.join(bundle, DIRECTORY)
        self._host_socket = host_socket
        self._receiver: _socket.socket | None = None
        self._identity = (0, 0)
        self._sender: _socket.socket | None = None
        self._held: list[bytes] = []
        self._complained = False

    def open(self) -> None:
        """Bind the container's socket, in place of an old one. OSError on failure."""
        directory = os.open(
            self._directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        receiver = None
        try:
            try:
                os.unlink(NAME, dir_fd=directory)
            except FileNotFoundError:
                pass
            kind = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK
            receiver = _socket.socket(_socket.AF_UNIX, kind, 0)
            # The mode comes from the umask instead of a chmod after it, which could be led
            # elsewhere: container users have to be able to write to the socket, whoever they are.
            os.fchmod(receiver.fileno(), 0o777)
            old_umask = os.umask(0)
            try:
                receiver.bind(f"/proc/self/fd/{directory}/{NAME}")  # bundle paths may be long
            finally:
                os.umask(old_umask)
            status = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
            self._identity = (status.st_dev, status.st_ino)
        except OSError:
            if receiver is not None:
                receiver.close()
            raise
        finally:
            os.close(directory)
        self._receiver = receiver
        self._loop.watch(receiver.fileno(), select.POLLIN, self._readable)

    def close(self) -> None:
        """Pass on what has come, if the host takes it at once, and stop. May be called twice."""
        receiver = self._receiver
        if receiver is None:
            return
        self._readable(select.POLLIN)  # a last STOPPING=1 or STATUS=
        self._receiver = None
        self._loop.forget(receiver.fileno())
        receiver.close()
        self._drop_sender()
        self._held = []
        path = os.path.join(self._directory, NAME)
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(path)
        except OSError as error:
            self._diag.debug(f"cannot remove {path}: {error.strerror}")

    def _readable(self, _events: int) -> None:
        if self._receiver is None:
            return
        for _ in range(MOST_AT_ONCE):
            try:
                # Descriptors that come with it are dropped by the kernel.
                datagram = self._receiver.recv(LONGEST_DATAGRAM + 1)
            except OSError:
                break
            text = allowed(datagram) if len(datagram) <= LONGEST_DATAGRAM else b""
            if text:
                self._held.append(text)
        del self._held[:-MOST_HELD]
        self._pass_on()

    def _pass_on(self) -> None:
        while self._held:
            try:
                self._send(self._held[0])
            except BlockingIOError:
                self._wait()
                return
            except OSError as error:
                self._drop_sender()
                self._held = []
                if not self._complained:
                    self._complained = True
                    self._diag.warn(f"cannot notify {self._host_socket}: {error.strerror}")
                return
            del self._held[0]
        if self._sender is not None:
            self._loop.forget(self._sender.fileno())

    def _send(self, text: bytes) -> None:
        if self._sender is not None:
            try:
                self._sender.send(text)
                return
            except OSError as error:
                if error.errno not in GONE:
                    raise
                self._drop_sender()  # the host's receiver was restarted: its socket is a new one
        self._sender = connect(self._host_socket)
        self._sender.send(text)

    def _wait(self) -> None:
        """The host's queue is full: go on when it has room."""
        if self._sender is not None:
            self._loop.watch(self._sender.fileno(), select.POLLOUT, lambda _events: self._pass_on())

    def _drop_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            self._loop.forget(sender.fileno())
            sender.close()


def connect(address: str) -> _socket.socket:
    """A datagram socket connected to a notify socket of any path length. OSError."""
    sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK, 0)
    directory = -1
    try:
        name = os.fsencode(address)
        if name.startswith(b"@"):
            name = b"\0" + name[1:]
        elif len(name) > LONGEST_ADDRESS:
            folder, base = os.path.split(name)
            directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            name = b"/proc/self/fd/%d/%s" % (directory, base)
        sender.connect(name)
    except OSError:
        sender.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return sender
