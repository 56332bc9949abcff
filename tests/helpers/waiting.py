"""wait_until(): tests wait for conditions, never for times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 20, what: str = "the condition") -> T:
    """The first true value of condition(); AssertionError after so many seconds without one.

    An OSError of the condition (a file that is not there yet) counts as not true.
    """
    deadline = time.monotonic() + seconds
    pause = 0.002
    problem: OSError | None = None
    while True:
        try:
            value = condition()
        except OSError as error:
            problem = error
        else:
            problem = None
            if value:
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}" + _because(problem))
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _because(problem: OSError | None) -> str:
    return f" ({problem})" if problem else ""


def gone(pid: int) -> bool:
    """No process of that pid any more, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
