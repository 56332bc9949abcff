"""One start of a monitor, as its caller sees it: the foreground process and our ends of the pipes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers.spawning import Process
from tests.helpers.wire import Wire


class Call:
    """One start of the monitor: its foreground process, our ends of its pipes, what it said."""

    def __init__(
        self, process: Process, sync: Wire, attach: Wire | None, start: int | None, said: Path
    ) -> None:
        self.process = process
        self.sync = sync
        self.attach_pipe = attach
        self.start_fd = start
        self._said = said

    def go(self) -> None:
        """Writes the byte that the monitor waits for on its start pipe."""
        assert self.start_fd is not None
        os.write(self.start_fd, b"\0")

    def status(self, seconds: float = 30) -> int:
        """Exit code of the foreground process."""
        return self.process.wait(seconds)

    @property
    def stderr(self) -> str:
        return self._said.with_suffix(".err").read_text(errors="surrogateescape")

    @property
    def stdout(self) -> str:
        return self._said.with_suffix(".out").read_text(errors="surrogateescape")

    def close(self) -> None:
        self.process.end()
        self.sync.close()
        if self.attach_pipe:
            self.attach_pipe.close()
        if self.start_fd is not None:
            os.close(self.start_fd)
            self.start_fd = None
