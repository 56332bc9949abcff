"""The container's three streams, as one thing: pipes or a terminal, and the sinks behind them.

Outsiders rely on: while the runtime is at work its output is read (it can never block on a full pipe) and
held back, since nobody knows yet whether it is an error message or belongs into the log. How bytes are
pumped is stdio.py's, what a terminal is console.py's matter.
"""

from __future__ import annotations

import os

from pyconmon.stdio import Pump, Reader, Stdin, Void

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.caller import CallerTerminal
    from pyconmon.console import Console
    from pyconmon.diag import Diag
    from pyconmon.logs import Logs
    from pyconmon.loop import Loop
    from pyconmon.options import Options

STDIN, STDOUT, STDERR = 0, 1, 2  # as in the logs; attached clients know them as 2 and 3
MOST_HELD = 64 * 1024  # bytes that are held back; a more talkative runtime is logged as it speaks
HEAD, TAIL = 4096, 8192  # of the runtime's messages


class Streams:
    """Owns the descriptors on our side of the container's streams."""

    def __init__(
        self, options: Options, loop: Loop, logs: Logs, reader: Reader, diag: Diag
    ) -> None:
        self.passthrough = options.dialect == "classic" or logs.passthrough
        self.inodes: dict[int, int] = {}  # of the pipes, by stream
        self.stdin = Stdin(loop, awaited=options.terminal)
        self.stdin.on_input = self._hurry
        self.terminal_ready = not options.terminal
        self.pumps: list[Pump] = []
        self._options = options
        self._loop = loop
        self._logs = logs
        self._reader = reader
        self._diag = diag
        self._broadcast: Callable[[int, memoryview], float] | None = None
        self._attached: Callable[[], bool] = lambda: False
        self._admit: Callable[[], None] = lambda: None
        self._on_terminal: list[Callable[[int], None]] = []
        self._console: Console | None = None
        self._caller: CallerTerminal | None = None
        self._void = Void()
        self._held: list[tuple[int, bytes]] | None = []
        self._held_size = 0
        self._runtime_speaks = True
        self._head = b""
        self._tail = b""

    def listen(self, on_failure: Callable[[str], None]) -> str:
        """Be ready for a terminal; give the path of the console socket. Raises OSError."""
        from pyconmon.console import Console

        if self._options.dialect == "classic":
            from pyconmon.caller import CallerTerminal

            self._caller = CallerTerminal(self._loop, self._diag)
        self._console = Console(self._loop, self._diag, self._take_terminal, on_failure)
        return self._console.listen((os.environ.get("TMPDIR") or "/tmp").rstrip("/") or "/")

    def take(self, ours: dict[int, int]) -> None:
        """Take over our ends of the pipes, by stream, and read."""
        for stream, fd in sorted(ours.items()):
            self.inodes[stream] = os.fstat(fd).st_ino
            if stream == STDIN:
                self.stdin.open(fd, closes_with_client=not self._options.leave_stdin_open)
            else:
                self._add_pump(fd, stream).start()

    def _add_pump(self, fd: int, stream: int, *, terminal: bool = False) -> Pump:
        pump = Pump(
            self._loop,
            fd,
            stream,
            self._reader,
            lambda view: self._flow(stream, view),
            terminal=terminal,
        )
        pump.attached = self._has_clients
        pump.siblings = self.pumps
        if not terminal:
            pump.unheard = self._unheard
        self.pumps.append(pump)
        return pump

    def adopt(self, ours: dict[int, int]) -> None:
        """Go on with the pipes of a container that another monitor has created."""
        self._held = None
        self._runtime_speaks = False
        self.take(ours)

    def read_with(self, reader: Reader) -> None:
        """From now on read with this one."""
        self._reader = reader
        for pump in self.pumps:
            pump.reader = reader

    # ---- the terminal ----

    def when_terminal(self, callback: Callable[[int], None]) -> None:
        """Call `callback(master)` as soon as there is a terminal."""
        self._on_terminal.append(callback)

    def serve_pending_terminal(self) -> None:
        """The runtime has ended: a terminal that waits to be accepted is accepted now."""
        if self._console is not None and not self.terminal_ready:
            self._console.pending()

    def _take_terminal(self, master: int) -> None:
        self.terminal_ready = True
        if self._caller is not None:
            self._caller.attach(master)
            return
        stdin = os.dup(master)  # close-on-exec, as all that Python makes
        # A client's end is no end of a terminal's input: that is ^D.
        self.stdin.open(stdin, closes_with_client=False)
        self._add_pump(master, STDOUT, terminal=True).start()
        for callback in self._on_terminal:
            callback(stdin)

    def window_changed(self) -> None:
        """The caller's own terminal has a new size (classic dialect)."""
        if self._caller is not None:
            self._caller.window_changed()

    # ---- where the bytes go ----

    def connect(
        self,
        broadcast: Callable[[int, memoryview], float],
        attached: Callable[[], bool],
        admit: Callable[[], None],
    ) -> None:
        """Send output to attached clients too; `admit()` takes in those who have connected just now."""
        self._broadcast = broadcast
        self._attached = attached
        self._admit = admit

    def _hurry(self) -> None:
        """A client has said something, and may wait for the answer."""
        for pump in self.pumps:
            pump.hurry()

    def _has_clients(self) -> bool:
        return self._attached()

    def _unheard(self) -> Void | None:
        """Neither a log nor a client wants what comes now, nor is it kept for anybody."""
        kept = self._runtime_speaks or self._held is not None
        return None if kept or self._logs.wanted or self._attached() else self._void

    def _flow(self, stream: int, view: memoryview) -> float:
        if self._runtime_speaks:
            data = bytes(view)
            if stream == STDERR:
                self._remember(data)
            if self._hold(stream, data):
                return 0.0
        return self._pass_on(stream, view)

    def _pass_on(self, stream: int, view: memoryview) -> float:
        self._logs.write(stream, view)
        if self._broadcast is not None and self._attached():
            # With a terminal all of the container's output is stream 2; 3 is only the runtime's words.
            return self._broadcast(stream + 1, view)
        return 0.0

    def _remember(self, data: bytes) -> None:
        """Keep the beginning and the end of what the runtime says, however much it is."""
        room = HEAD - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-TAIL:]

    def _hold(self, stream: int, data: bytes) -> bool:
        """Keep what comes while the runtime is at work; say whether it was kept."""
        if self._held is None:
            return False
        if self._held_size + len(data) > MOST_HELD:
            self._release()
            return False
        self._held.append((stream, data))
        self._held_size += len(data)
        return True

    def _release(self) -> None:
        # Callers connect, let the container start, and expect all of its output. A short one has ended
        # before the loop came to look at the listening socket.
        self._admit()
        held, self._held = self._held, None
        for stream, data in held or ():
            self._pass_on(stream, memoryview(data))

    def messages(self) -> bytes:
        """The runtime's stderr: its beginning and its end."""
        return self._head + self._tail

    def take_messages(self) -> None:
        """The runtime has ended: read what it left, without waiting (others may hold the pipe)."""
        for pump in self.pumps:
            if pump.stream == STDERR:
                pump.drain()

    def flow(self) -> None:
        """There is a container: what was held back is its output, and the rest flows."""
        self._runtime_speaks = False
        self._release()

    # ---- the end ----

    def drain(self) -> None:
        """Take all that was written before now."""
        self.flow()
        for pump in sorted(self.pumps, key=lambda pump: pump.stream):
            pump.drain()

    def close(self) -> None:
        """Close everything; a terminal of the caller gets its settings back."""
        for pump in self.pumps:
            pump.close()
        self.stdin.close()
        self._void.close()
        if self._console is not None:
            self._console.close()
        if self._caller is not None:
            self._caller.finish()
            self._caller.restore()
