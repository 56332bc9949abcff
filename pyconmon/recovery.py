"""Recovery: picking up containers whose monitor is gone (`pyconmon --recover DIR`, `--recover-under DIR`).

Outsiders rely on: only one monitor watches a container (the journal's lock); a process is taken for the
container only if pid and start time agree; what the dead monitor owed is reported once; what nobody can
know any more is said, not made up. The shape of the state is survival.py's matter.
"""

from __future__ import annotations

import json  # this command is run rarely, and nobody waits 5 ms for it
import os

from pyconmon import linux
from pyconmon.journal import Journal
from pyconmon.reaper import UNKNOWN, exit_status
from pyconmon.survival import JOURNAL_FILE, STATE_FILE, VERSION, Survival

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyconmon.diag import Diag
    from pyconmon.options import Options
    from pyconmon.process import Process

DEEPEST = 4  # folders below the one given to --recover-under
LOST = (
    "the container ended while nobody watched it, and the kernel does not tell its exit status any more: "
    "-1 was reported"
)


def main(options: Options, process: Process, diag: Diag) -> int:
    """Recover one container, or all below a folder; give the exit status (0: nothing is left to do)."""
    if options.recover is not None:
        directories = [options.recover]
        if not os.path.exists(os.path.join(options.recover, STATE_FILE)):
            diag.info(f"{options.recover} holds no {STATE_FILE}: nothing to recover")
            return 0
    else:
        directories = _below(options.recover_under or "")
    status = 0
    for directory in directories:
        try:
            state, journal = _take(os.path.abspath(directory))
        except BlockingIOError:
            diag.info(f"{directory}: its container has a monitor")
            continue
        except FileNotFoundError:
            continue  # another recovery, or the monitor itself, has just finished the work
        except (OSError, ValueError) as error:
            diag.error(f"cannot recover {directory}: {error}")
            status = 1
            continue
        if options.sync:
            status = max(status, _go_on(os.path.abspath(directory), state, journal, process, diag))
        elif (pid := os.fork()) == 0:
            os._exit(_detached(os.path.abspath(directory), state, journal, process, diag))
        else:
            journal.close(remove=False)  # the child holds the lock on
            os.waitpid(pid, os.WNOHANG)
    return status


def _below(root: str) -> list[str]:
    found = []
    for directory, names, files in os.walk(root):
        if STATE_FILE in files:
            found.append(directory)
        if os.path.relpath(directory, root).count(os.sep) >= DEEPEST:
            names.clear()
    return sorted(found)


def _take(directory: str) -> tuple[dict[str, Any], Journal]:
    """Lock and read a container's state. Raises OSError, BlockingIOError if it is watched, ValueError."""
    journal = Journal(os.path.join(directory, JOURNAL_FILE), create=False)
    try:
        with open(os.path.join(directory, STATE_FILE), "rb") as file:
            state = json.load(file)
        if not isinstance(state, dict) or state.get("version") != VERSION:
            raise ValueError(f"{STATE_FILE} is not of version {VERSION}")
        if state.get("phase") not in ("running", "ended", "reported"):
            raise FileNotFoundError(2, "nothing is owed", directory)
        for key, kind in (
            ("argv", list),
            ("cwd", str),
            ("environment", list),
            ("container_pid", int),
            ("container_start", int),
            ("pipes", list),
            ("begun", (int, float)),
        ):
            if not isinstance(state.get(key), kind):
                raise ValueError(f"{STATE_FILE} has no usable {key!r}")
    except BaseException:
        journal.close(remove=False)
        raise
    return state, journal


def _detached(
    directory: str, state: dict[str, Any], journal: Journal, process: Process, diag: Diag
) -> int:
    os.setsid()
    process.leave_streams()
    diag.mute_stderr()
    return _go_on(directory, state, journal, process, diag)


def _go_on(
    directory: str, state: dict[str, Any], journal: Journal, process: Process, diag: Diag
) -> int:
    """Be the monitor that the container has lost, to its end."""
    from pyconmon.__main__ import serve
    from pyconmon.checks import check
    from pyconmon.logs import open_logs
    from pyconmon.loop import Loop
    from pyconmon.monitor import Monitor
    from pyconmon.options import parse

    os.chdir(state["cwd"])
    process.environment = dict(entry.partition("=")[::2] for entry in state["environment"])
    process.oom_score = str(state.get("oom_score", "")).encode() or None
    process.inherited = []
    options = check(parse(state["argv"]), created=True)
    logs = open_logs(options, diag)
    survival = Survival(directory, state["argv"], process, diag)
    survival.state.update(state)
    monitor = Monitor(options, process, Loop(diag.exception), logs, diag, survival)
    process.become_parent_of_orphans(new_session=False)
    process.take_signals(monitor.loop, monitor.reaper.reap, monitor.forward)
    unlogged = journal.unlogged()
    if unlogged is not None:
        logs.resume(*unlogged)
        journal.clear()
    pid = state["container_pid"]
    pidfd = linux.pidfd_open(pid)
    if pidfd >= 0 and linux.start_time(pid) != state["container_start"]:
        os.close(pidfd)
        pidfd = -1
    streams = _streams(pid if pidfd >= 0 else -1, state["pipes"])
    if options.stdin and pidfd >= 0 and (stdin := _stdin(pid)) >= 0:
        streams[0] = stdin
    if state["phase"] == "running" and pidfd >= 0:
        monitor.streams.adopt(streams)
        monitor.resume(pid, pidfd, journal)
        if options.timeout > 0:
            from time import CLOCK_BOOTTIME, clock_gettime

            left = state["begun"] + options.timeout - clock_gettime(CLOCK_BOOTTIME)
            monitor.limit_time(max(0.0, left))
        if options.conmon_pidfile:
            _write_pid(options.conmon_pidfile, diag)
        return serve(monitor)
    monitor.streams.adopt(streams)
    return _settle(monitor, state, survival, journal, pidfd)


def _settle(
    monitor: Any, state: dict[str, Any], survival: Survival, journal: Journal, pidfd: int
) -> int:
    """The container has ended: report what is owed."""
    from pyconmon.__main__ import last_act

    survival.hold(journal)
    code = state.get("code") if state["phase"] != "running" else None
    lost = None
    if code is None:
        wait_status = linux.pidfd_exit_status(pidfd) if pidfd >= 0 else None
        code = UNKNOWN if wait_status is None else exit_status(wait_status)
        lost = LOST if wait_status is None else None
    if state["phase"] == "reported":
        monitor.already_reported(code)
    else:
        monitor.owe(code)
    last_act(monitor, lost)
    return int(monitor.status)


def _streams(pid: int, inodes: list[int]) -> dict[int, int]:
    """Open the reading ends of the container's pipes through whoever holds them: stream -> descriptor."""
    found: dict[int, int] = {}
    for stream, inode in zip((1, 2), inodes, strict=False):
        for holder in _candidates(pid, inode):
            for fd in (stream, 1, 2, 0):
                path = f"/proc/{holder}/fd/{fd}"
                try:
                    if os.stat(path).st_ino == inode and stream not in found:
                        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                        found[stream] = opened
                except OSError:
                    continue
    return found


def _candidates(pid: int, inode: int) -> list[int]:
    from pyconmon.processes import holders_of

    first = [pid] if pid > 0 else []
    return first + [other for other in holders_of([inode]) if other != pid]


def _stdin(pid: int) -> int:
    """Open the writing end of the container's stdin, if that is a pipe."""
    try:
        if not os.readlink(f"/proc/{pid}/fd/0").startswith("pipe:"):
            return -1
        return os.open(f"/proc/{pid}/fd/0", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1


def _write_pid(path: str, diag: Diag) -> None:
    from pyconmon.fds import replace_file

    try:
        replace_file(path, b"%d" % os.getpid())
    except OSError as error:
        diag.warn(f"cannot write the pid file {path}: {error.strerror}")
