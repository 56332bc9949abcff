"""Calling the OCI runtime on the event loop: what oci_runtime.OciRuntime does, without blocking.

A call that is cancelled is still seen to its end: the runtime must not be stopped half-way, and all
that is called here is short.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .. import argv as argv_of
from .. import spawn
from ..dialect import resolve
from ..errors import MonitorError, RuntimeCommandError
from ..exec_sync import Capture
from ..oci_runtime import failure, state_in, version_in
from .ending import wait_child
from .watch import Watch, deadline_in, seconds_left, see_through

_MOST_OUTPUT = 4 << 20


class OciRuntime:
    """The runtime at `path`; no call may take longer than `seconds`."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = resolve(path)
        self.seconds = seconds

    async def call(self, what: str, argv: Sequence[str], container: str = "") -> str:
        """The command's stdout. `what` it does and to which container is for the error."""
        what = f"{what} container {container}" if container else f"{what} {self.path}"
        status, out, err = await see_through(self._run(what, argv))
        if status != 0:
            raise failure(what, argv, status, err or out, container)
        return out.decode("utf-8", "replace")

    async def _run(self, what: str, argv: Sequence[str]) -> tuple[int, bytes, bytes]:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        out, out_child = os.pipe()
        err, err_child = os.pipe()
        ours = {out: Capture(_MOST_OUTPUT), err: Capture(_MOST_OUTPUT)}
        try:
            try:
                child = spawn.start(
                    self.path, argv[1:], os.environ, descriptors=[null, out_child, err_child]
                )
            except MonitorError as error:
                reason = str(error).partition(": ")[2]
                raise RuntimeCommandError(what, argv, -1, f"{self.path}: {reason}") from error
            finally:
                for fd in (null, out_child, err_child):
                    os.close(fd)
            try:
                status = await self._follow(child, ours)
            finally:
                if child.poll() is None:
                    child.send_signal(9)
                    child.wait(self.seconds)
                child.close()
            if status is None:
                text = f"{self.path} did not end within {self.seconds} s"
                raise RuntimeCommandError(what, argv, -1, text)
            return status, bytes(ours[out].data), bytes(ours[err].data)
        finally:
            os.close(out)
            os.close(err)

    async def _follow(self, child: spawn.Child, ours: dict[int, Capture]) -> int | None:
        """To the end of its output and its own; the status, None if that takes too long."""
        deadline = deadline_in(self.seconds)
        with Watch() as watch:
            reading = set(ours)
            for fd in ours:
                os.set_blocking(fd, False)
                watch.register(fd)
            while reading:
                ready = await watch.poll(seconds_left(deadline))
                if not ready:
                    return None
                for fd, _ in ready:
                    chunk = os.read(fd, 65536)
                    ours[fd].add(chunk)
                    if not chunk:
                        watch.unregister(fd)
                        reading.discard(fd)
        return await wait_child(child, seconds_left(deadline))

    async def version(self) -> str:
        """The last word of the first line that `RUNTIME -v` prints."""
        words = await self.call("ask for the version of", argv_of.runtime_version(self.path))
        return version_in(words, self.path)

    async def state(self, name: str) -> dict[str, Any]:
        """The OCI state of a container, as the runtime prints it."""
        text = await self.call("ask for the state of", argv_of.runtime_state(self.path, name), name)
        return state_in(text, name, self.path)
