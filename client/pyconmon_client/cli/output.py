"""What the command prints: tables, JSON, errors, and a status line for what takes over a second.

Colours and moving things only on a terminal; what goes into a pipe or a file is plain text that does
not depend on its width.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import ExecSyncError

# runc's errors, as its logger writes them.
_LOGGED = re.compile(r'time="[^"]*" level=\w+ msg="((?:[^"\\]|\\.)*)"')
_PATIENCE = 1.0  # seconds without a word


def one_line(error: BaseException) -> str:
    """An error's text on one line, whatever the runtime has put into it."""
    # An ExecSyncError quotes the output, which the user has seen already.
    if isinstance(error, ExecSyncError):
        return one_line(error.cause) if isinstance(error.cause, Exception) else _joined(error.cause)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{_joined(str(error.filename))}: {error.strerror}"
    return _joined(str(error) or type(error).__name__)


def _joined(value: object) -> str:
    """Without what loggers put around a message, on one line."""
    text = _LOGGED.sub(lambda match: re.sub(r"\\(.)", r"\1", match[1]), str(value))
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def error_line(text: str) -> str:
    name = "pyconmon-client:"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        name = f"\033[1;31m{name}\033[0m"
    return f"{name} {text}"


def print_json(value: Any) -> None:
    """Indented for people, on one line for programs."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, default=str))
    sys.stdout.flush()


def print_json_line(value: Any) -> None:
    """One of a sequence of values, a line each."""
    print(json.dumps(value, default=str), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: coloured and fitted to a terminal, else plain columns of full length."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(columns, rows))
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # Where it is narrow, these give way, and the numbers are whole.
        table.add_column(name, no_wrap=name not in ("NAME", "COMMAND"), overflow="ellipsis")
    for row in rows:
        table.add_row(
            *(Text(cell, _colour(cell), no_wrap=True, overflow="ellipsis") for cell in row)
        )
    return table


def _colour(cell: str) -> str:
    return _COLOURS.get(cell.partition(" ")[0], "")


_COLOURS = {
    "running": "green",
    "created": "cyan",
    "stopped": "yellow",
    "lost": "red",
    "gone": "red",
}


@contextmanager
def status(text: str) -> Iterator[None]:
    """Around what may take long: after a second a terminal shows what is going on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    done = threading.Event()

    def show() -> None:
        if not done.wait(_PATIENCE):
            with Console(stderr=True).status(text):
                done.wait()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def size(count: float | None) -> str:
    """Bytes for people, in powers of 1024."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age(begin: float, end: float | None = None) -> str:
    """A span of time (Unix times) for people, in its two largest units."""
    seconds = max(0, int((time.time() if end is None else end) - begin))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"
