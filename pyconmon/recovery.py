"""Recovery: picking up containers whose monitor is gone (`pyconmon --recover DIR`, `--recover-under DIR`).

Outsiders rely on: only one monitor watches a container (the journal's lock); a process is taken for the
container only if pid and start time agree; what the dead monitor owed is reported once; what nobody can
know any more is said, not made up. The command returns when the containers are watched again, or their
reports are written. How a state is read and trusted is state.py's matter, what it means is survival.py's.
"""

from __future__ import annotations

import os
import select
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from pyconmon import linux
from pyconmon.reaper import UNKNOWN, exit_status
from pyconmon.state import NothingOwed, take
from pyconmon.survival import STATE_FILE, Survival

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pyconmon.diag import Diag
    from pyconmon.journal import Journal
    from pyconmon.logs import Logs
    from pyconmon.monitor import Monitor
    from pyconmon.options import Options
    from pyconmon.process import Process

DEEPEST = 4  # folders below the one given to --recover-under
TRIES = 3  # of finding a pipe, which may be moved from one descriptor to another meanwhile
AT_ONCE = 16  # containers whose new monitors are begun together; each takes a descriptor meanwhile
NOT_RECOVERED = 1  # exit status of a forked monitor that has said why
PATIENCE = 30.0  # seconds in which a recovering process should have come to watch its container
LOST = (
    "the container ended while nobody watched it, and the kernel does not tell its exit status any "
    "more: -1 was reported, and output that was still in its pipes is gone"
)


def main(options: Options, process: Process, diag: Diag) -> int:
    """Recover one container, or all below a folder; give the exit status (0: nothing is left to do)."""
    if options.recover is not None:
        directories = [options.recover]
        if not os.path.lexists(os.path.join(options.recover, STATE_FILE)):
            diag.info(f"{options.recover} holds no {STATE_FILE}: nothing to recover")
            return 0
    else:
        directories = _below(options.recover_under or "")
    status = 0
    begun: list[tuple[int, int, str]] = []
    for directory in map(os.path.abspath, directories):
        try:
            state, journal = take(directory)
        except BlockingIOError:
            diag.info(f"{directory}: its container has a monitor")
            continue
        except (FileNotFoundError, NothingOwed):
            continue  # another recovery, or the monitor itself, has just finished the work
        except (OSError, ValueError) as error:
            diag.error(f"cannot recover {directory}: {error}")
            status = 1
            continue
        successor = Successor(directory, state, journal, process, diag)
        if options.sync:
            status = max(status, _live(successor, lambda: None))
            continue
        try:
            begun.append(_begin(successor, begun))
        except OSError as error:
            diag.error(f"cannot recover {directory}: {error.strerror}")
            status = 1
        journal.close(remove=False)  # the child holds the lock on
        if len(begun) >= AT_ONCE:
            status = max(status, _await(begun, diag))
    return max(status, _await(begun, diag))


def _begin(successor: Successor, begun: list[tuple[int, int, str]]) -> tuple[int, int, str]:
    """Fork a monitor; give what `_await` needs. Raises OSError."""
    ready, told = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(ready)
        os.close(told)
        raise
    if pid == 0:
        for fd in (ready, *(other for _, other, _ in begun)):
            os.close(fd)
        os._exit(_detached(successor, told))
    os.close(told)
    return pid, ready, successor.directory


def _below(root: str) -> list[str]:
    found = []
    for directory, names, files in os.walk(root):
        if STATE_FILE in files:
            found.append(directory)
        if os.path.relpath(directory, root).count(os.sep) >= DEEPEST:
            names.clear()
    return sorted(found)


def _detached(successor: Successor, told: int) -> int:
    """In the child: become a daemon as soon as the container is watched."""
    process, diag = successor.process, successor.diag
    try:
        os.setsid()
        process.close_inherited(keep=-1)

        def ready() -> None:
            process.leave_streams()
            diag.mute_stderr()
            os.write(told, b"\0")
            os.close(told)

        return _live(successor, ready)
    except Exception as error:
        diag.exception(error)
        return NOT_RECOVERED


def _live(successor: Successor, ready: Callable[[], None]) -> int:
    """`Successor.live`; what cannot be used in the state is said in one line."""
    from pyconmon.options import UsageError

    try:
        return successor.live(ready)
    except (OSError, ValueError, UsageError) as error:
        successor.diag.error(f"cannot recover {successor.directory}: {error}")
    return NOT_RECOVERED


def _await(begun: list[tuple[int, int, str]], diag: Diag) -> int:
    """Wait until each of the forked monitors has said that it watches, or has ended; forget them."""
    status = 0
    last = monotonic() + PATIENCE
    for pid, ready, directory in begun:
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        if not poller.poll(max(0.0, last - monotonic()) * 1000):
            diag.warn(f"{directory}: its new monitor (pid {pid}) takes long")
        elif not os.read(ready, 1):
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != NOT_RECOVERED:
                diag.error(f"cannot recover {directory}: its new monitor has ended at once")
            status = 1
        os.close(ready)
    begun.clear()
    return status


class Successor:
    """The monitor that a container has lost, from a dead one's state on."""

    def __init__(
        self,
        directory: str,
        state: dict[str, Any],
        journal: Journal,
        process: Process,
        diag: Diag,
    ) -> None:
        self.directory = directory
        self.state = state
        self.journal = journal
        self.process = process
        self.diag = diag

    def live(self, ready: Callable[[], None]) -> int:
        """Watch the container to its end, or report what is owed; give the exit status.

        Calls `ready` when the container is watched, or its reports are written.
        """
        state = self.state
        monitor, survival = self._make_monitor()
        pid = state["container_pid"]
        pidfd = linux.pidfd_open(pid)
        if pidfd >= 0 and linux.start_time(pid) != state["container_start"]:
            os.close(pidfd)  # another process has this pid by now
            pidfd = -1
        reader = survival.take_over(state, self.journal, monitor.logs)
        _finish_log(monitor.logs, self.journal)
        monitor.logs.tell(self.journal)  # not before: it is the dead one's log that has counted
        inodes = {int(stream): inode for stream, inode in state["pipes"].items()}
        monitor.streams.inodes = dict(inodes)
        monitor.streams.read_with(reader)
        monitor.streams.adopt(_streams(pid if pidfd >= 0 else -1, inodes))
        if state["phase"] == "running" and pidfd >= 0:
            return self._go_on(monitor, pid, pidfd, ready)
        return self._settle(monitor, survival, pid, pidfd, ready)

    def _make_monitor(self) -> tuple[Monitor, Survival]:
        from pyconmon.checks import check
        from pyconmon.logs import open_logs
        from pyconmon.logs.reopening import opener
        from pyconmon.loop import Loop
        from pyconmon.monitor import Monitor
        from pyconmon.options import parse

        state, process = self.state, self.process
        try:
            os.chdir(state["cwd"])
        except OSError as error:
            self.diag.warn(f"cannot go to {state['cwd']}: {error.strerror}")
        process.protect_from_oom()
        process.environment = dict(entry.partition("=")[::2] for entry in state["environment"])
        process.oom_score = str(state.get("oom_score", "")).encode() or None
        options = check(parse(state["argv"]), created=True)
        if options.syslog:
            self.diag.use_syslog(options.cid or "")
        logs = open_logs(options, self.diag, opener(self.journal.known_log(), self.diag))
        survival = Survival(self.directory, state["argv"], options, process, self.diag)
        monitor = Monitor(options, process, Loop(self.diag.exception), logs, self.diag, survival)
        process.become_parent_of_orphans(new_session=False)
        process.take_signals(monitor.loop, monitor.reaper.reap, monitor.forward)
        return monitor, survival

    def _go_on(self, monitor: Monitor, pid: int, pidfd: int, ready: Callable[[], None]) -> int:
        """The container is there (perhaps as a zombie): watch it."""
        from pyconmon.__main__ import serve

        options = monitor.options
        monitor.resume(pid, pidfd)
        if options.timeout > 0:
            left = self.state["begun"] + options.timeout - clock_gettime(CLOCK_BOOTTIME)
            monitor.limit_time(max(0.0, left))
        if options.conmon_pidfile:
            _write_pid(options.conmon_pidfile, self.diag)
        ready()
        return serve(monitor)

    def _settle(
        self,
        monitor: Monitor,
        survival: Survival,
        pid: int,
        pidfd: int,
        ready: Callable[[], None],
    ) -> int:
        """The container has ended (or its time was up): report what is owed."""
        from pyconmon.__main__ import last_act

        state = self.state
        code = state.get("code") if state["phase"] != "running" else None
        if not isinstance(code, int) or not UNKNOWN <= code <= 255:
            code = UNKNOWN
            wait_status = linux.pidfd_exit_status(pidfd) if pidfd >= 0 else None
            if wait_status is None:
                survival.lost = LOST
            else:
                code = exit_status(wait_status)
        if state["phase"] == "reported":
            monitor.already_reported(code)
        else:
            monitor.owe(pid, pidfd, code, timed_out=state.get("timed_out") is True)
        ready()
        last_act(monitor)
        return int(monitor.status)


def _finish_log(logs: Logs, journal: Journal) -> None:
    """Log what the dead monitor had read and not logged."""
    logs.restore(journal.held())
    unlogged = journal.unlogged()
    if unlogged is not None:
        logs.resume(*unlogged)
        journal.clear()


def _streams(pid: int, inodes: dict[int, int]) -> dict[int, int]:
    """Open our ends of the container's pipes through whoever holds them: stream -> descriptor."""
    found: dict[int, int] = {}
    for _ in range(TRIES):
        for stream, inode in inodes.items():
            if stream in found:
                continue
            for path in _candidates(pid, stream):
                opened = _open_pipe(path, inode, writing=stream == 0)
                if opened >= 0:
                    found[stream] = opened
                    break
        if len(found) == len(inodes) or pid < 0:
            break
    return found


def _candidates(pid: int, stream: int) -> Iterator[str]:
    """Where a stream may be: with the container's first process, or with another one.

    Not only where one expects it: a shell that redirects a command of its own moves its streams away
    for that time.
    """
    if pid > 0:
        yield f"/proc/{pid}/fd/{stream}"
        yield from _descriptors(pid)
    if stream != 0:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in (pid, os.getpid()):
                yield from _descriptors(int(name))


def _descriptors(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    try:
        return [f"{folder}/{fd}" for fd in os.listdir(folder)]
    except OSError:
        return []


def _open_pipe(path: str, inode: int, *, writing: bool) -> int:
    """Open another process's pipe anew if it is the one meant; -1 otherwise."""
    name = f"pipe:[{inode}]"
    try:
        if os.readlink(path) != name:
            return -1
        # Not as our terminal either: a container could put one there that it types ^Z into.
        flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        opened = os.open(path, flags | (os.O_WRONLY if writing else os.O_RDONLY))
        # It may have put something else there between the look and the opening.
        if os.readlink(f"/proc/self/fd/{opened}") == name:
            return opened
        os.close(opened)
    except OSError:
        pass
    return -1


def _write_pid(path: str, diag: Diag) -> None:
    from pyconmon.fds import replace_file

    try:
        replace_file(path, b"%d" % os.getpid())
    except OSError as error:
        diag.warn(f"cannot write the pid file {path}: {error.strerror}")
