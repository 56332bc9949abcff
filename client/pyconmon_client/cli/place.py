"""The state directory: containers that this command has created, their bundles and logs.

    containers/NAME.json   records, as the library writes them; containers/exits/NAME
    bundles/NAME/          the bundle, for containers made with --rootfs
    execs/NAME/            one folder for each command of exec -d
    logs/NAME.log          the output, k8s-file form; NAME.log.1... where it was rotated

One container, one name: a name is free again after rm. Out of scope: the runtime's own state, which
is where the runtime keeps it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import click

from .. import store
from ..bundle import Bundle
from ..container import Container
from ..errors import BundleError, ContainerNotFound, PyconmonError, RecordError
from ..runtime import Runtime

_SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"


def default_state_dir() -> str:
    if os.geteuid() == 0:
        return "/run/pyconmon"
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(folder, "pyconmon")
    raise click.UsageError("no XDG_RUNTIME_DIR: give --state-dir")


def find_program(given: str | None, names: Sequence[str], option: str) -> str:
    """An absolute path: monitors look nothing up."""
    if given:
        found = shutil.which(given, path=os.environ.get("PATH", "") + _SBIN)
        if found is None:
            raise click.UsageError(f"{option} {given}: no such program")
        return os.path.abspath(found)
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    path = ":".join([beside, os.path.dirname(sys.executable), os.environ.get("PATH", "")]) + _SBIN
    for name in names:
        if found := shutil.which(name, path=path):
            return os.path.abspath(found)
    raise click.UsageError(f"no {' or '.join(names)} on this machine: give {option}")


def _environment() -> dict[str, str]:
    """The monitors': what they use, and nothing else of ours."""
    found = {key: os.environ[key] for key in ("XDG_RUNTIME_DIR", "TMPDIR") if key in os.environ}
    return {"PATH": (os.environ.get("PATH") or "/usr/bin:/bin") + _SBIN, **found}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of a new container, besides its bundle."""

    stdin: bool
    leave_stdin_open: bool
    remove: bool
    timeout: int | None


class CommandRuntime(Runtime):
    """A Runtime whose monitors get a few more options."""

    extra: Sequence[str] = ()

    def modern_argv(self, *arguments: Any) -> list[str]:
        return [*super().modern_argv(*arguments), *self.extra]


class Place:
    """The containers of one state directory, through one runtime and one monitor."""

    def __init__(self, directory: str, runtime: str, monitor: str, cgroup_manager: str) -> None:
        self.directory = os.path.abspath(directory)
        self._records = os.path.join(self.directory, "containers")
        self._options = ["--runtime", runtime, "--monitor", monitor]
        self._options += ["--cgroup-manager", cgroup_manager]
        self.runtime = CommandRuntime(
            runtime,
            self._records,
            monitor,
            _environment(),
            cgroup_manager=cgroup_manager,
            dialect="modern",
        )

    def names(self) -> list[str]:
        return store.names(self._records)

    def load(self, name: str) -> Container:
        try:
            return self.runtime.reload(name)
        except RecordError as error:
            if name in self.names():
                raise
            raise PyconmonError(f"there is no container {name} in {self.directory}") from error

    def bundle_directory(self, name: str) -> str:
        return os.path.join(self.directory, "bundles", name)

    def executions_directory(self, name: str) -> str:
        """Of the commands that were started in it with exec -d."""
        return os.path.join(self.directory, "execs", name)

    def log_path(self, name: str) -> str:
        return os.path.join(self.directory, "logs", f"{name}.log")

    def check_free(self, name: str) -> None:
        """A bundle that is left of a container which was never created is in nobody's way."""
        if name in self.names():
            raise PyconmonError(
                f"there is a container {name} already: take another name, or remove it first "
                f"(pyconmon-client rm {name})"
            )
        shutil.rmtree(self.bundle_directory(name), ignore_errors=True)
        for log in self._logs(name):
            os.unlink(log)

    def create(self, name: str, bundle: Bundle, wishes: Wishes) -> Container:
        """Create a container in that bundle; nothing is left of one that cannot be."""
        os.makedirs(os.path.dirname(self.log_path(name)), mode=0o700, exist_ok=True)
        ours = bundle.path == os.path.realpath(self.bundle_directory(name))
        container = Container(
            uuid.uuid4().hex,
            name,
            bundle.path,
            self.log_path(name),
            terminal=bundle.terminal,
            metadata={
                "command": list(bundle.config.get("process", {}).get("args", [])),
                "remove": wishes.remove,
                "stdin": wishes.stdin,
                "timeout": wishes.timeout,
            },
        )
        extra: list[str] = []
        if wishes.timeout:
            extra += ["--timeout", str(wishes.timeout)]
        if wishes.remove:
            extra += self._exit_command(container)
        self.runtime.extra = extra
        try:
            self.runtime.create_container(
                container,
                output="log",
                # A terminal takes input anyhow; with this, C conmon would close it when the first
                # client leaves.
                stdin=wishes.stdin and not container.terminal,
                leave_stdin_open=wishes.leave_stdin_open,
            )
        except BaseException:
            if ours:
                bundle.remove()
            for log in self._logs(name):
                os.unlink(log)
            raise
        return container

    def _exit_command(self, container: Container) -> list[str]:
        """What the monitor executes at the container's end: its removal, by this very command."""
        words = [sys.executable, "-I", "-m", "pyconmon_client.cli", "--state-dir", self.directory]
        words += [*self._options, "cleanup", container.name, container.id]
        command = ["--exit-command", words[0]]
        for word in words[1:]:
            command += ["--exit-command-arg", word]
        return command

    @contextmanager
    def kept(self, container: Container) -> Iterator[None]:
        """A block that --rm's removal waits for, so that the exit code can be read in it."""
        with self._locked(container, fcntl.LOCK_SH):
            yield

    def remove_at_its_end(self, name: str, ident: str) -> None:
        """--rm's removal. The name may be another container's by now, or become it meanwhile."""
        container = self.load(name)
        with self._locked(container, fcntl.LOCK_EX):
            if container.id == ident == self.load(name).id:
                self.remove(container)

    @contextmanager
    def _locked(self, container: Container, how: int) -> Iterator[None]:
        try:
            directory = os.open(container.bundle_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield  # there is nothing to read in it any more
            return
        try:
            fcntl.flock(directory, how)
            yield
        finally:
            os.close(directory)

    def remove(self, container: Container, *, force: bool = False) -> None:
        """Delete the container, its record, log and (unless it is the user's own) bundle."""
        try:
            self.runtime.delete_container(container, force=force)
        except ContainerNotFound:
            pass  # by the other one of those who remove it at its end
        for log in self._logs(container.name):
            with suppress(FileNotFoundError):
                os.unlink(log)
        shutil.rmtree(self.executions_directory(container.name), ignore_errors=True)
        # After the record: a bundle without one is taken away with the next of its name.
        shutil.rmtree(self.bundle_directory(container.name), ignore_errors=True)

    def _logs(self, name: str) -> list[str]:
        log = self.log_path(name)
        return [*glob.glob(glob.escape(log) + ".[0-9]*"), *([log] if os.path.exists(log) else [])]

    def user_bundle(self, path: str, terminal: bool) -> Bundle:
        """A bundle of the user's own, which stays as it is."""
        bundle = Bundle(path)
        if bundle.terminal != terminal:
            there, flag = ("a", "with -t") if bundle.terminal else ("no", "without -t")
            raise BundleError(f"{bundle.path} says {there} terminal: give it {flag}, or change it")
        return bundle
