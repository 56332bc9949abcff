"""The user's streams connected to a container's, and signals passed on to it.

With a terminal that is the library's `interact`; without, bytes are passed as they are: output by
this thread, input by one beside it. Output can be kept instead of printed, for --json.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..attach import Attachment, Output
from ..control import LARGEST
from ..errors import NotRunningError, PyconmonError
from ..exec_sync import MAX_OUTPUT, Capture
from ..terminal import DETACHED, interact

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_NUMBERS = {"stdout": 1, "stderr": 2}


class Kept:
    """Output that is kept for --json, 16 MiB a stream."""

    def __init__(self) -> None:
        self._streams = {"stdout": Capture(MAX_OUTPUT), "stderr": Capture(MAX_OUTPUT)}

    def write(self, piece: Output) -> None:
        self._streams[piece.stream].add(piece.data)

    def as_json(self) -> dict[str, object]:
        """As text; bytes that are no UTF-8 become U+FFFD."""
        found: dict[str, object] = {
            name: bytes(stream.data).decode("utf-8", "replace")
            for name, stream in self._streams.items()
        }
        found["truncated"] = any(stream.truncated for stream in self._streams.values())
        return found


def write_through(piece: Output) -> None:
    """To our own stdout or stderr. BrokenPipeError if nobody reads it any more."""
    view = memoryview(piece.data)
    while view:
        view = view[os.write(_NUMBERS[piece.stream], view) :]


def copy_output(pieces: Iterable[Output], write: Callable[[Output], None]) -> None:
    for piece in pieces:
        write(piece)


def feed(write: Callable[[bytes], object], close: Callable[[], object]) -> None:
    """Pass our standard input on, in a thread that the process's end ends."""

    def run() -> None:
        try:
            while data := os.read(0, 32768):
                write(data)
        except (OSError, ValueError, PyconmonError):
            return  # who should take it has ended
        try:
            close()
        except (OSError, ValueError, PyconmonError):
            pass

    threading.Thread(target=run, daemon=True, name="stdin").start()


def converse(
    attachment: Attachment,
    *,
    terminal: bool,
    stdin: bool,
    detach_keys: str,
    write: Callable[[Output], None] = write_through,
    redraw: bool = False,
    begin: Callable[[], object] = lambda: None,
) -> bool:
    """Until the streams end, True, or the user detaches, False. `begin` is called first."""
    if terminal and stdin and os.isatty(0):
        begin()
        with _flushed():
            how = interact(attachment, detach_keys=detach_keys, redraw=redraw)
        return how != DETACHED
    if stdin:
        feed(attachment.send, attachment.close_stdin)
    begin()
    if terminal and os.isatty(1):
        columns, rows = os.get_terminal_size(1)
        try:
            attachment.resize(min(rows, LARGEST), min(columns, LARGEST))
        except (NotRunningError, PyconmonError):
            pass
    copy_output(attachment, write)
    return True


@contextmanager
def _flushed() -> Iterator[None]:
    sys.stdout.flush()
    yield


@contextmanager
def signals_passed_on(send: Callable[[int], object]) -> Iterator[None]:
    """Signals that would end us go to the container, which decides; a second one kills it.

    The first process of a container ignores signals that it does not handle, so one is not enough
    in general.
    """
    seen = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        send(number if seen == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
