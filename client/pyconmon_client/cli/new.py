"""The options of a new container, shared by run and create, and the bundle that they make."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ..bundle import Bundle
from .options import F, parse_environment, parse_mount, parse_volume
from .place import Place

_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--name", help="The container's name. Default: one is made up."),
    click.option(
        "--rootfs",
        type=click.Path(exists=True, file_okay=False),
        help="A root file system; the bundle is made for it.",
    ),
    click.option(
        "--bundle",
        type=click.Path(exists=True, file_okay=False),
        help="An OCI bundle, taken as it is.",
    ),
    click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the container."),
    click.option("-t", "--tty", is_flag=True, help="Give the container a terminal."),
    click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended."),
    click.option(
        "--timeout",
        type=click.IntRange(min=1),
        metavar="SECONDS",
        help="Have the monitor kill the container after that time; exit status 255.",
    ),
    click.option("--memory", metavar="SIZE", help="Limit of memory, such as 64m."),
    click.option("--cpus", type=float, metavar="NUMBER", help="Limit of CPUs, such as 1.5."),
    click.option(
        "--pids",
        type=int,
        metavar="NUMBER",
        help="Most processes and threads; 0 for no limit. Default: 1024.",
    ),
    click.option(
        "--read-only/--writable",
        default=True,
        show_default=True,
        help="The root file system. Read-only, /tmp is a file system in memory.",
    ),
    click.option("-u", "--user", metavar="UID[:GID]", help="Who executes the command, in numbers."),
    click.option(
        "-w", "--workdir", default="/", show_default=True, help="The command's directory."
    ),
    click.option(
        "-e",
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="An environment variable; without value the caller's own. Repeatable.",
    ),
    click.option(
        "-v",
        "--volume",
        multiple=True,
        metavar="SOURCE:TARGET[:ro|rw]",
        help="A file or directory to be seen in the container, read-only unless :rw. Repeatable.",
    ),
    click.option(
        "--mount",
        multiple=True,
        metavar="SPEC",
        help="type=bind,source=PATH,target=PATH[,rw] or type=tmpfs,target=PATH[,size=64m]. "
        "Repeatable.",
    ),
    click.option("--hostname", default="container", show_default=True, help="The host's name."),
    click.option(
        "--network",
        type=click.Choice(["none", "host"]),
        default="none",
        show_default=True,
        help="No network but loopback, or the host's.",
    ),
    click.argument("command", nargs=-1, type=click.UNPROCESSED),
]

# What a bundle of the user's own says itself.
_ONLY_WITH_ROOTFS = tuple(
    [
        "memory",
        "cpus",
        "pids",
        "read_only",
        "user",
        "workdir",
        "env",
        "volume",
        "mount",
        "hostname",
        "network",
        "command",
    ]
)


@dataclass(frozen=True, slots=True)
class NewContainer:
    """The options' values, by their names."""

    name: str | None
    rootfs: str | None
    bundle: str | None
    interactive: bool
    tty: bool
    remove: bool
    timeout: int | None
    memory: str | None
    cpus: float | None
    pids: int | None
    read_only: bool
    user: str | None
    workdir: str
    env: tuple[str, ...]
    volume: tuple[str, ...]
    mount: tuple[str, ...]
    hostname: str
    network: str
    command: tuple[str, ...]

    def chosen_name(self) -> str:
        if self.name is None:
            return f"c-{uuid.uuid4().hex[:12]}"
        good = self.name.isprintable() and re.fullmatch(r"(?!-)[^/\s]+", self.name)
        if not good or self.name in (".", ".."):
            raise click.UsageError(
                f"--name {self.name!r}: give one word without / that does not begin with -"
            )
        return self.name

    def make_bundle(self, place: Place, name: str) -> Bundle:
        """Write the bundle (for --rootfs), or look at the user's own."""
        if bool(self.rootfs) == bool(self.bundle):
            raise click.UsageError("give --rootfs DIR and a command, or --bundle DIR")
        if self.bundle:
            self._refuse_what_the_bundle_says()
            return place.user_bundle(self.bundle, self.tty)
        assert self.rootfs is not None
        env = parse_environment(self.env)
        if self.tty and not any(word.startswith("TERM=") for word in env):
            env.append(f"TERM={os.environ.get('TERM') or 'xterm'}")
        return Bundle.from_rootfs(
            self.rootfs,
            args=self.command or ("sh",),
            env=env,
            mounts=[*map(parse_volume, self.volume), *map(parse_mount, self.mount)],
            memory=self.memory,
            cpus=self.cpus,
            pids=self.pids,
            read_only=self.read_only,
            user=self.user or 0,
            rootless=os.geteuid() != 0,
            terminal=self.tty,
            cwd=self.workdir,
            hostname=self.hostname,
            network=self.network == "host",
            runtime=place.runtime.path,
            directory=place.bundle_directory(name),
        )

    def _refuse_what_the_bundle_says(self) -> None:
        context = click.get_current_context()
        for key in _ONLY_WITH_ROOTFS:
            if context.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE and (
                value := getattr(self, key)
            ) not in (None, ()):
                word = "a command" if key == "command" else f"--{key.replace('_', '-')} {value}"
                raise click.UsageError(f"{word}: that is for --rootfs; config.json says it")


def new_container_options(command: F) -> F:
    """The options, as one argument `new`."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command
