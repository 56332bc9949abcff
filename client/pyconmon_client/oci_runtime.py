"""Calling the OCI runtime directly: start, kill, delete, state, version.

Outsiders rely on errors that carry the runtime's own words, and ContainerNotFound told apart.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from . import argv as argv_of
from .errors import ContainerNotFound, PyconmonError, RuntimeCommandError


class OciRuntime:
    """The runtime at `path`; no call may take longer than `seconds`."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self.seconds = seconds

    def call(self, what: str, argv: Sequence[str], container: str = "") -> str:
        """The command's stdout. `what` it does and to which container is for the error."""
        target = f"container {container}" if container else self.path
        what = f"{what} {target}"
        try:
            # The environment, as in the Go client, is the caller's own.
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            text = f"{self.path} did not end within {self.seconds} s"
            raise RuntimeCommandError(what, argv, -1, text) from error
        except OSError as error:
            raise RuntimeCommandError(what, argv, -1, f"{self.path}: {error.strerror}") from error
        if done.returncode != 0:
            text = (done.stderr or done.stdout).decode("utf-8", "replace")
            missing = container and ("does not exist" in text or "not found" in text)
            kind = ContainerNotFound if missing else RuntimeCommandError
            raise kind(what, argv, done.returncode, text)
        return done.stdout.decode("utf-8", "replace")

    def version(self) -> str:
        """The last word of the first line that `RUNTIME -v` prints."""
        words = self.call("ask for the version of", argv_of.runtime_version(self.path))
        first = words.partition("\n")[0].split()
        if not first:
            raise PyconmonError(f"could not ask {self.path} for its version: it printed nothing")
        return first[-1]

    def state(self, name: str) -> dict[str, Any]:
        """The OCI state of a container, as the runtime prints it."""
        text = self.call("ask for the state of", argv_of.runtime_state(self.path, name), name)
        try:
            loaded = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PyconmonError(
                f"could not read the state of container {name} from {self.path}: {error}"
            ) from error
        if not isinstance(loaded, dict):
            raise PyconmonError(
                f"could not read the state of container {name} from {self.path}: not a JSON object"
            )
        return loaded

    def status(self, name: str) -> str:
        return str(self.state(name).get("status", ""))
