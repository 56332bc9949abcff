"""Creating a container on the event loop: what creation.create does, without blocking.

A task that is cancelled ends what it has started, as a failure does: no monitor, no half-made
container stays. Recovery is here too, since it starts a monitor as well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket

from .. import argv as argv_of
from .. import creation, process_tree, spawn
from ..container import Container
from ..creation import CreateRequest
from ..errors import CreateTimeout, MonitorError, PyconmonError
from ..exec_session import drain
from ..lookup import read_pidfile
from ..monitor import ProcessId
from ..wire import SyncReader
from .ending import end_tree, wait_child, wait_process
from .oci_runtime import OciRuntime
from .watch import Watch, deadline_in, seconds_left, see_through

_LEAVING_SECONDS = 10.0


class _Conversation(creation._Conversation):
    """Waiting for the one message on the event loop; the blocking one's words and rules."""

    async def hear(self) -> int:
        """The container's pid; CreateError, CreateTimeout."""
        deadline = deadline_in(self.request.seconds)
        with Watch() as watch:
            watch.register(self.sync.fd)
            if self._stderr >= 0:
                watch.register(self._stderr)
            while not (messages := self.sync.read()) and not self.sync.eof:
                ready = await watch.poll(seconds_left(deadline))
                if not ready and seconds_left(deadline) == 0.0:
                    raise CreateTimeout(
                        f"could not create container {self.request.name}: its monitor "
                        f"{self.request.monitor_path} reported no pid within "
                        f"{self.request.seconds} s",
                        self.said(),
                    )
                if any(fd == self._stderr for fd, _ in ready) and not self._listen():
                    watch.unregister(self._stderr)
        first = messages[0] if messages else None
        if first is None or first.value <= 0 or first.key not in ("pid", "data"):
            await wait_child(self.child, _LEAVING_SECONDS)
            raise self._failed(first.message.strip() if first else "")
        # The first process ends when it has forked the real monitor.
        if await wait_child(self.child, _LEAVING_SECONDS) != 0:
            raise self._failed(f"the monitor's first process: status {self.child.returncode}")
        self._let_go(first.value)
        return first.value

    async def give_up(self) -> None:
        """Let a healthy runtime come to its end, since one that is killed leaves cgroups behind; the
        container is deleted later.
        """
        try:
            async with asyncio.timeout(_LEAVING_SECONDS):
                await self.hear()
            self.child.close()
        except (PyconmonError, TimeoutError):
            await self.finish()

    async def finish(self) -> None:
        """As `end()`: nothing that this monitor started stays."""
        roots = {root for root in (ProcessId.of(self.child.pid), self._daemon()) if root}
        if self.child.returncode is not None:
            roots = {root for root in roots if root.pid != self.child.pid}
        await end_tree(self._mark, roots)
        await wait_child(self.child, _LEAVING_SECONDS)
        try:
            self.child.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        await wait_child(self.child, _LEAVING_SECONDS)
        self.child.close()


async def create(request: CreateRequest) -> tuple[int, spawn.Child]:
    """(container pid, the started process). Raises CreateError, CreateTimeout or MonitorError."""
    parent, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stderr, stderr_child = os.pipe()
    given: list[int] = [null, stderr_child, stderr_child]
    for number, fd in enumerate(request.stdio):
        given[number] = given[number] if fd < 0 else fd
    try:
        try:
            child = spawn.start(
                request.monitor_path,
                request.argv,
                {**request.environment, "_OCI_SYNCPIPE": "3"},
                descriptors=[*given, child_end.fileno()],
                cwd=request.bundle,
                new_group=True,
            )
        finally:
            os.close(null)
            os.close(stderr_child)
            child_end.close()
        mark = process_tree.mark(child.pid)
        sync = SyncReader(parent.fileno())
        conversation = _Conversation(request, child, sync, stderr, 0, mark)
        try:
            return await conversation.hear(), child
        except asyncio.CancelledError:
            await see_through(conversation.give_up())
            raise
        except BaseException:
            await see_through(conversation.finish())
            raise
    finally:
        os.close(stderr)
        parent.close()


async def forget_half_made(container: Container, oci: OciRuntime) -> None:
    """After a failed create: the runtime may have got as far as keeping a state for it."""
    try:
        bundle = (await oci.state(container.name)).get("bundle")
        if bundle == os.path.realpath(container.bundle_path):
            argv = argv_of.runtime_delete(oci.path, container.name, force=True)
            await oci.call("delete", argv, container.name)
            pidfile = os.path.join(container.bundle_path, "conmon.pid")
            await wait_process(read_pidfile(pidfile, container.name), _LEAVING_SECONDS)
    except PyconmonError:
        pass


async def recover(
    monitor_path: str, environment: dict[str, str], bundle: str, seconds: float
) -> ProcessId | None:
    """The monitor that has taken over, or None if there was nothing to take over."""
    said, said_child = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        child = spawn.start(
            monitor_path,
            ["--recover", bundle],
            environment,
            descriptors=[null, null, said_child],
            new_group=True,
        )
        mark = process_tree.mark(child.pid)
        try:
            status = await wait_child(child, seconds)
        finally:
            if child.poll() is None:
                await see_through(end_tree(mark, []))
                child.wait(seconds)
            child.close()
        if status != 0:
            text = drain(said).decode("utf-8", "replace").strip()
            why = text or ("it does not answer" if status is None else f"status {status}")
            raise MonitorError(f"could not recover the container of {bundle}: {why}", text)
    finally:
        for fd in (said, said_child, null):
            os.close(fd)
    for process in process_tree.members(mark, []):
        process_tree.unmark(process.pid)
        return process
    return None
