"""A new monitor for a container whose own has died: `pyconmon --recover`.

Outsiders rely on `recover()` to return only when the new monitor is in charge, and to know it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack

from . import process_tree, spawn
from .closing import Closing
from .errors import MonitorError
from .exec_session import drain
from .monitor import ProcessId

# One that was killed.
_REAPING_SECONDS = 10.0


def recover(
    monitor_path: str, environment: Mapping[str, str], bundle: str, seconds: float
) -> ProcessId | None:
    """The monitor that has taken over, or None if there was nothing to take over."""
    with Takeover(monitor_path, environment, bundle) as takeover:
        try:
            takeover.child.wait(seconds)
        finally:
            if takeover.child.poll() is None:
                process_tree.end(takeover.mark, [])
        return takeover.result()


class Takeover(Closing):
    """The new monitor's start: wait for `child` to end, kill by `mark` what is late, take the
    `result()`.
    """

    def __init__(self, monitor_path: str, environment: Mapping[str, str], bundle: str) -> None:
        self._bundle = bundle
        with ExitStack() as theirs, ExitStack() as ours:
            try:
                self._said, said = os.pipe()
                ours.callback(os.close, self._said)
                theirs.callback(os.close, said)
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                theirs.callback(os.close, null)
            except OSError as error:
                raise MonitorError(
                    f"could not recover the container of {bundle}: {error.strerror}"
                ) from error
            self.child = spawn.start(
                monitor_path,
                ["--recover", bundle],
                environment,
                descriptors=[null, null, said],
                new_group=True,
            )
            ours.pop_all()
        # The first process ends when the second one, of which nobody tells us the pid, has taken
        # over; by the mark it is found.
        self.mark = process_tree.mark(self.child.pid)

    def result(self) -> ProcessId | None:
        """As of `recover`; MonitorError with the monitor's words, or that it was too late."""
        status = self.child.poll()
        if status != 0:
            said = drain(self._said).decode("utf-8", "replace").strip()
            late = status is None or status == -signal.SIGKILL
            why = said or ("it does not answer" if late else f"status {status}")
            raise MonitorError(f"could not recover the container of {self._bundle}: {why}", said)
        for process in process_tree.members(self.mark, []):
            process_tree.unmark(process.pid)
            return process
        return None

    def close(self) -> None:
        self.child.wait(_REAPING_SECONDS)
        self.child.close()
        os.close(self._said)
