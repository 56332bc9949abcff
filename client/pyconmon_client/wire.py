"""Reading a monitor's sync pipe: JSON lines, each with one number and perhaps a message.

Strict and bounded: what is not a message of the protocol is an error that quotes it, and a monitor
that never ends its line cannot make the caller's memory grow. Out of scope: waiting; callers poll.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from .errors import SyncPipeError

# A monitor's longest message is 8 KiB of text, each byte at most six bytes long when escaped.
LINE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """One line: `key` is "pid", "exit_code" or "data"; `message` is "" where there was none."""

    key: str
    value: int
    message: str = ""


def parse(line: bytes) -> Message:
    """One line without its LF, or SyncPipeError."""
    try:
        # The C program passes bytes of the runtime's stderr on unchecked.
        loaded = json.loads(line.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError) as error:
        raise SyncPipeError(
            f"could not read the monitor's message {_quoted(line)}: {error}"
        ) from None
    if isinstance(loaded, dict):
        text = loaded.get("message", "")
        for key in ("pid", "exit_code", "data"):
            value = loaded.get(key)
            if type(value) is int and isinstance(text, str):
                return Message(key, value, text)
    raise SyncPipeError(
        f"could not read the monitor's message {_quoted(line)}: no pid, exit_code or data in it"
    )


class SyncReader:
    """The caller's end of a sync pipe, non-blocking. Does not own the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.eof = False
        self._buffer = b""
        os.set_blocking(fd, False)

    def read(self) -> list[Message]:
        """Everything that has arrived; sets `eof` when the monitor has closed its end."""
        messages: list[Message] = []
        while not self.eof:
            try:
                data = os.read(self.fd, 8192)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self._buffer += data
            if not data:
                self.eof = True
                # Go's decoder does not need the LF, so neither must we.
                self._buffer += b"\n"
            messages += self._take_lines()
        return messages

    def _take_lines(self) -> list[Message]:
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > LINE_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
            raise SyncPipeError(
                f"could not read the monitor's message: longer than {LINE_LIMIT} bytes"
            )
        return [parse(line) for line in lines if line.strip()]


def _quoted(line: bytes) -> str:
    return repr(line[:200]) + ("..." if len(line) > 200 else "")
