"""The JSON lines to whoever started the monitor.

Outsiders rely on: one write a message, valid JSON in valid UTF-8 whatever the runtime said, and a caller
that has gone away disturbs nothing. Which message is due when is the monitor's business.
"""

from __future__ import annotations

import os

LONGEST_MESSAGE = 8191  # bytes, before escaping: C conmon's buffer less its NUL

_ESCAPES = {
    ord('"'): '\\"',
    ord("\\"): "\\\\",
    ord("/"): "\\/",
    8: "\\b",
    9: "\\t",
    10: "\\n",
    12: "\\f",
    13: "\\r",
}


def _escape_table() -> dict[int, str]:
    table = {code: f"\\u{code:04x}" for code in (*range(0x20), 0x7F)}
    table.update(_ESCAPES)
    return table


def shorten(message: bytes, limit: int = LONGEST_MESSAGE) -> bytes:
    """Cut `message` to `limit` bytes, keeping its beginning and its end: the error is often the last line."""
    message = message.partition(b"\0")[0]
    if len(message) <= limit:
        return message
    gap = b"\n[...]\n"
    head = (limit - len(gap)) // 2
    return message[:head] + gap + message[len(message) - (limit - len(gap) - head) :]


def encode(key: str, value: int, message: bytes = b"") -> bytes:
    """Give the line for one message, byte for byte as conmon 2.2.x writes it.

    `key` is "pid", "exit_code" or "data". `message` is what the runtime said: cut at its first NUL and to
    8191 bytes; bytes that are no UTF-8 become U+FFFD (C conmon lets them through, and Python callers
    cannot parse that). An empty message is left out.
    """
    message = shorten(message)
    if not message:
        return b'{"%s": %d}\n' % (key.encode(), value)
    text = message.decode("utf-8", "replace").translate(_escape_table())
    return b'{"%s": %d, "message": "%s"}\n' % (key.encode(), value, text.encode())


class SyncPipe:
    """The write end of the pipe; owns its descriptor (-1: nobody listens)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def send(self, key: str, value: int, message: bytes = b"") -> None:
        """Write one message. A caller that is gone, or never reads, is given up; nothing is raised."""
        if self.fd < 0:
            return
        line = encode(key, value, message)
        try:
            os.set_blocking(
                self.fd, False
            )  # a caller that never reads must not hold the container up
            os.write(self.fd, line)
        except OSError:
            self.close()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass
