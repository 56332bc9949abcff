"""A wall clock that jumps for the processes that are given its environment, and for nobody else.

What is put before their C library (shifted_clock.c) shifts the time of day for them. libfaketime would do
that too, but with it clock_nanosleep() fails in Debian 12, and killed processes leave shared memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

from tests.helpers.monitors import HELPERS
from tests.helpers.need import need_program

DAY = timedelta(days=1)
YEAR = timedelta(days=365)


class WallClock:
    """environment: variables for who is to live by it. Keeps its files in `directory`; right at first."""

    def __init__(self, directory: Path) -> None:
        self._offset = timedelta()
        self._file = directory / "clock"
        self._file.write_bytes(bytes(8))
        library = directory / "clock.so"
        subprocess.run(
            [need_program("cc"), "-O1", "-Wall", "-Werror", "-fPIC", "-shared", "-o", library,
             HELPERS / "shifted_clock.c"],
            check=True,
        )  # fmt: skip
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self._file)}

    def jump(self, by: timedelta) -> None:
        """Set it forward, or back."""
        self.set(self._offset + by)

    def set(self, offset: timedelta) -> None:
        """So far from the right time."""
        self._offset = offset
        shift = round(self._offset.total_seconds()) * 10**9
        fd = os.open(self._file, os.O_WRONLY)
        try:
            os.write(fd, shift.to_bytes(8, sys.byteorder, signed=True))
        finally:
            os.close(fd)

    def now(self) -> datetime:
        """What it shows, with a time zone."""
        return datetime.now().astimezone() + self._offset
