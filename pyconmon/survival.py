"""Surviving our own death: the state file beside the container, and the journal.

Outsiders rely on: the state file is versioned JSON, replaced atomically, and holds all that another
monitor needs to go on (`pyconmon --recover`, docs/recovery.md). A container that ends in the ordinary way
leaves none behind. What to do with a dead monitor's state is recovery.py's matter.
"""

from __future__ import annotations

import os
from time import CLOCK_BOOTTIME, clock_gettime

from pyconmon import fds, linux
from pyconmon.journal import Journal, as_reader, locked
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


class Survival:
    """Keeps what another monitor would need. A failure here never takes the container with it.

    With `--no-recovery` nothing is kept; only what an earlier container has left here goes.

    The state's `phase` is "running", "ended" (the code is known, reports are owed), "reported" (the exit
    command is owed) or "lost" (nothing is owed, but `reason` tells what could not be found out).
    """

    def __init__(
        self, directory: str, words: list[str], options: Options, process: Process, diag: Diag
    ) -> None:
        self.directory = directory
        self.lost: str | None = None
        # Which exit files there were at the end: another one is a dead monitor's report.
        self.before: dict[str, list[int] | None] | None = None
        self.state: dict[str, Any] = {
            "version": VERSION,
            "phase": "running",
            "argv": words,
            "cwd": _working_directory(),
            "environment": [f"{name}={value}" for name, value in process.environment.items()],
            "oom_score": (process.oom_score or b"").decode("ascii", "replace").strip(),
        }
        self.unwritten: list[str] = []  # exit files that could not be written
        self.owes_command = options.exit_command is not None
        self._journal: Journal | None = None
        self._saved: tuple[int, int] | None = None  # which file our state is in
        # What is kept here of an earlier container, perhaps of this very name, must not be reported once
        # ours is there: its lock is held from now on. It counts again if ours cannot be created.
        self._earlier = -1
        try:
            self._earlier = locked(os.path.join(directory, JOURNAL_FILE), create=False)
        except OSError:  # there is none as a rule, or it has its monitor
            pass
        self._options = options
        self._diag = diag

    def container_created(self, pid: int, inodes: dict[int, int], logs: Logs) -> Reader | None:
        """A container is there: from now on it can be picked up. Gives what to read its streams with."""
        earlier, self._earlier = self._earlier, -1
        if earlier >= 0:
            self._remove(STATE_FILE)
        if self._options.no_recovery:
            if earlier >= 0:
                self._remove(JOURNAL_FILE)
                os.close(earlier)
            return None
        try:
            path = os.path.join(self.directory, JOURNAL_FILE)
            journal = Journal(path, create=True, lock=earlier)
        except OSError as error:
            self._diag.warn(f"no recovery for this container: {self.directory}: {error.strerror}")
            return None
        self.state.update(
            container_pid=pid,
            container_start=linux.start_time(pid),
            boot=linux.boot_id(),
            pipes={str(stream): inode for stream, inode in inodes.items()},
            begun=clock_gettime(CLOCK_BOOTTIME),
        )
        logs.tell(journal)
        return self._use(journal, logs)

    def take_over(self, state: dict[str, Any], journal: Journal, logs: Logs) -> Reader:
        """Go on with what a dead monitor has kept."""
        self.state.update(state)
        before = state.get("exit_files")
        self.before = before if isinstance(before, dict) else None
        if state.get("command_ran") is True:
            self.owes_command = False
        return self._use(journal, logs)

    def _use(self, journal: Journal, logs: Logs) -> Reader:
        self._journal = journal
        logs.checkpoint = journal.checkpoint
        logs.timestamp = journal.timestamp
        logs.keep = journal
        self.state.update(monitor_pid=os.getpid(), monitor_start=linux.start_time(os.getpid()))
        self._save()
        return as_reader(journal)

    def container_ended(self, code: int, timed_out: bool) -> None:
        """The exit code is known; should we die before it is reported, the next one can."""
        if self._journal is not None:
            self.state.update(phase="ended", code=code, timed_out=timed_out)
            if "exit_files" not in self.state:
                from pyconmon.exit_report import present_files  # its other half is the monitor's

                self.state["exit_files"] = present_files(self._options)
            self._save()

    def reported(self) -> None:
        """All files are written; what may be left is the exit command."""
        if self._journal is None:
            return
        if self.owes_command:
            if not self.unwritten:
                self.state["phase"] = "reported"
                self._save()
        else:
            self.over()

    def over(self) -> None:
        """Nothing is owed any more. Where something was lost the state file stays and tells it.

        Exit files that could not be written are still owed: `--recover` tries again.
        """
        if self._journal is None:
            return
        if self.unwritten:
            reason = "could not be written: " + ", ".join(self.unwritten)
            self.state.update(phase="ended", reason=reason, command_ran=True)
            self._save()
            self.let_go()
            return
        if self.lost is not None:
            self.state.update(phase="lost", reason=self.lost)
            self._save()
        elif self._saved == self._present():
            self._remove(STATE_FILE)
        self._journal.close(remove=self._journal.has_name())
        self._journal = None

    @property
    def lock(self) -> int:
        """The descriptor that holds the lock; -1: there is none."""
        return -1 if self._journal is None else self._journal.fd

    def let_go(self) -> None:
        """Somebody else sees to the rest (or nobody can): the lock goes, the files stay."""
        self._earlier = fds.close(self._earlier)
        if self._journal is not None:
            self._journal.close(remove=False)
            self._journal = None

    def _remove(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self.directory, name))
        except OSError:
            pass

    def _present(self) -> tuple[int, int] | None:
        """Which file is the state file now."""
        try:
            status = os.lstat(os.path.join(self.directory, STATE_FILE))
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _save(self) -> None:
        if self._saved is not None and self._saved != self._present():
            return  # somebody has cleared up; what is there now may be a later container's
        try:
            data = _json(self.state).encode("ascii") + b"\n"
            self._saved = fds.replace_file(os.path.join(self.directory, STATE_FILE), data, 0o600)
        except OSError as error:
            self._diag.warn(f"cannot keep {self.directory}/{STATE_FILE}: {error.strerror}")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed; our paths are absolute then, or the container was not made
        return "/"


def _json(value: Any) -> str:
    """Write JSON; the json module would cost each monitor 5 ms and its memory."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
            return f'"{value}"'
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
