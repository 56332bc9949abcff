"""What the tests of the log drivers share: a plain model of the format, options, a recording diag."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

HEAD = 45


class Heard:
    """Stands in for pyconmon.diag.Diag and keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def error(self, text: str) -> None:
        self.texts.append(("error", text))

    def warn(self, text: str) -> None:
        self.texts.append(("warn", text))

    def info(self, text: str) -> None:
        self.texts.append(("info", text))

    def debug(self, text: str) -> None:
        self.texts.append(("debug", text))

    def trace(self, text: str) -> None:
        self.texts.append(("trace", text))

    def of(self, level: str) -> list[str]:
        return [text for kind, text in self.texts if kind == level]


def log_options(path: object = None, **changes: Any) -> Any:
    """The part of pyconmon.options.Options that the logs look at."""
    values: dict[str, Any] = {
        "log_drivers": (("k8s-file", str(path)),) if path is not None else (),
        "log_size_max": -1,
        "log_global_size_max": -1,
        "log_rotate": False,
        "log_max_files": 1,
        "log_tag": None,
        "log_labels": (),
        "no_container_partial_message": False,
        "cid": "0123456789abcdef",
        "name": None,
    }
    return SimpleNamespace(**(values | changes))


def pieces(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of one read as (tag, data), a record at a time: slow and plain."""
    result = []
    while data:
        end = data.find(b"\n", 0, 8192) + 1
        size = end or min(len(data), 8192)
        result.append((b"F" if end else b"P", data[:size]))
        data = data[size:]
    return result


def records(data: bytes, head: bytes) -> list[bytes]:
    """The text of the records of one read; head is the 43 bytes before the tag."""
    return [
        head + tag + b" " + text + (b"" if tag == b"F" else b"\n") for tag, text in pieces(data)
    ]


def logged(content: bytes, stream: bytes = b"stdout") -> bytes:
    """A stream's bytes rebuilt from a log, as a reader would; every record must be well formed."""
    result = b""
    assert not content or content.endswith(b"\n"), content[-100:]
    for line in content.split(b"\n")[:-1]:
        stamp, name, tag, text = line.split(b" ", 3)
        assert len(stamp) == 35 and stamp[19:20] == b"." and tag in (b"F", b"P"), line[:80]
        assert name in (b"stdout", b"stderr"), line[:80]
        assert len(text) + (tag == b"F") <= 8192
        if name == stream:
            result += text + (b"\n" if tag == b"F" else b"")
    return result


def in_child(function: Callable[[], None]) -> int:
    """Run function in a forked child; its exit status (0 if it returned, 97 if it raised)."""
    pid = os.fork()
    if not pid:
        status = 97
        try:
            function()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
