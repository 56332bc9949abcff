"""The console socket: how a runtime hands over the terminal that it made for the container.

Runtimes rely on a listening stream socket whose path fits their `connect`, and send one message
with the terminal's master descriptor. The socket file is gone when a descriptor has come, and at
the latest with close(). Copying the terminal's bytes is not done here.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.diag import Diag
    from pyconmon.loop import Loop

LONGEST_SOCKET_PATH = 107  # sun_path holds 108 bytes with the final NUL
SHORT_DIRECTORIES = ("/tmp", "/run", "/dev/shm")
BACKLOG = 128
NAME_SIZE = 4095  # the message's bytes are the terminal's name, which nobody needs
DESCRIPTOR_SIZE = 4
MOST_DESCRIPTORS = (
    16  # one is wanted; what a confused runtime sends beyond it is received to be closed
)


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of the terminal `fd` in characters (0..65535 each). OSError if it is none."""
    import termios  # only needed with a terminal

    sizes = (rows, columns, 0, 0)  # the last two would be pixels
    fcntl.ioctl(fd, termios.TIOCSWINSZ, b"".join(size.to_bytes(2, sys.byteorder) for size in sizes))


def end_lines_with_cr_lf(fd: int) -> None:
    """Make the terminal write CR LF for LF, which runtimes switch off and callers expect."""
    import termios  # only needed with a terminal

    attributes = termios.tcgetattr(fd)
    attributes[1] |= termios.ONLCR
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def socket_paths(directory: str) -> list[str]:
    """Where to try to bind: in `directory`, or, if the path is too long, in short directories."""
    # Not from tempfile, which is slow to import. The socket's mode keeps others out: no need of
    # secrecy.
    name = "conmon-term." + os.urandom(3).hex().upper()
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return [path]
    return [os.path.join(short, name) for short in SHORT_DIRECTORIES]


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among the control messages of a recvmsg."""
    found = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            for at in range(0, len(data) - DESCRIPTOR_SIZE + 1, DESCRIPTOR_SIZE):
                found.append(
                    int.from_bytes(data[at : at + DESCRIPTOR_SIZE], sys.byteorder, signed=True)
                )
    return found


class Console:
    """Waits for the one connection and its descriptor.

    on_terminal(fd) gets the master, which it owns from then on: close-on-exec, non-blocking, CR LF
    set. on_error(text) is called instead if a connection brings no descriptor. At most one of them
    is called, once.
    """

    def __init__(
        self,
        loop: Loop,
        diag: Diag,
        on_terminal: Callable[[int], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._diag = diag
        self._on_terminal = on_terminal
        self._on_error = on_error
        self._listener: _socket.socket | None = None
        self._connection: _socket.socket | None = None
        self._path: str | None = None

    def listen(self, directory: str) -> str:
        """Bind the socket in `directory` (or a shorter one); its path. OSError on failure."""
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK, 0)
        try:
            # The file gets the socket's mode, so that nobody else may connect from its birth on.
            os.fchmod(listener.fileno(), 0o700)
            self._path = self._bind(listener, directory)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            self._remove_path()
            raise
        self._listener = listener
        self._loop.watch(listener.fileno(), select.POLLIN, self._connectable)
        return self._path

    def pending(self) -> None:
        """Serve what is waiting, without blocking.

        To be called when the runtime has ended: its connection may not have been served yet.
        """
        if self._listener is not None:
            self._connectable(select.POLLIN)
        if self._connection is not None:
            self._receivable(select.POLLIN)

    def close(self) -> None:
        """Stop waiting and remove the socket file. May be called twice."""
        self._close_listener()
        self._close_connection()

    @staticmethod
    def _bind(listener: _socket.socket, directory: str) -> str:
        failure = OSError(errno.EADDRINUSE, "no free name for the console socket", directory)
        for _attempt in range(100):
            for path in socket_paths(directory):
                try:
                    listener.bind(os.fsencode(path))
                    return path
                except OSError as error:
                    failure = error
            if failure.errno != errno.EADDRINUSE:
                break
        failure.filename = failure.filename or directory
        raise failure

    def _connectable(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._close_listener()
            self._on_error(f"cannot accept the console connection: {error.strerror}")
            return
        self._close_listener()
        self._connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        self._connection.setblocking(False)
        self._loop.watch(fd, select.POLLIN, self._receivable)

    def _receivable(self, _events: int) -> None:
        if self._connection is None:
            return
        try:
            _name, ancillary, _flags, _address = self._connection.recvmsg(
                NAME_SIZE,
                _socket.CMSG_SPACE(MOST_DESCRIPTORS * DESCRIPTOR_SIZE),
                _socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._close_connection()
            self._on_error(f"cannot receive the terminal: {error.strerror}")
            return
        self._close_connection()
        master, *others = descriptors_in(ancillary) or [-1]
        for fd in others:
            os.close(fd)
        if master < 0:
            self._on_error("the runtime's console message has no terminal in it")
            return
        os.set_blocking(master, False)
        try:
            end_lines_with_cr_lf(master)
        except Exception as error:  # termios.error is no OSError
            self._diag.warn(f"cannot set up the terminal: {error}")
        self._on_terminal(master)

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.forget(listener.fileno())
            listener.close()
        self._remove_path()

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.forget(connection.fileno())
            connection.close()

    def _remove_path(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            try:
                os.unlink(path)
            except OSError as error:
                self._diag.debug(f"cannot remove {path}: {error.strerror}")
