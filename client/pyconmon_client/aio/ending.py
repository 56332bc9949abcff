"""Ending an exec and all that it has started, on the event loop.

What `process_tree.end` and `ExecSession.end_everything` do, without blocking: who belongs to it is
found out by the same functions.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection

from .. import process_tree
from ..exec_session import ExecSession
from ..monitor import ProcessId
from ..spawn import Child
from .watch import Watch, deadline_in, readable, seconds_left, see_through

_ROUNDS = 200


async def wait_child(child: Child, seconds: float | None) -> int | None:
    """Wait until it ends, `seconds` at most; reap it; its exit status or None."""
    if child.poll() is None:
        # A descriptor of our own: somebody else may wait for the same child.
        pidfd = os.dup(child.pidfd)
        try:
            await readable([pidfd], seconds)
        finally:
            os.close(pidfd)
    return child.poll()


async def wait_process(process: ProcessId | None, seconds: float | None) -> bool:
    """Whether it ends within so many seconds, also if it is not our child."""
    pidfd = process.open() if process else None
    if pidfd is None:
        return True
    try:
        return bool(await readable([pidfd], seconds))
    finally:
        os.close(pidfd)


async def end_tree(
    mark: int | None,
    roots: Collection[ProcessId],
    spare: Collection[int] = (),
    seconds: float = 5.0,
) -> bool:
    """Kill them all, and wait until they are dead, `seconds` at most; whether there were any."""
    deadline = deadline_in(seconds)
    stopped: set[ProcessId] = set()
    for _ in range(_ROUNDS):
        # Stopped first, killed later: as in process_tree.end.
        fresh = process_tree.members(mark, roots, spare) - stopped
        if not fresh:
            break
        for process in fresh:
            process.send_signal(signal.SIGSTOP)
        stopped |= fresh
        await asyncio.sleep(0)
    left = stopped
    while left:
        for process in left:
            process.send_signal(signal.SIGKILL)
        await _wait_all(left, deadline)
        left = process_tree.members(mark, roots, spare)
        if seconds_left(deadline) == 0.0:
            break
    return bool(stopped)


async def _wait_all(processes: Collection[ProcessId], deadline: float | None) -> None:
    pidfds: set[int] = set()
    try:
        for process in list(processes)[:256]:
            pidfd = process.open()
            if pidfd is not None:
                pidfds.add(pidfd)
        with Watch() as watch:
            waiting = set(pidfds)
            for pidfd in pidfds:
                watch.register(pidfd)
            while waiting:
                ended = [fd for fd, _ in await watch.poll(seconds_left(deadline))]
                if not ended:
                    return
                for fd in ended:
                    watch.unregister(fd)
                    waiting.discard(fd)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


async def end_session(session: ExecSession, seconds: float = 5.0) -> None:
    """End the command and all that it started, then see the monitor off and reap it."""
    roots = [session.first] if session.first else []
    deadline = deadline_in(seconds)
    child = session.child
    ended = await end_tree(session.mark, roots, spare=[child.pid], seconds=seconds)
    # As in ExecSession.end_everything: it reports and leaves by itself, or is killed.
    patience = max(0.5, seconds_left(deadline) or 0.0) if ended or session.pid else 0.0
    if await wait_child(child, patience) is None:
        child.send_signal(signal.SIGKILL)
        await wait_child(child, seconds)
        await end_tree(session.mark, [], seconds=seconds)
    session.hear_last()


async def close_session(session: ExecSession) -> None:
    """Give everything back; a command that still runs is ended first. Also if cancelled."""
    try:
        if session.child.poll() is None:
            await see_through(end_session(session))
    finally:
        session.close()
