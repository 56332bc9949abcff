"""Surviving our own death: the state file beside the container, and the journal.

Outsiders rely on: the state file is versioned JSON, replaced atomically, and holds all that another
monitor needs to go on (`pyconmon --recover`, docs/recovery.md). A container that ends in the ordinary way
leaves none behind. What to do with a dead monitor's state is recovery.py's matter.
"""

from __future__ import annotations

import os
from time import CLOCK_BOOTTIME, clock_gettime

from pyconmon import fds, linux
from pyconmon.journal import Journal, as_reader
from pyconmon.stdio import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyconmon.diag import Diag
    from pyconmon.logs import Logs
    from pyconmon.options import Options
    from pyconmon.process import Process

STATE_FILE = "pyconmon-state.json"
JOURNAL_FILE = "pyconmon-journal"
VERSION = 1


def directory_of(options: Options) -> str | None:
    """Where a container's state lives: its persist dir, else its bundle; None if it has no state."""
    if options.exec or options.no_recovery:
        return None
    return options.persist_dir or options.bundle


class Survival:
    """Keeps what another monitor would need. A failure here never takes the container with it."""

    def __init__(self, directory: str, words: list[str], process: Process, diag: Diag) -> None:
        self.directory = directory
        self.state: dict[str, Any] = {
            "version": VERSION,
            "phase": "running",
            "argv": words,
            "cwd": os.getcwd(),
            "environment": [f"{name}={value}" for name, value in process.environment.items()],
            "oom_score": (process.oom_score or b"").decode("ascii", "replace").strip(),
        }
        self._journal: Journal | None = None
        self._diag = diag
        self.reader: Reader = Reader()

    def container_created(
        self, pid: int, inodes: list[int], logs: Logs, journal: Journal | None
    ) -> Reader:
        """A container is there: from now on it can be picked up. Gives what its streams are read with."""
        if journal is None:
            try:
                journal = Journal(os.path.join(self.directory, JOURNAL_FILE), create=True)
            except OSError as error:
                self._diag.warn(
                    f"no recovery for this container: {self.directory}: {error.strerror}"
                )
                return self.reader
        self._journal = journal
        logs.checkpoint = journal.checkpoint
        logs.timestamp = journal.timestamp
        self.state.update(
            container_pid=pid,
            container_start=linux.start_time(pid),
            monitor_pid=os.getpid(),
            monitor_start=linux.start_time(os.getpid()),
            pipes=inodes,
            begun=clock_gettime(CLOCK_BOOTTIME),
        )
        self._save()
        return as_reader(journal)

    def hold(self, journal: Journal) -> None:
        """The container has ended before anybody could go on with it; its reports are owed."""
        self._journal = journal

    def container_ended(self, code: int, timed_out: bool) -> None:
        """The exit code is known; should we die before it is reported, the next one can."""
        if self._journal is not None:
            self.state.update(phase="ended", code=code, timed_out=timed_out)
            self._save()

    def reported(self) -> None:
        """All files are written; what may be left is the exit command."""
        if self._journal is not None and "exit-command" in " ".join(self.state["argv"]):
            self.state["phase"] = "reported"
            self._save()

    def over(self, reason: str | None = None) -> None:
        """Nothing is owed any more. With a reason (something was lost) the state file stays and tells it."""
        if self._journal is None:
            return
        if reason is None:
            try:
                os.unlink(os.path.join(self.directory, STATE_FILE))
            except OSError:
                pass
        else:
            self.state.update(phase="lost", reason=reason)
            self._save()
        self._journal.close(remove=True)
        self._journal = None

    def _save(self) -> None:
        try:
            data = _json(self.state).encode("ascii") + b"\n"
            fds.replace_file(os.path.join(self.directory, STATE_FILE), data, 0o600)
        except OSError as error:
            self._diag.warn(f"cannot keep {self.directory}/{STATE_FILE}: {error.strerror}")


def _json(value: Any) -> str:
    """Write JSON; the json module would cost each monitor 5 ms and its memory."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(map(_json_character, value)) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(key)}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_json, value)) + "]"
    return repr(value)


def _json_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    if 0x20 <= code < 0x7F:
        return character
    if code > 0xFFFF:  # a pair of surrogates, as JSON wants it
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
