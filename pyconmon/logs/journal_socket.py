"""journald's native protocol: entries as datagrams to /run/systemd/journal/socket.

An entry is a list of fields, ``NAME=value\\n``, or for values with a newline in them ``NAME\\n``, the
length in 8 bytes (little endian), the value and ``\\n``. What is too big for a datagram goes as a
sealed memfd whose descriptor is passed instead. (systemd.io/JOURNAL_NATIVE_PROTOCOL)

Nothing blocks here but `wait`, which the caller bounds.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import sys

SOCKET = "/run/systemd/journal/socket"
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SEND_BUFFER = 8 << 20  # asked for, as libsystemd does; the kernel gives what it allows


def field(name: bytes, value: bytes) -> bytes:
    """One encoded field. A newline in the value cannot end it: no value can forge another field."""
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name, len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (name, value)


class JournalSocket:
    """A connection to the journal, made when it is needed. `send` and `connect` raise OSError."""

    __slots__ = ("_path", "_socket")

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: _socket.socket | None = None

    def connect(self) -> _socket.socket:
        connection = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        try:
            connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, SEND_BUFFER)
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        self._socket = connection
        return connection

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def send(self, entry: bytes) -> None:
        """Send one entry, connecting first if need be.

        BlockingIOError: no room now. Other errors: close() before the next try.
        """
        connection = self._socket
        if connection is None:
            connection = self.connect()
        try:
            connection.send(entry)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_large(connection, entry)

    def _send_large(self, connection: _socket.socket, entry: bytes) -> None:
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            left = memoryview(entry)
            while left:
                left = left[os.write(fd, left) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)  # journald maps it only if it cannot change
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
            connection.sendmsg([], [rights])
        finally:
            os.close(fd)

    def wait(self, seconds: float) -> bool:
        """Whether the journal has room within that time."""
        if self._socket is None:
            return True
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLOUT)
        return bool(poller.poll(seconds * 1000))

    def close(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
