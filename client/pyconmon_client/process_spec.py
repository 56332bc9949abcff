"""The OCI process of an exec: the container's own from its config.json, with another command."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import BundleError
from .spec import check_args, check_user, check_variables
from .values import check_absolute


@dataclass(frozen=True, slots=True)
class ExecSettings:
    """What may differ from the container's own process; all of it needs the modern dialect."""

    env: Mapping[str, str] | Sequence[str] | None = None
    """A mapping or "NAME=value" words, added to the container's environment."""
    cwd: str | None = None
    user: str | None = None
    """"uid" or "uid:gid", numbers."""
    size: tuple[int, int] | None = None
    """Rows and columns of its terminal at the start."""

    def plain(self) -> bool:
        return self.env is None and self.cwd is None and self.user is None


def exec_process(
    bundle: str, command: Sequence[str], settings: ExecSettings, *, terminal: bool
) -> dict[str, Any]:
    """The process object for `runtime exec --process`.

    InvalidArgumentError for a value that can't be right, BundleError if config.json is no help.
    """
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            process: dict[str, Any] = dict(json.load(file)["process"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"could not read the process of {path}: {type(error).__name__}: {error}"
        ) from error
    process |= {"args": check_args(command, "command"), "terminal": terminal}
    process.pop("consoleSize", None)
    if terminal and settings.size is not None:
        rows, columns = settings.size
        process["consoleSize"] = {"height": rows, "width": columns}
    if settings.env is not None:
        added = [f"{name}={value}" for name, value in check_variables(settings.env).items()]
        process["env"] = [*process.get("env", []), *added]
    if settings.cwd is not None:
        process["cwd"] = check_absolute("cwd", settings.cwd)
    if settings.user is not None:
        uid, gid = check_user(settings.user)
        process["user"] = {"uid": uid, "gid": gid}
    return process
