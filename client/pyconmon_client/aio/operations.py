"""Lives of containers on the event loop: create, start, stop, delete, status, wait, recover.

The arguments, results and errors are those of operations.Operations. Operations on one container
follow one after the other, those on different ones run beside each other. What is cancelled leaves
nothing half done.
"""

from __future__ import annotations

import asyncio
import os
import signal as signals
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from weakref import WeakKeyDictionary

from .. import argv as argv_of
from .. import creation as blocking_creation
from .. import lookup, spawn, store
from ..container import RUNNING, STOPPED, Container, ContainerState
from ..creation import Output
from ..errors import (
    ContainerNotFound,
    PyconmonError,
    RuntimeCommandError,
    WaitTimeout,
)
from ..exit_status import Exit
from ..runtime import Runtime as BlockingRuntime
from ..wait import ExitWatch
from . import creation
from .ending import wait_process
from .gate import Gate
from .oci_runtime import OciRuntime
from .watch import deadline_in, readable, seconds_left, see_through

_REPORT_SECONDS = 30.0
_KILL_SECONDS = 10.0


class Operations:
    """See Runtime, which is this and more."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        container_dir: str | os.PathLike[str],
        conmon_path: str | os.PathLike[str],
        conmon_env: Mapping[str, str] | Sequence[str] | None = None,
        cgroup_manager: str = "cgroupfs",
        *,
        create_timeout: float = 60.0,
        starting: int | None = None,
    ) -> None:
        self.blocking = BlockingRuntime(
            path,
            container_dir,
            conmon_path,
            conmon_env,
            cgroup_manager,
            dialect="modern",
            create_timeout=create_timeout,
        )
        """The same for threads: what neither waits nor asks the runtime is taken from it."""
        self._oci = OciRuntime(self.blocking.path, create_timeout)
        self._create_timeout = create_timeout
        self._gate = Gate(starting)
        # As the gate: one event loop after the other.
        self._locks: WeakKeyDictionary[
            asyncio.AbstractEventLoop, WeakKeyDictionary[Container, asyncio.Lock]
        ] = WeakKeyDictionary()

    def _lock(self, container: Container) -> asyncio.Lock:
        locks = self._locks.setdefault(asyncio.get_running_loop(), WeakKeyDictionary())
        return locks.setdefault(container, asyncio.Lock())

    # ---- lives

    async def version(self) -> str:
        """The runtime's version."""
        return await self._oci.version()

    async def create_container(
        self,
        container: Container,
        *,
        output: Output = "auto",
        stdin: bool = False,
        leave_stdin_open: bool = False,
        stdio: tuple[int, int, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Create it; see Runtime.create_container. Cancelled, nothing of it stays."""
        spawn.reap()
        blocking = self.blocking
        async with self._gate.slot(), self._lock(container):
            with blocking_creation.explained(container):
                request = blocking.create_request(
                    container, output, stdin, leave_stdin_open, stdio, timeout
                )
                try:
                    pid, child = await creation.create(request)
                    blocking.note_created(container, pid, child, False)
                except BaseException:
                    await see_through(
                        creation.forget_half_made(container, self._oci, request.begun)
                    )
                    raise

    async def start_container(self, container: Container) -> None:
        """Let a created container run. RuntimeCommandError with the runtime's reason."""
        async with self._lock(container):
            argv = argv_of.runtime_start(self._oci.path, container.name)
            await self._oci.call("start", argv, container.name)
            container.state = container.state or ContainerState(id=container.name)
            container.state.status = RUNNING
            container.state.started = datetime.now(UTC)
            store.save(self.blocking.container_dir, container)

    async def kill_container(self, container: Container, signal: str | int = "KILL") -> None:
        """Send a signal ("TERM", "SIGTERM" or a number) to the container's first process."""
        argv = argv_of.runtime_kill(self._oci.path, container.name, str(signal))
        await self._oci.call("signal", argv, container.name)

    async def stop_container(
        self, container: Container, timeout: float = 10.0, signal: str = "TERM"
    ) -> None:
        """Signal the container's first process, wait `timeout` seconds, then kill it."""
        async with self._lock(container):
            await self._find_init(container)
            try:
                await self.kill_container(container, signal)
            except ContainerNotFound:
                raise
            except RuntimeCommandError:
                if (await self._oci.state(container.name)).get("status") != STOPPED:
                    raise
            if not await wait_process(container.init, timeout):
                assert container.init is not None
                container.init.send_signal(signals.SIGKILL)
                if not await wait_process(container.init, _KILL_SECONDS):
                    raise PyconmonError(
                        f"could not stop container {container.name}: its first process does "
                        "not end even when killed (paused, or stuck in the kernel)"
                    )
        spawn.reap()

    async def delete_container(self, container: Container, force: bool = False) -> None:
        """Remove a container that has ended (with `force`, end it), its record and endpoints."""
        async with self._lock(container):
            await see_through(self._delete(container, force))

    async def _delete(self, container: Container, force: bool) -> None:
        directory = self.blocking.container_dir
        lookup.monitor_of(container)
        argv = argv_of.runtime_delete(self._oci.path, container.name, force=force)
        try:
            await self._oci.call("delete", argv, container.name)
        except ContainerNotFound:
            if container.name not in store.names(directory):
                raise
        self.blocking.samplers.drop(container.name)
        # The monitor has nothing left to watch; wait until it has written its last.
        if await wait_process(container.monitor, _KILL_SECONDS):
            spawn.reap()
            try:
                blocking_creation.remove_leftovers(
                    container.bundle_path, blocking_creation.ENDPOINTS
                )
            except PyconmonError:
                pass
        if directory:
            blocking_creation.remove_leftovers(self.blocking.exit_dir, [container.name])
            store.remove(directory, container.name)

    async def update_status(self, container: Container) -> ContainerState:
        """Ask the runtime for the container's state; for a stopped one take its exit code too."""
        spawn.reap()
        async with self._lock(container):
            reported = await self._oci.state(container.name)
            state = container.state = container.state or ContainerState()
            state.merge(reported)
            init = lookup.init_of(container, self.blocking.oci, reported)
            monitor = lookup.monitor_of(container)
            state.monitored = monitor.alive() if monitor else (False if init else None)
            if state.status == STOPPED:
                with ExitWatch(self.blocking.exit_file(container), init, monitor) as watch:
                    what = f"the monitor of {container.name}"
                    ended = await _wait_exit(watch, _REPORT_SECONDS, what)
                self.note_exit(container, ended)
            return state

    async def _find_init(self, container: Container) -> None:
        """Fill in the container's first process; the blocking look-up would ask the runtime."""
        if container.init is None:
            try:
                reported = await self._oci.state(container.name)
            except PyconmonError:
                reported = {}
            lookup.init_of(container, self.blocking.oci, reported)

    # ---- waiting

    async def wait(self, container: Container, timeout: float | None = None) -> int:
        """Wait until the container has ended; its exit code, or -1 if nobody can know it any more.

        Also for containers that another process started. WaitTimeout after `timeout` seconds.
        """
        with await self.watch_exit(container) as watch:
            ended = await _wait_exit(watch, timeout, f"container {container.name}")
        self.note_exit(container, ended)
        return ended.code

    async def watch_exit(self, container: Container) -> ExitWatch:
        """What wait() waits on; close it."""
        await self._find_init(container)
        return ExitWatch(
            self.blocking.exit_file(container),
            container.init,
            lookup.monitor_of(container),
            partial(lookup.monitor_of, container),
        )

    def note_exit(self, container: Container, ended: Exit) -> None:
        """Keep what an ExitWatch has found in the container's state."""
        self.blocking.note_exit(container, ended)

    async def recover(self, container: Container, timeout: float = 30.0) -> bool:
        """Give a container whose monitor has died a new one (pyconmon only); see Runtime.recover."""
        async with self._lock(container):
            monitor = lookup.monitor_of(container)
            if monitor is not None and monitor.alive():
                return False
            await self._find_init(container)
            taken_by = await creation.recover(
                self.blocking.conmon_path,
                self.blocking.environment,
                container.bundle_path,
                timeout,
            )
            if taken_by is None:
                return False
            if container.init is None or not container.init.alive():
                await wait_process(taken_by, timeout)
            container.monitor = taken_by
            store.save(self.blocking.container_dir, container)
            return True


async def _wait_exit(watch: ExitWatch, timeout: float | None, what: str) -> Exit:
    """ExitWatch.wait on the loop."""
    deadline = deadline_in(timeout)
    while (found := watch.check()) is None:
        if seconds_left(deadline) == 0.0:
            raise WaitTimeout(f"could not see {what} end: still running after {timeout} s")
        await readable(watch.descriptors(), seconds_left(deadline))
    return found
