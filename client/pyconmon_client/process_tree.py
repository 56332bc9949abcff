"""Finding and ending everything that one exec'ed command has started.

Inside a container's pid namespace an orphan becomes a child of the container's own init, so parents
tell nothing about a daemon that has forked twice, called setsid and closed its output. What every
process does keep is its resource limits: the limit on file locks means nothing to Linux since 2.4
and is inherited by fork and exec, so a random value of it, set on the monitor before it starts the
command, marks the whole offspring and nothing else. Descendants and the session of the command are
looked at as well, for programs that set that limit themselves.

Outsiders rely on `mark()`, `unmark()` and `end()`. Signals go through pidfds to processes whose start time was
compared: a reused pid is never hit.
"""

from __future__ import annotations

import os
import resource
import secrets
import select
import signal
import time
from collections.abc import Collection

from .deadline import milliseconds
from .monitor import ProcessId, stat_fields

# /usr/include/asm-generic/resource.h; the resource module has no name for it.
RLIMIT_LOCKS = 10
# A fork bomb is stopped within a few rounds; beyond that the pid limit is not ours to enforce.
_ROUNDS = 200


def mark(pid: int) -> int | None:
    """Mark a process that is about to start others; the mark, or None where that is impossible."""
    value = secrets.randbits(61) | 1 << 61
    try:
        _, hard = resource.prlimit(pid, RLIMIT_LOCKS)
        if hard != resource.RLIM_INFINITY:
            return None
        resource.prlimit(pid, RLIMIT_LOCKS, (value, hard))
    except (OSError, ValueError):
        return None
    return value


def unmark(pid: int) -> None:
    """Give a process the ordinary limit again; what it starts from now on is not marked."""
    try:
        _, hard = resource.prlimit(pid, RLIMIT_LOCKS)
        resource.prlimit(pid, RLIMIT_LOCKS, (hard, hard))
    except (OSError, ValueError):
        pass


def members(
    mark: int | None, roots: Collection[ProcessId], spare: Collection[int] = ()
) -> set[ProcessId]:
    """All live processes with the mark, below a root or in the session of a root; not `spare`."""
    parents: dict[int, list[int]] = {}
    sessions: dict[int, list[int]] = {}
    processes: dict[int, ProcessId] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        fields = stat_fields(int(name))
        if not fields:
            continue
        pid = int(name)
        parents.setdefault(int(fields[1]), []).append(pid)
        sessions.setdefault(int(fields[3]), []).append(pid)
        # A zombie's children still count; the zombie itself cannot be ended.
        if fields[0] not in b"ZX":
            processes[pid] = ProcessId(pid, int(fields[19]))
    chosen = {pid for pid in processes if mark is not None and _has_mark(pid, mark)}
    # A root that has been reaped may have left its number to a stranger.
    reached = [root.pid for root in roots if ProcessId.of(root.pid) == root]
    for pid in list(reached):
        reached += sessions.get(pid, [])
    seen: set[int] = set()
    while reached:
        pid = reached.pop()
        if pid not in seen:
            seen.add(pid)
            reached += parents.get(pid, [])
    forbidden = {0, 1, os.getpid(), *spare}
    return {processes[pid] for pid in (chosen | seen) - forbidden if pid in processes}


def end(
    mark: int | None,
    roots: Collection[ProcessId],
    spare: Collection[int] = (),
    seconds: float = 5.0,
) -> bool:
    """Kill them all, and wait until they are dead, `seconds` at most; whether there were any."""
    deadline = time.monotonic() + seconds
    stopped: set[ProcessId] = set()
    for _ in range(_ROUNDS):
        # Stopped first, killed later: what is stopped starts no more processes meanwhile, and a
        # parent that is still there keeps its children recognisable.
        fresh = members(mark, roots, spare) - stopped
        if not fresh:
            break
        for process in fresh:
            process.send_signal(signal.SIGSTOP)
        stopped |= fresh
    left = stopped
    while left:
        _kill_and_wait(left, deadline)
        left = members(mark, roots, spare)
        if time.monotonic() >= deadline:
            break
    return bool(stopped)


def _kill_and_wait(processes: Collection[ProcessId], deadline: float) -> None:
    waiting: list[int] = []
    try:
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in list(processes)[:256]:
            pidfd = process.open()
            if pidfd is not None:
                waiting.append(pidfd)
        poller = select.poll()
        for pidfd in waiting:
            poller.register(pidfd, select.POLLIN)
        remaining = len(waiting)
        while remaining and (seconds := deadline - time.monotonic()) > 0:
            for pidfd, _ in poller.poll(milliseconds(seconds)):
                poller.unregister(pidfd)
                remaining -= 1
    finally:
        for pidfd in waiting:
            os.close(pidfd)


def _has_mark(pid: int, value: int) -> bool:
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            limits = file.read()
    except OSError:
        return False
    at = limits.find(b"Max file locks")
    return at >= 0 and limits[at + 14 :].split(None, 1)[:1] == [b"%d" % value]
