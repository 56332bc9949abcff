"""Creating a container on the event loop: what creation.create does, without blocking.

A task that is cancelled ends what it has started, as a failure does: no monitor, no half-made
container stays. Recovery is here too, since it starts a monitor as well.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping

from .. import argv as argv_of
from .. import creation, spawn
from ..container import Container
from ..creation import LEAVING_SECONDS, CreateRequest
from ..errors import CreateTimeout, PyconmonError
from ..monitor import ProcessId
from ..recovery import Takeover
from .ending import end_tree, wait_child, wait_process
from .oci_runtime import OciRuntime
from .watch import Watch, deadline_in, seconds_left, see_through


class _Conversation(creation.Conversation):
    """Waiting for the one message on the event loop; the blocking one's words and rules."""

    async def hear(self, seconds: float) -> int:
        """The container's pid; CreateError, CreateTimeout."""
        deadline = deadline_in(seconds)
        with Watch() as watch:
            watch.register(self.sync.fd)
            if self._stderr >= 0:
                watch.register(self._stderr)
            while not (messages := self.sync.read()) and not self.sync.eof:
                ready = await watch.poll(seconds_left(deadline))
                if not ready and seconds_left(deadline) == 0.0:
                    raise self._late(seconds)
                if any(fd == self._stderr for fd, _ in ready) and not self._listen():
                    watch.unregister(self._stderr)
        first = messages[0] if messages else None
        if first is None or first.value <= 0 or first.key not in ("pid", "data"):
            await wait_child(self.child, LEAVING_SECONDS)
            raise self._failed(first.message.strip() if first else "")
        # The first process ends when it has forked the real monitor.
        if await wait_child(self.child, LEAVING_SECONDS) != 0 and not self.child.lost:
            raise self._failed(f"the monitor's first process: status {self.child.returncode}")
        self._let_go(first.value)
        return first.value

    async def abandon(self, seconds: float) -> None:
        """As `give_up()`: a healthy runtime comes to its end."""
        try:
            await self.hear(seconds)
            self.child.close()
        except PyconmonError:
            await self.finish()

    async def finish(self) -> None:
        """As `end()`: nothing that this monitor started stays."""
        await end_tree(self._mark, self._roots())
        await wait_child(self.child, LEAVING_SECONDS)
        try:
            self.child.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        await wait_child(self.child, LEAVING_SECONDS)
        self.child.close()


async def create(request: CreateRequest) -> tuple[int, spawn.Child]:
    """(container pid, the started process). Raises CreateError, CreateTimeout or MonitorError."""
    with creation.Start(request) as start:
        conversation = _Conversation(start)
        try:
            return await conversation.hear(request.seconds), start.child
        except CreateTimeout:
            await see_through(conversation.abandon(creation.FINISHING_SECONDS))
            raise
        except asyncio.CancelledError:
            await see_through(conversation.abandon(LEAVING_SECONDS))
            raise
        except BaseException:
            await see_through(conversation.finish())
            raise


async def forget_half_made(container: Container, oci: OciRuntime, begun: int) -> None:
    """After a failed create: the runtime may have got as far as keeping a state for it."""
    try:
        if creation.is_of(container, await oci.state(container.name), begun):
            monitor = creation.half_made_monitor(container)
            argv = argv_of.runtime_delete(oci.path, container.name, force=True)
            await oci.call("delete", argv, container.name)
            await wait_process(monitor, LEAVING_SECONDS)
    except PyconmonError:
        pass


async def recover(
    monitor_path: str, environment: Mapping[str, str], bundle: str, seconds: float
) -> ProcessId | None:
    """The monitor that has taken over, or None if there was nothing to take over."""
    with Takeover(monitor_path, environment, bundle) as takeover:
        try:
            await wait_child(takeover.child, seconds)
        finally:
            if takeover.child.poll() is None:
                await see_through(end_tree(takeover.mark, []))
        return takeover.result()
