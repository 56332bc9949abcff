"""Options that several commands share, and what a command gets to know of the group's options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ..errors import InvalidArgumentError
from ..mounts import Mount
from .place import Place, find_program

F = TypeVar("F", bound=Callable[..., Any])


class Context:
    """The group's options; the state directory and the programs are looked for when needed."""

    def __init__(
        self,
        state_dir: str | Callable[[], str],
        runtime: str | None,
        monitor: str | None,
        cgroup_manager: str,
    ) -> None:
        self._state_dir = state_dir
        self._runtime, self._monitor = runtime, monitor
        self._cgroup_manager = cgroup_manager
        self._place: Place | None = None

    @property
    def place(self) -> Place:
        if self._place is None:
            directory = self._state_dir if isinstance(self._state_dir, str) else self._state_dir()
            runtime = find_program(self._runtime, ("runc", "crun"), "--runtime")
            monitor = find_program(self._monitor, ("pyconmon", "conmon"), "--monitor")
            self._place = Place(directory, runtime, monitor, self._cgroup_manager)
        return self._place


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
pass_place = click.make_pass_decorator(Context)


def complete_name(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The containers' names, for the shell."""
    options: Mapping[str, Any] = context.find_root().params
    try:
        where = options.get("state_dir") or None
        found = Context(where, None, None, "cgroupfs").place.names() if where else _default_names()
    except (click.ClickException, OSError):
        return []
    return [name for name in found if name.startswith(incomplete)]


def _default_names() -> list[str]:
    from .place import default_state_dir

    return Context(default_state_dir, None, None, "cgroupfs").place.names()


def name_argument(command: F) -> F:
    return click.argument("name", shell_complete=complete_name)(command)


def names_argument(command: F) -> F:
    return click.argument("names", metavar="NAME...", nargs=-1, shell_complete=complete_name)(
        command
    )


def parse_environment(words: tuple[str, ...]) -> list[str]:
    """NAME=VALUE as it is, NAME from the caller's own environment."""
    found = []
    for word in words:
        if "=" in word:
            found.append(word)
        elif word in os.environ:
            found.append(f"{word}={os.environ[word]}")
    return found


def parse_mount(text: str) -> Mount:
    """type=bind,source=DIR,target=DIR[,ro|rw] or type=tmpfs,target=DIR[,size=64m][,mode=1777]."""
    values: dict[str, str] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        key = {"src": "source", "dst": "target", "destination": "target", "readonly": "ro"}.get(
            key, key
        )
        if key not in ("type", "source", "target", "size", "mode", "ro", "rw"):
            raise InvalidArgumentError(
                f"--mount {text}: {word!r} is not known; give type=bind,source=,target=[,rw] or "
                "type=tmpfs,target=[,size=]"
            )
        values[key] = value
    kind, target = values.get("type", "bind"), values.get("target")
    if not target or kind not in ("bind", "tmpfs") or (kind == "bind") != ("source" in values):
        raise InvalidArgumentError(
            f"--mount {text}: give type=bind with source= and target=, or type=tmpfs with target="
        )
    if kind == "bind":
        return Mount.bind(os.path.abspath(values["source"]), target, read_only="rw" not in values)
    return Mount.tmpfs(target, size=values.get("size", "64m"), mode=values.get("mode", "1777"))


def parse_volume(text: str) -> str:
    """SOURCE:DESTINATION[:ro|rw]; the source may be relative to the working directory."""
    source, colon, rest = text.partition(":")
    return os.path.abspath(source) + colon + rest if source and colon else text
