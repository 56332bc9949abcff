"""Stands where journald stands: counts what comes and throws it away, so that the sender is measured.

Only in a mount namespace of the harness's own (see workspace.py): the directory of the real journal is
covered by a tmpfs there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.workspace import INSIDE, mount_tmpfs

JOURNAL = Path("/run/systemd/journal")


class JournalSink:
    """A process that reads the journal's socket from `start()` to `stop()`."""

    def __init__(self) -> None:
        self._fork = multiprocessing.get_context("fork")
        self._count = self._fork.Value("q", 0, lock=False)
        self._process: Any = None
        self._made = False

    @staticmethod
    def possible() -> bool:
        return bool(os.environ.get(INSIDE)) and Path("/run/systemd").is_dir()

    @property
    def received(self) -> int:
        """How many bytes of messages have come since the start."""
        return int(self._count.value)

    def start(self) -> None:
        self._made = not JOURNAL.exists()
        JOURNAL.mkdir(parents=True, exist_ok=True)
        if not mount_tmpfs(JOURNAL, "mode=755"):
            self._forget_directory()
            raise OSError("cannot mount over the journal's directory")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sink:
            sink.bind(f"{JOURNAL}/socket")
            self._process = self._fork.Process(
                target=_count_bytes, args=(sink, self._count), daemon=True
            )
            self._process.start()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._process = None
        subprocess.run(["umount", "-l", str(JOURNAL)], capture_output=True)
        self._forget_directory()

    def _forget_directory(self) -> None:
        if self._made:
            with contextlib.suppress(OSError):
                JOURNAL.rmdir()


def _count_bytes(sink: socket.socket, count: Any) -> None:
    room = bytearray(1 << 18)
    total = 0
    while True:
        sink.recv_into(room)
        # The first field, either `MESSAGE=text\n` or `MESSAGE\n`, a length of eight bytes, the text.
        if room[7] == 10:
            total += int.from_bytes(room[8:16], "little")
        else:
            total += room.index(b"\n") - 8
        count.value = total
