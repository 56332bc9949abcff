"""Running pyconmon's loop in a test, for rooms that are tested by themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from pyconmon.diag import Diag
from pyconmon.loop import Loop

T = TypeVar("T")


class Messages(Diag):
    """A Diag that keeps what it is told: `said` holds (level, text)."""

    def __init__(self) -> None:
        super().__init__("trace")
        self.said: list[tuple[int, str]] = []

    def _say(self, level: int, text: str) -> None:
        self.said.append((level, text))


def serve_until(
    loop: Loop, condition: Callable[[], T], seconds: float = 20, what: str = "the condition"
) -> T:
    """Run the loop until condition() is true and return its value; AssertionError after so long."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"served {seconds} s in vain for {what}"
        loop.turn(0.02)


def wake_ups(loop: Loop, seconds: float = 0.15) -> int:
    """How often the loop wakes in that time. What is waiting already is served first."""
    for _ in range(20):
        loop.turn(0)
    count = -1
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        loop.turn(left)
        count += 1
    return count


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process and what they are, to see that none is left behind.

    Without those of loops, which go when Python gets to it.
    """
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own descriptor
            continue
        if target != "anon_inode:[eventpoll]":
            found[int(name)] = target
    return found
