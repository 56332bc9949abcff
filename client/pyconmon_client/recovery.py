"""A new monitor for a container whose own has died: `pyconmon --recover`.

Outsiders rely on `recover()` to return only when the new monitor is in charge, and to know it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from . import process_tree, spawn
from .errors import MonitorError
from .exec_session import drain
from .monitor import ProcessId


def recover(
    monitor_path: str, environment: Mapping[str, str], bundle: str, seconds: float
) -> ProcessId | None:
    """The monitor that has taken over, or None if there was nothing to take over."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        child = spawn.start(
            monitor_path,
            ["--recover", bundle],
            environment,
            descriptors=[null, null, write],
            new_group=True,
        )
        # The first process ends when the second one, of which nobody tells us the pid, has taken
        # over; by the mark it is found.
        mark = process_tree.mark(child.pid)
        status = child.wait(seconds)
        if status is None:
            process_tree.end(mark, [])
            child.wait(seconds)
        child.close()
        if status != 0:
            said = drain(read).decode("utf-8", "replace").strip()
            why = said or ("it does not answer" if status is None else f"status {status}")
            raise MonitorError(f"could not recover the container of {bundle}: {why}", said)
    finally:
        for fd in (read, write, null):
            os.close(fd)
    for process in process_tree.members(mark, []):
        process_tree.unmark(process.pid)
        return process
    return None
