"""Memory cgroups of the tests' own, v1 or v2: small ones, in which the kernel has to kill somebody."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.helpers.need import need
from tests.helpers.session import TOKEN
from tests.helpers.waiting import wait_until

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")

# Takes memory bit by bit until somebody is killed, and says so.
_HOG = """
import mmap, sys, time
def kills():
    with open(sys.argv[1]) as file:
        return [line for line in file if line.startswith("oom_kill ")]
before = kills()
taken = []
while kills() == before:
    taken.append(mmap.mmap(-1, 65536))
    for page in range(0, 65536, 4096):
        taken[-1][page] = 1
print("killed", flush=True)
time.sleep(1000)
"""


class MemoryCgroup:
    """A cgroup below this run's parent, with room for `limit` bytes (None: any). A context manager."""

    def __init__(self, name: str, limit: int | None = None) -> None:
        self.v1 = (_V1 / "memory.limit_in_bytes").exists()
        root = _V1 if self.v1 else _V2
        parent = root / TOKEN
        try:
            parent.mkdir(exist_ok=True)
            for each in [] if self.v1 else [root, parent]:
                (each / "cgroup.subtree_control").write_text("+memory")
            self.path = parent / name
            self.path.mkdir()
        except OSError as error:
            need(False, f"the right to make memory cgroups ({error})")
        try:
            if limit is not None:
                self._limit(limit)
        except BaseException:
            self.path.rmdir()
            raise

    def _limit(self, limit: int) -> None:
        names = (
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if self.v1 else ["memory.max"]
        )
        for name in names:
            if (self.path / name).exists():  # swap is not counted everywhere
                (self.path / name).write_text(str(limit))
        if not self.v1 and (self.path / "memory.swap.max").exists():
            (self.path / "memory.swap.max").write_text("0")

    @property
    def _events(self) -> Path:
        return self.path / ("memory.oom_control" if self.v1 else "memory.events")

    @property
    def procs(self) -> Path:
        """Who writes its pid there is in it."""
        return self.path / "cgroup.procs"

    def members(self) -> set[int]:
        """The processes in it."""
        return set(map(int, self.procs.read_text().split()))

    def kills(self) -> int:
        """How often the kernel has killed a process here for want of memory."""
        for line in self._events.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        need(False, "a kernel that counts its OOM kills (4.13)")
        return 0

    def press(self) -> int:
        """Have a process in it want memory until the kernel kills; how many others that has cost.

        The kernel may kill that process as well, before what the first one had is free.
        """
        before = self.kills()
        script = f'echo $$ >{self.procs} && exec "$@"'
        words = [sys.executable, "-I", "-S", "-c", _HOG, str(self._events)]
        with subprocess.Popen(
            ["/bin/sh", "-c", script, "hog", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as hog:
            try:
                assert hog.stdout is not None
                survived = hog.stdout.readline() == b"killed\n"
                kills = self.kills() - before
            finally:
                hog.kill()
        return kills - (not survived)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.members(), what=f"an empty {self.path}")
        self.path.rmdir()
