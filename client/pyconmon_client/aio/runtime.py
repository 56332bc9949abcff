"""Runtime on the event loop: the operations of pyconmon_client.Runtime as coroutines.

Containers, bundles, results and errors are the same objects; only the waiting differs: pidfds, pipes
and sockets are the loop's, there is no thread and no polling. What is cancelled cleans up before the
cancellation goes on. Operations on one container follow one after the other, those on different ones
run beside each other.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

from .. import exec_sync as blocking_exec_sync
from .. import stats as statistics
from ..bundle import Bundle
from ..container import Container
from ..control import resize_message
from ..creation import Output
from ..errors import (
    ContainerNotFound,
    NotRunningError,
)
from ..exec_sync import ExecResult
from ..logs import LogOptions
from ..monitor import ProcessId
from ..process_spec import ExecSettings
from ..run import RunError, RunResult, new_name
from . import attach as attaching
from . import exec_sync
from . import run as running
from .ending import wait_process
from .events import ExitEvents
from .exec_process import ExecProcess
from .logs import LogReader
from .operations import Operations
from .watch import see_through


class Runtime(Operations):
    """An OCI runtime at `path`, containers recorded in `container_dir`, monitors at `conmon_path`.

    Arguments as of pyconmon_client.Runtime, whose records it shares; monitors are started in the
    modern dialect. At most `starting` monitors are being started at the same time (default: four
    for each CPU), the rest wait for their turn. One event loop at a time.
    """

    # ---- execs

    async def exec_sync(
        self,
        container: Container,
        command: Sequence[str],
        timeout: float | None = None,
        *,
        stdin: bytes | None = None,
        max_output: int = blocking_exec_sync.MAX_OUTPUT,
        check: bool = True,
        env: Mapping[str, str] | Sequence[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> ExecResult:
        """Run a command and wait for it; see Runtime.exec_sync. Cancelled, all it started ends."""
        return await exec_sync.run(
            self.blocking.exec_request(container, command, ExecSettings(env, cwd, user)),
            self._gate,
            timeout=timeout if timeout and timeout > 0 else None,
            stdin=stdin,
            max_output=max_output,
            check=check,
        )

    async def exec(
        self,
        container: Container,
        command: Sequence[str],
        *,
        stdin: bool = True,
        terminal: bool = False,
        env: Mapping[str, str] | Sequence[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> ExecProcess:
        """Start a command and return it live; use it in an `async with` block.

        Arguments as of Runtime.exec. ExecStartError with the runtime's reason if it cannot run.
        """
        settings = ExecSettings(env, cwd, user, size)
        request = self.blocking.exec_request(container, command, settings, attach=terminal)
        return await ExecProcess.start(request, self._gate, stdin=stdin)

    # ---- whole lives

    async def run(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        name: str | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        max_output: int = blocking_exec_sync.MAX_OUTPUT,
        kill_on_output: bool = False,
        check: bool = False,
    ) -> RunResult:
        """Run a bundle's container to its end; see Runtime.run. Cancelled, it is ended and deleted."""
        name = name or new_name()
        container = Container(name, name, os.path.abspath(os.fspath(bundle)))
        result = await running.run(
            self,
            container,
            stdin=stdin,
            timeout=timeout,
            max_output=max_output,
            kill_on_output=kill_on_output,
        )
        killed = result.timed_out or result.output_exceeded
        if check and (result.exit_code != 0 or killed):
            raise RunError(name, result)
        return result

    @asynccontextmanager
    async def running(
        self,
        container: Container,
        *,
        output: Output = "auto",
        stdin: bool = False,
        leave_stdin_open: bool = False,
        stdio: tuple[int, int, int] | None = None,
    ) -> AsyncIterator[Container]:
        """A block with the container created and started; killed and deleted at its end."""
        await self.create_container(
            container, output=output, stdin=stdin, leave_stdin_open=leave_stdin_open, stdio=stdio
        )
        try:
            await self.start_container(container)
            yield container
        finally:
            try:
                await see_through(self.delete_container(container, force=True))
            except ContainerNotFound:
                pass

    # ---- containers on disk

    def list(self) -> list[Container]:
        """All containers recorded in container_dir."""
        return self.blocking.list()

    def reload(self, name: str) -> Container:
        """The container of that name as recorded; RecordError."""
        return self.blocking.reload(name)

    # ---- streams, logs, numbers

    async def attach(self, container: Container, timeout: float = 0.5) -> attaching.Attachment:
        """Connect to its streams; it must have been created with output "log" or "none"."""
        return await attaching.attach(container.bundle_path, timeout=timeout)

    async def resize(self, container: Container, rows: int, columns: int) -> None:
        """Give the container's terminal a new size."""
        await attaching.send_control(container.bundle_path, resize_message(rows, columns))

    async def reopen_logs(self, container: Container) -> None:
        """Make its monitor open the log anew after it was moved away."""
        await attaching.send_control(container.bundle_path, b"2 0 0\n")

    def logs(
        self, container: Container, *, follow: bool = False, **options: Unpack[LogOptions]
    ) -> LogReader:
        """The lines of its log, for `async for`; options as of Runtime.logs."""
        return LogReader(
            container.log_path, **self.blocking.log_options(container, follow), **options
        )

    async def stats(self, container: Container) -> statistics.Stats:
        """As Runtime.stats: from the second call on with the CPU percent since the one before."""
        first = await self._first_process(container)
        return self.blocking.samplers.sample(container.name, first)

    async def samples(
        self, container: Container, interval: float = 1.0
    ) -> AsyncIterator[statistics.Stats]:
        """The same every `interval` seconds, until the container has ended."""
        first = await self._first_process(container)
        sampler = statistics.Sampler(first.pid)
        while True:
            try:
                yield sampler.sample()
            except NotRunningError:
                return
            if await wait_process(first, interval):
                return

    async def _first_process(self, container: Container) -> ProcessId:
        await self._find_init(container)
        if container.init is None or not container.init.alive():
            raise NotRunningError(f"could not measure container {container.name}: it does not run")
        return container.init

    def events(self, *, existing: bool = False) -> ExitEvents:
        """Exits of containers, as they happen, for `async for`."""
        return ExitEvents(self.blocking.events(existing=existing))
