"""Ending processes: leftovers of a failed start, and what has run past its time.

Outsiders rely on: only processes that belong to the container are ever signalled, each through a pidfd that
was opened while it was known to be the one meant; never a whole group that could be ours.
"""

from __future__ import annotations

import _signal
import os

from pyconmon import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.container import ContainerProcess
    from pyconmon.reaper import Reaper

MOST_ROUNDS = 20  # of looking for children that were born while we killed


def children_of(pid: int, proc: str = "/proc") -> list[int]:
    """Give the direct children of a process, from all of its threads; proc_tid_children(5)."""
    found: list[int] = []
    try:
        threads = os.listdir(f"{proc}/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"{proc}/{pid}/task/{thread}/children", "rb") as file:
                found += [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            continue
    return found


def descendants_of(pid: int) -> list[int]:
    """Give all processes below `pid`, nearest first."""
    found: list[int] = []
    seen = {pid}
    queue = [pid]
    while queue:
        for child in children_of(queue.pop(0)):
            if child not in seen:
                seen.add(child)
                found.append(child)
                queue.append(child)
    return found


def holders_of(inodes: list[int]) -> list[int]:
    """Give the processes, other than this one, that have one of these pipes as their stdout or stderr."""
    wanted = {f"pipe:[{inode}]" for inode in inodes}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        for fd in (1, 2):
            try:
                if os.readlink(f"/proc/{name}/fd/{fd}") in wanted:
                    found.append(int(name))
                    break
            except OSError:
                continue
    return found


def kill(pid: int) -> None:
    """End one process for good; one that is gone is fine."""
    pidfd = linux.pidfd_open(pid)
    if pidfd < 0:
        return
    try:
        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)


def kill_children(reaper: Reaper) -> None:
    """End everything below us: after a failed start nobody else knows of it."""
    for _ in range(MOST_ROUNDS):
        below = descendants_of(os.getpid())
        if not below:
            return
        ours = [pid for pid in children_of(os.getpid()) if pid in below]
        for pid in below:
            if pid in ours:
                os.kill(pid, _signal.SIGKILL)  # not reaped yet, so it is still this process
            else:
                kill(pid)
        for pid in ours:  # and no others: one that was born meanwhile has not been killed
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass
        reaper.reap()


def kill_overdue(container: ContainerProcess, inodes: list[int], reaper: Reaper) -> None:
    """End a command that has run past its time, and everything that it started.

    Its process group, as C conmon does, its descendants, and those that have left both (setsid, double
    fork) but still hold its output (`inodes`). A process that is no child of ours is ended alone, for
    nobody can say what else is in its group.
    """
    doomed = [*descendants_of(container.pid), *holders_of(inodes)]
    if reaper.is_child(container.pid):
        try:
            group = os.getpgid(container.pid)
            if group > 1 and group != os.getpgid(0):
                os.killpg(group, _signal.SIGKILL)
        except OSError:
            pass
    container.send_signal(_signal.SIGKILL)
    for pid in doomed:
        kill(pid)
