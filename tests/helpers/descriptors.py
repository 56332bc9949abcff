"""Which descriptors this process has open: what a test must not leave behind."""

from __future__ import annotations

import os


def descriptors() -> set[tuple[int, str]]:
    """Number and target of each open descriptor, without the one that the look itself needs."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue
    return found
