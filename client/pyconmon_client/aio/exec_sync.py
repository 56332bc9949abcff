"""exec_sync on the event loop: run a command, wait for it, return its output and exit code.

The same promises as the blocking one: no deadlock, memory bounded by `max_output` per stream, a
timeout that ends all that was started, no wait for background processes. A task that is cancelled
ends the command too, before the cancellation goes on.
"""

from __future__ import annotations

import select
from typing import Any, cast

from .. import exec_sync
from ..errors import ExecExitError, ExecStartError, ExecSyncError, ExecTimeout, PyconmonError
from ..exec_session import ExecRequest, ExecSession
from ..exec_sync import ExecResult, broken
from .ending import close_session, end_session
from .gate import Gate, Slot
from .watch import Watch, deadline_in, seconds_left, see_through


class _Run(exec_sync.Run):
    """The loop of one call: the blocking one's, woken by the event loop."""

    def __init__(
        self, session: ExecSession, stdin: bytes, max_output: int, watch: Watch, slot: Slot
    ) -> None:
        super().__init__(session, stdin, max_output)
        self._watch, self._slot = watch, slot
        # Watch has the words of a poller that the blocking loop uses.
        self._poller = cast(Any, watch)
        for fd in (*self.captures, session.sync.fd, session.child.pidfd):
            watch.register(fd)
        if session.stdin >= 0:
            watch.register(session.stdin, select.POLLOUT)

    async def end(self, timeout: float | None) -> bool:
        """False if the time is over."""
        wake = deadline_in(timeout)
        while not self.session.advance():
            if self.session.messages or self.session.sync.eof:
                self._slot.leave()
            if wake is not None and timeout is not None and seconds_left(wake) == 0.0:
                left = self.session.time_left(timeout)
                if left <= 0:
                    return False
                wake = deadline_in(left)
            for fd, _ in await self._watch.poll(seconds_left(wake)):
                self._serve(fd)
        return True


async def run(
    request: ExecRequest,
    gate: Gate,
    *,
    timeout: float | None,
    stdin: bytes | None,
    max_output: int,
    check: bool,
) -> ExecResult:
    """Run it to its end. Raises ExecSyncError's subclasses as Runtime.exec_sync documents."""
    async with gate.slot() as slot:
        try:
            session = ExecSession(request, stdin=stdin is not None)
        except (OSError, PyconmonError) as error:
            raise ExecStartError(b"", b"", -1, error) from error
        with Watch() as watch:
            try:
                return await _follow(session, watch, slot, stdin or b"", max_output, timeout, check)
            finally:
                watch.close()
                await close_session(session)


async def _follow(
    session: ExecSession,
    watch: Watch,
    slot: Slot,
    stdin: bytes,
    max_output: int,
    timeout: float | None,
    check: bool,
) -> ExecResult:
    loop = _Run(session, stdin, max_output, watch, slot)
    try:
        if not await loop.end(timeout):
            await see_through(end_session(session))
            out, err, cut = loop.finish()
            cause = "command timed out" if session.pid else "command not started in time"
            raise ExecTimeout(out, err, -1, cause, cut)
        outcome = session.outcome()
        if outcome.failure:
            await see_through(end_session(session))
            raise broken(session, outcome, *loop.finish())
        out, err, cut = loop.finish()
    except ExecSyncError:
        raise
    except (OSError, PyconmonError) as error:
        await see_through(end_session(session))
        out, err, cut = loop.finish()
        raise ExecSyncError(out, err, -1, error, cut) from error
    if check and outcome.exit_code != 0:
        text = f"container workload exited with error {outcome.exit_code}"
        raise ExecExitError(out, err, outcome.exit_code, text, cut)
    return ExecResult(out, err, outcome.exit_code, cut)
