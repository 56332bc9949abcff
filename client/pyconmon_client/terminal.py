"""An interactive session: the user's own terminal connected to a container's.

Callers rely on `interact()`: it puts the user's terminal into raw mode, passes keys, output and
window sizes, ends when the container's streams end or the detach keys are typed, and gives the
terminal back as it was in every way out: return, exception, and signals that end or stop the
process. Nothing can do that after SIGKILL.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from .attach import LARGEST_INPUT, Attachment
from .errors import AttachError, InvalidArgumentError, NotRunningError
from .keys import DEFAULT, KeyMatcher, parse_keys

DETACHED = "detached"
ENDED = "ended"

# What may wait for a container that doesn't read. Keys beyond it are dropped with a bell, as the
# kernel's own terminals do, because reading must go on: else the detach keys would not be seen.
_MOST_PENDING = 64 * 1024
# Between two sizes sent: conmon 2.1 takes only the first of those that it finds in one read.
_RESIZE_PAUSE = 0.05
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def interact(
    attachment: Attachment,
    *,
    resize: Callable[[int, int], object] | None = None,
    detach_keys: str = DEFAULT,
    stdin: int = 0,
    stdout: int = 1,
    redraw: bool = False,
) -> str:
    """Runs a session until its end; gives "ended" or "detached".

    resize: called with (rows, columns) at the start and when the window changes; the attachment's
    own if None. detach_keys: such as "ctrl-p,ctrl-q"; empty for none. stdin, stdout: descriptors of
    the user's terminal. Without a terminal on stdin bytes are passed as they are, no keys detach,
    and the end of stdin ends the input. redraw: changes the size twice, so that a full-screen
    program which ran already draws itself again.

    Signals are handled only in the main thread; elsewhere window changes go unseen. A signal that
    would end the process does so after the terminal is restored. Does not close the attachment.
    """
    keys = parse_keys(detach_keys)
    on_terminal = os.isatty(stdin)
    session = _Session(
        attachment,
        resize or attachment.resize,
        KeyMatcher(keys if on_terminal else b""),
        stdin,
        stdout,
    )
    if not on_terminal:
        return session.run(None)
    with RawTerminal(stdin) as terminal:
        session.window_changed(redraw=redraw)
        return session.run(terminal)


class RawTerminal:
    """The terminal `fd` in raw mode for the time of a `with` block.

    `restore()` gives it back at once, and may be called twice. In the main thread, signals that end
    or stop the process are handled meanwhile, if they have their default action: a handler of the
    caller's own stays. `window` is a descriptor that becomes readable when the window's size
    changes.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            self._before = termios.tcgetattr(fd)
        except termios.error as error:
            raise InvalidArgumentError(
                f"descriptor {fd} is not a terminal: {error.args[-1]}"
            ) from error
        self.window = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            if threading.current_thread() is threading.main_thread():
                self._handle(signal.SIGWINCH, self._on_window)
                for number in _ENDING:
                    # SIGINT has Python's handler, which raises: as good as any, the block ends by
                    # it.
                    if signal.getsignal(number) == signal.SIG_DFL:
                        self._handle(number, self._on_end)
                if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
                    self._handle(signal.SIGTSTP, self._on_stop)
            self._raw()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()
        if isinstance(error, _EndedBySignal):
            os.kill(os.getpid(), error.number)

    def restore(self) -> None:
        """Puts the terminal back as it was."""
        try:
            # Not TCSAFLUSH: keys typed ahead for the shell stay. Not TCSADRAIN: a stopped terminal
            # would block.
            termios.tcsetattr(self.fd, termios.TCSANOW, self._before)
        except termios.error as error:
            # EIO: it hung up, and with it went its settings.
            if error.args[0] not in (errno.EIO, errno.ENOTTY):
                raise

    def _raw(self) -> None:
        tty.setraw(self.fd, termios.TCSANOW)

    def _leave(self) -> None:
        # Until the terminal is back, a second signal must not interrupt this; it is dealt with
        # right after.
        try:
            self.restore()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()
            window, self.window = self.window, -1
            if window >= 0:
                os.close(window)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handlers[number] = signal.signal(number, handler)

    def _on_window(self, _number: int, _frame: FrameType | None) -> None:
        os.eventfd_write(self.window, 1)

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        self.restore()
        raise _EndedBySignal(number)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here again after SIGCONT; the shell has had the terminal, perhaps with another size.
        signal.signal(number, self._on_stop)
        self._raw()
        os.eventfd_write(self.window, 1)


class _EndedBySignal(BaseException):
    """Unwinds to the end of RawTerminal's block, where the signal gets its default action."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


class _Session:
    """The loop between two terminals."""

    def __init__(
        self,
        attachment: Attachment,
        resize: Callable[[int, int], object],
        keys: KeyMatcher,
        stdin: int,
        stdout: int,
    ) -> None:
        self._attachment = attachment
        self._resize = resize
        self._keys = keys
        self._stdin = stdin
        self._stdout = stdout
        self._input_open = True
        self._pending = bytearray()
        self._sizes: list[tuple[int, int]] = []
        self._next_resize = 0.0

    def run(self, terminal: RawTerminal | None) -> str:
        while True:
            poller = select.poll()
            wants_room = select.POLLOUT if self._pending else 0
            poller.register(self._attachment, select.POLLIN | wants_room)
            # A pipe has no keys to look for, so it waits while the container doesn't read.
            if self._input_open and (terminal or len(self._pending) < _MOST_PENDING):
                poller.register(self._stdin, select.POLLIN)
            if terminal is not None:
                poller.register(terminal.window, select.POLLIN)
            ready = dict(poller.poll(self._until_resize()))
            if terminal is not None and terminal.window in ready:
                os.eventfd_read(terminal.window)
                self.window_changed()
            self._send_size()
            detached = self._stdin in ready and self._read_input(typed=terminal is not None)
            self._send_pending()
            if detached:
                return DETACHED
            if ready.get(self._attachment.fileno(), 0) & ~select.POLLOUT and self._copy_output():
                return ENDED

    def window_changed(self, *, redraw: bool = False) -> None:
        """Notes the present size for sending. Only the latest counts, so more changes need no more
        messages.
        """
        try:
            columns, rows = os.get_terminal_size(self._stdin)
        except OSError:
            return
        self._sizes = [(rows, max(1, columns - 1))] if redraw else []
        self._sizes.append((rows, columns))

    def _until_resize(self) -> int | None:
        if not self._sizes:
            return None
        return max(0, round((self._next_resize - time.monotonic()) * 1000 + 0.5))

    def _send_size(self) -> None:
        if not self._sizes or time.monotonic() < self._next_resize:
            return
        rows, columns = self._sizes.pop(0)
        self._next_resize = time.monotonic() + _RESIZE_PAUSE
        try:
            self._resize(min(rows, 1000), min(columns, 1000))
        except (NotRunningError, AttachError):
            pass  # it is ending, which the socket tells; or stopped, without use for a size

    def _read_input(self, *, typed: bool) -> bool:
        """Takes what there is; whether the detach keys were typed."""
        try:
            data = os.read(self._stdin, 8192)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # the terminal hung up
        if not data:
            self._input_open = False
            if typed:
                return True  # the user is gone; the container stays
            if not self._pending:
                self._attachment.close_stdin()
            return False
        data, detached = self._keys.feed(data)
        if typed and len(self._pending) + len(data) > _MOST_PENDING:
            os.write(self._stdout, b"\a")
        else:
            self._pending += data
        return detached

    def _send_pending(self) -> None:
        if not self._pending:
            return
        packet = bytes(self._pending[:LARGEST_INPUT])
        try:
            if self._attachment.send_now(packet):
                del self._pending[: len(packet)]
        except NotRunningError:
            # Its stdin is closed; what it still writes is wanted.
            self._pending.clear()
            self._input_open = False
            return
        if not self._pending and not self._input_open:
            self._attachment.close_stdin()

    def _copy_output(self) -> bool:
        """Passes output on; whether it has ended."""
        try:
            output = self._attachment.recv_now()
        except BlockingIOError:
            return False
        if output is None:
            return True
        view = memoryview(output.data)
        while view:
            try:
                view = view[os.write(self._stdout, view) :]
            except BlockingIOError:
                poller = select.poll()
                poller.register(self._stdout, select.POLLOUT)
                poller.poll()
        return False
