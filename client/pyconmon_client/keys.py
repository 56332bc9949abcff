"""Detach keys: the sequence that takes the user's terminal back from a container. Pure; no terminal
in sight.
"""

from __future__ import annotations

import re

from .errors import InvalidArgumentError

DEFAULT = "ctrl-p,ctrl-q"
_KEY = re.compile(r"ctrl-([a-z@\[\\\]^_])|([\x20-\x2b\x2d-\x7e])", re.ASCII)


def parse_keys(text: str) -> bytes:
    """The bytes of a sequence such as "ctrl-p,ctrl-q": keys between commas, each one character or
    ctrl- and one.

    Empty text is no sequence: nothing detaches. InvalidArgumentError for anything else.
    """
    if not text:
        return b""
    keys = bytearray()
    for key in text.split(","):
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidArgumentError(
                f"detach keys: {key!r} in {text!r}; give single characters, or ctrl- and a letter "
                "or one of @[\\]^_, between commas"
            )
        keys.append(ord(match[1].upper()) & 0x1F if match[1] else ord(match[2]))
    return bytes(keys)


class KeyMatcher:
    """Finds the sequence in typed bytes, however they are cut into reads.

    Bytes that may be its beginning are held back until the next ones show whether they are.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what to pass on, whether the sequence is complete). What follows the sequence is
        dropped.
        """
        keys = self._keys
        if not keys:
            return data, False
        data = self._held + data
        position = data.find(keys)
        if position >= 0:
            self._held = b""
            return data[:position], True
        for length in range(min(len(keys) - 1, len(data)), 0, -1):
            if data.endswith(keys[:length]):
                self._held = data[-length:]
                return data[:-length], False
        self._held = b""
        return data, False
