"""Calling the OCI runtime on the event loop: what oci_runtime.OciRuntime does, without blocking.

A call that is cancelled is still seen to its end: the runtime must not be stopped half-way, and all
that is called here is short.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .. import argv as argv_of
from ..calling import Call, Done
from ..dialect import resolve
from ..errors import PyconmonError
from ..oci_runtime import not_called, output, state_in, version_in
from .watch import Watch, deadline_in, seconds_left, see_through


class OciRuntime:
    """The runtime at `path`; no call may take longer than `seconds`."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = resolve(path)
        self.seconds = seconds

    async def call(self, what: str, argv: Sequence[str], container: str = "") -> str:
        """The command's stdout. `what` it does and to which container is for the error."""
        what = f"{what} container {container}" if container else f"{what} {self.path}"
        try:
            done = await see_through(_call(argv, self.seconds))
        except PyconmonError as error:
            raise not_called(what, argv, error) from error
        return output(what, argv, done, self.seconds, container)

    async def version(self) -> str:
        """The last word of the first line that `RUNTIME -v` prints."""
        words = await self.call("ask for the version of", argv_of.runtime_version(self.path))
        return version_in(words, self.path)

    async def state(self, name: str) -> dict[str, Any]:
        """The OCI state of a container, as the runtime prints it."""
        text = await self.call("ask for the state of", argv_of.runtime_state(self.path, name), name)
        return state_in(text, name, self.path)


async def _call(argv: Sequence[str], seconds: float) -> Done | None:
    """calling.call on the loop."""
    deadline = deadline_in(seconds)
    with Call(argv, os.environ) as running, Watch() as watch:
        for fd in running.descriptors():
            watch.register(fd)
        while not running.ended():
            if seconds_left(deadline) == 0.0:
                return None
            for fd, _ in await watch.poll(seconds_left(deadline)):
                if not running.serve(fd):
                    watch.unregister(fd)
        return running.done()
