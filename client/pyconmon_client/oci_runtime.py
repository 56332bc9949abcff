"""Calling the OCI runtime directly: start, kill, delete, state, version.

Outsiders rely on errors that carry the runtime's own words, and ContainerNotFound told apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from . import argv as argv_of
from .calling import Done, call
from .errors import ContainerNotFound, PyconmonError, RuntimeCommandError


class OciRuntime:
    """The runtime at `path`; no call may take longer than `seconds`."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self.seconds = seconds

    def call(self, what: str, argv: Sequence[str], container: str = "") -> str:
        """The command's stdout. `what` it does and to which container is for the error."""
        what = f"{what} container {container}" if container else f"{what} {self.path}"
        try:
            # The environment, as in the Go client, is the caller's own.
            done = call(argv, os.environ, self.seconds)
        except PyconmonError as error:
            raise not_called(what, argv, error) from error
        return output(what, argv, done, self.seconds, container)

    def version(self) -> str:
        """The last word of the first line that `RUNTIME -v` prints."""
        words = self.call("ask for the version of", argv_of.runtime_version(self.path))
        return version_in(words, self.path)

    def state(self, name: str) -> dict[str, Any]:
        """The OCI state of a container, as the runtime prints it."""
        text = self.call("ask for the state of", argv_of.runtime_state(self.path, name), name)
        return state_in(text, name, self.path)

    def status(self, name: str) -> str:
        return str(self.state(name).get("status", ""))


def not_called(what: str, argv: Sequence[str], error: PyconmonError) -> RuntimeCommandError:
    why = str(error).removeprefix(f"could not start the monitor {argv[0]}: ")
    return RuntimeCommandError(what, argv, -1, f"{argv[0]}: {why}")


def output(
    what: str, argv: Sequence[str], done: Done | None, seconds: float, container: str
) -> str:
    """What it has printed, or the error of it, which tells a missing container apart."""
    if done is None:
        text = f"{argv[0]} did not end within {seconds} s"
        raise RuntimeCommandError(what, argv, -1, text)
    if done.status == 0:
        return done.stdout.decode("utf-8", "replace")
    text = (done.stderr or done.stdout).decode("utf-8", "replace")
    missing = container and ("does not exist" in text or "not found" in text)
    raise (ContainerNotFound if missing else RuntimeCommandError)(what, argv, done.status, text)


def version_in(text: str, path: str) -> str:
    """The last word of the first line."""
    first = text.partition("\n")[0].split()
    if not first:
        raise PyconmonError(f"could not ask {path} for its version: it printed nothing")
    return first[-1]


def state_in(text: str, name: str, path: str) -> dict[str, Any]:
    """The OCI state that the runtime has printed."""
    problem = f"could not read the state of container {name} from {path}"
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PyconmonError(f"{problem}: {error}") from error
    if not isinstance(loaded, dict):
        raise PyconmonError(f"{problem}: not a JSON object")
    pid, annotations = loaded.get("pid") or 0, loaded.get("annotations") or {}
    if type(pid) is not int or not 0 <= pid < 1 << 31:
        raise PyconmonError(f"{problem}: {pid!r} is no process id")
    if not isinstance(annotations, dict):
        raise PyconmonError(f"{problem}: the annotations are {type(annotations).__name__}")
    return loaded
