"""What the world reaches a container by: attach socket, ctl and winsz fifos, sd-notify socket.

Outsiders rely on: all of them are there before the caller hears of the container. Each is a room of its
own; here they are opened, joined to the streams and closed together.
"""

from __future__ import annotations

from pyconmon.attach import AttachServer
from pyconmon.console import set_window_size
from pyconmon.control import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.diag import Diag
    from pyconmon.logs import Logs
    from pyconmon.loop import Loop
    from pyconmon.notify import NotifyRelay
    from pyconmon.options import Options
    from pyconmon.streams import Streams


class Endpoints:
    """The sockets and fifos of one container."""

    def __init__(
        self, options: Options, loop: Loop, diag: Diag, streams: Streams, logs: Logs
    ) -> None:
        self.lingering = False
        self._options = options
        self._loop = loop
        self._diag = diag
        self._streams = streams
        self._logs = logs
        self._attach: AttachServer | None = None
        self._control: Control | None = None
        self._notify: NotifyRelay | None = None
        self._size: tuple[int, int] | None = None
        self._master = -1

    def open(self) -> None:
        """Open all that this container has. Raises OSError."""
        options = self._options
        if options.sdnotify_socket is not None and not options.exec:
            from pyconmon.notify import NotifyRelay  # few containers have one

            self._notify = NotifyRelay(
                self._loop, self._diag, options.bundle or "", options.sdnotify_socket
            )
            self._notify.open()
        if options.bundle is None or self._streams.passthrough:
            return
        link = None if options.full_attach else (options.socket_dir_path, options.cuuid or "")
        self._attach = AttachServer(
            self._loop, self._diag, options.bundle, link, self._streams.stdin
        )
        self._attach.open()
        self._streams.connect(self._attach.broadcast, self._has_clients, self._attach.admit)
        self._control = Control(
            self._loop, self._diag, options.bundle, self._resize, self._logs.reopen
        )
        self._control.open()
        self._streams.when_terminal(self._terminal_arrived)

    def _has_clients(self) -> bool:
        return self._attach is not None and self._attach.has_clients

    def _resize(self, rows: int, columns: int) -> None:
        """Applied as soon as there is a terminal; without one a resize does no harm."""
        self._size = (rows, columns)
        if self._master >= 0:
            self._apply_size()

    def _terminal_arrived(self, master: int) -> None:
        self._master = master
        if self._size is not None:
            self._apply_size()

    def _apply_size(self) -> None:
        if self._size is None:
            return
        try:
            set_window_size(self._master, *self._size)
        except OSError as error:
            self._diag.warn(f"cannot set the window size: {error.strerror}")

    def finish(self) -> None:
        """The container has ended: clients see the end, those that lag a little later than others."""
        self._master = -1
        if self._notify is not None:
            self._notify.close()
        if self._control is not None:
            self._control.close()
        if self._attach is not None:
            self.lingering = True
            self._attach.finish(self._all_flushed)

    def _all_flushed(self) -> None:
        self.lingering = False
        self._loop.stop()

    def remove(self) -> None:
        """Take the attach socket away; its link goes later, after the exit command."""
        if self._attach is not None:
            self._attach.remove_socket()

    def remove_link(self) -> None:
        if self._attach is not None:
            self._attach.remove_link()

    def close(self) -> None:
        """There is no container: everything goes at once."""
        self.lingering = False
        if self._notify is not None:
            self._notify.close()
        if self._control is not None:
            self._control.close()
        if self._attach is not None:
            self._attach.close()
            self._attach.remove_socket()
