"""Checks of single values that several of this package's inputs share.

Each gives the value back in its final form, or raises InvalidArgumentError with one line: which
value, what it was, what would be right.
"""

from __future__ import annotations

import re

from .errors import InvalidArgumentError

_SIZE = re.compile(r"(\d+)([kmgt]?)(i?b)?", re.ASCII | re.IGNORECASE)
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", re.ASCII)


def check_text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{what}: {value!r} is {type(value).__name__}; give text")
    if "\0" in value:
        raise InvalidArgumentError(
            f"{what}: {value!r} holds a NUL character, which the kernel can't pass on"
        )
    return value


def check_absolute(what: str, path: object) -> str:
    text = check_text(what, path)
    if not text.startswith("/"):
        raise InvalidArgumentError(
            f"{what}: {text!r} is not absolute; give a path in the container that begins with /"
        )
    return text


def check_hostname(name: object) -> str:
    text = check_text("hostname", name)
    if not _HOSTNAME.fullmatch(text):
        raise InvalidArgumentError(f"hostname: {text!r}; give 1 to 64 letters, digits, '-' or '.'")
    return text


def check_size(what: str, size: object) -> int:
    """Bytes from a number or from text such as "64m"; k, m, g and t are powers of 1024."""
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise InvalidArgumentError(
            f"{what}: {size!r} is {type(size).__name__}; give bytes, or text such as '64m'"
        )
    if isinstance(size, int):
        number = size
    else:
        match = _SIZE.fullmatch(size.strip())
        if match is None:
            raise InvalidArgumentError(
                f"{what}: {size!r} is not a size; give bytes, or text such as '64m'"
            )
        number = int(match[1]) << (10 * " kmgt".index(match[2].lower() or " "))
    if not 0 < number < 1 << 63:
        raise InvalidArgumentError(
            f"{what}: {size!r} is out of range; give more than 0 and less than 2**63 bytes"
        )
    return number
