"""run on the event loop: one container from its bundle to its exit code, with its output.

The blocking run's promises; a task that is cancelled ends and deletes the container first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..container import Container
from ..errors import ContainerNotFound, CreateError, PyconmonError
from ..exit_status import Exit
from ..run import Limits, RunResult, Streams
from ..wait import ExitWatch
from .watch import Watch, deadline_in, seconds_left, see_through

if TYPE_CHECKING:
    from .runtime import Runtime

_KILL_SECONDS = 20.0


async def run(
    runtime: Runtime,
    container: Container,
    *,
    stdin: bytes | None,
    timeout: float | None,
    max_output: int,
    kill_on_output: bool,
) -> RunResult:
    """Create, start, collect, delete."""
    streams = Streams(stdin, max_output)
    limits = Limits(timeout, kill_on_output)
    try:
        try:
            await runtime.create_container(container, output="caller", stdio=streams.child)
        except CreateError as error:
            raise streams.explained(error) from error
        try:
            streams.close(*streams.child)
            with await runtime.watch_exit(container) as watch:
                begun = deadline_in(0.0) or 0.0
                await runtime.start_container(container)
                ended = await _follow(runtime, container, streams, watch, limits)
                seconds = (deadline_in(0.0) or 0.0) - begun
            runtime.note_exit(container, ended)
        finally:
            await see_through(_delete(runtime, container))
        return streams.result(container, ended, limits, seconds)
    finally:
        streams.close()


async def _follow(
    runtime: Runtime,
    container: Container,
    streams: Streams,
    exit_watch: ExitWatch,
    limits: Limits,
) -> Exit:
    """Copy output until the container has ended; kill it at a limit."""
    deadline = deadline_in(limits.timeout)
    killed = False
    with Watch() as watch:
        # It has the words of a poller that the streams use.
        poller = cast(Any, watch)
        streams.register(poller)
        while (ended := exit_watch.check()) is None:
            limits.output_exceeded = limits.kill_on_output and streams.truncated
            late = seconds_left(deadline) == 0.0
            if not killed and (limits.output_exceeded or late):
                limits.timed_out = not limits.output_exceeded
                await _kill(runtime, container)
                killed, deadline = True, deadline_in(_KILL_SECONDS)
            elif killed and late:
                raise PyconmonError(
                    f"could not end container {container.name}: it was killed {_KILL_SECONDS} s ago"
                )
            # What the exit watch wants to be polled for changes as processes go; it closes what it
            # has done with, which the loop must have forgotten by then.
            watched = exit_watch.descriptors()
            for fd in watched:
                watch.register(fd)
            ready = await watch.poll(seconds_left(deadline))
            for fd in watched:
                watch.unregister(fd)
            for fd, _ in ready:
                if fd not in watched:
                    streams.serve(fd, poller)
        return ended


async def _kill(runtime: Runtime, container: Container) -> None:
    try:
        await runtime.kill_container(container, "KILL")
    except PyconmonError:
        pass  # It has just ended by itself; if not, the deletion by force ends it.


async def _delete(runtime: Runtime, container: Container) -> None:
    try:
        await runtime.delete_container(container, force=True)
    except ContainerNotFound:
        pass
