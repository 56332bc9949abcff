"""Which dialect to start monitors in: CRI-O's of 2017 ("classic") or conmon 2.x ("modern").

C conmon of today knows only the modern one. pyconmon knows both and names itself as its commit in
`--version`, which is asked once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Literal

from .calling import call
from .errors import ContainerStateError, InvalidArgumentError, MonitorError, PyconmonError

Dialect = Literal["auto", "classic", "modern"]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS = 60.0


class MonitorProgram:
    """The monitor's executable, its environment, and the dialect to speak with it."""

    def __init__(
        self,
        path: str,
        environment: Mapping[str, str] | Sequence[str] | None,
        setting: Dialect,
    ) -> None:
        if setting not in ("auto", "classic", "modern"):
            raise InvalidArgumentError(f"dialect is auto, classic or modern, not {setting!r}")
        self.path = path
        self.environment = _environment(environment)
        self.setting = setting
        self._has_classic: bool | None = None

    def classic(self, enough: bool, setting: Dialect | None = None) -> bool:
        """Whether to use the classic dialect; `enough`: it can do all that is asked for.

        ContainerStateError if the classic one is wished for and cannot.
        """
        setting = setting or self.setting
        if setting == "classic":
            if not enough:
                raise ContainerStateError(
                    "could not do this in the classic dialect: it has no logs, no attaching, no "
                    'stdin of its own and no settings for one exec (dialect="auto" can)'
                )
            return True
        if setting == "modern" or not enough:
            return False
        if self._has_classic is None:
            self._has_classic = self._ask()
        return self._has_classic

    def _ask(self) -> bool:
        try:
            asked = call([self.path, "--version"], self.environment, _SECONDS)
        except PyconmonError as error:
            raise MonitorError(
                f"could not ask the monitor {self.path} for its version: {error}"
            ) from error
        if asked is None:
            raise MonitorError(
                f"could not ask the monitor {self.path} for its version: no answer in {_SECONDS} s"
            )
        return b"commit: pyconmon" in asked.stdout


def resolve(program: str | os.PathLike[str]) -> str:
    """A program's absolute path: monitors start elsewhere, and take paths only. A bare name is
    looked for in PATH and where system programs are; one that is not found stays as it is.
    """
    path = os.fspath(program)
    if "/" in path:
        return os.path.abspath(path)
    return shutil.which(path) or shutil.which(path, path=_DEFAULT_PATH) or path


def _environment(given: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    if given is None:
        found = {"PATH": os.environ.get("PATH", _DEFAULT_PATH)}
        if "XDG_RUNTIME_DIR" in os.environ:
            found["XDG_RUNTIME_DIR"] = os.environ["XDG_RUNTIME_DIR"]
        return found
    if isinstance(given, Mapping):
        return dict(given)
    pairs = [entry.partition("=") for entry in given]
    return {key: value for key, _, value in pairs}
