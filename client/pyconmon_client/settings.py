"""What a Runtime is set up with, and what follows from it for monitors: their command lines, where
they write, and what is kept of a new container.

Operations relies on it, and so does the asyncio client: nothing here waits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from . import argv as argv_of
from . import creation, spawn, stats, store
from .container import Container
from .creation import Output
from .dialect import Dialect, MonitorProgram, resolve
from .errors import CreateError, InvalidArgumentError
from .exec_session import ExecRequest
from .oci_runtime import OciRuntime
from .process_spec import ExecSettings, exec_process
from .spec import check_args


class Settings:
    """See Runtime, which is this and more."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        container_dir: str | os.PathLike[str],
        conmon_path: str | os.PathLike[str],
        conmon_env: Mapping[str, str] | Sequence[str] | None = None,
        cgroup_manager: str = "cgroupfs",
        *,
        dialect: Dialect = "auto",
        create_timeout: float = 60.0,
    ) -> None:
        if cgroup_manager not in ("cgroupfs", "systemd"):
            raise InvalidArgumentError(
                f"cgroup_manager is cgroupfs or systemd, not {cgroup_manager!r}"
            )
        self.oci = OciRuntime(resolve(path), create_timeout)
        """For what has no operation here."""
        # Monitors start in the bundle, so a relative path would mean something else to them.
        self._container_dir = os.path.abspath(container_dir) if container_dir else ""
        self._monitor = MonitorProgram(resolve(conmon_path), conmon_env, dialect)
        self._systemd_cgroup = cgroup_manager == "systemd"
        self._create_timeout = create_timeout
        self.samplers = stats.Samplers()

    @property
    def name(self) -> str:
        """The runtime's base name, such as "runc"."""
        return os.path.basename(self.oci.path)

    @property
    def path(self) -> str:
        """The runtime's path."""
        return self.oci.path

    @property
    def container_dir(self) -> str:
        """Where the containers' records are."""
        return self._container_dir

    @property
    def conmon_path(self) -> str:
        """The monitor's path."""
        return self._monitor.path

    @property
    def environment(self) -> Mapping[str, str]:
        """The monitors'."""
        return self._monitor.environment

    @property
    def dialect(self) -> Dialect:
        """The dialect asked for: "auto", "classic" or "modern"."""
        return self._monitor.setting

    def create_request(
        self,
        container: Container,
        output: Output,
        stdin: bool,
        leave_stdin_open: bool,
        stdio: tuple[int, int, int] | None,
        timeout: float | None,
        dialect: Dialect | None = None,
    ) -> creation.CreateRequest:
        """The monitor's start, with what is in its way removed; `daemon` is the modern dialect."""
        if output == "auto":
            output = "log" if container.log_path and stdio is None else "caller"
        if not os.path.isdir(container.bundle_path):
            raise CreateError(
                f"could not create container {container.name}: no bundle {container.bundle_path}"
            )
        creation.refuse_if_alive(container)
        plain = output == "caller" and not (stdin or leave_stdin_open)
        classic = self._monitor.classic(plain, dialect)
        stdio = stdio or (0, 1, 2)
        if classic:
            argv = argv_of.classic_create(
                container.name,
                self.path,
                container.bundle_path,
                systemd_cgroup=self._systemd_cgroup,
                terminal=container.terminal,
            )
        else:
            log = creation.log_of(container, output, stdio)
            if log != "passthrough":
                stdio = (-1, -1, -1)
            argv = self.modern_argv(container, log, stdin, leave_stdin_open)
        creation.remove_leftovers(container.bundle_path, creation.STALE)
        return creation.CreateRequest(
            self.conmon_path,
            argv,
            self._monitor.environment,
            container.bundle_path,
            container.name,
            stdio,
            daemon=not classic,
            seconds=self._create_timeout if timeout is None else timeout,
            stderr_file=stdio[2] if creation.is_file(stdio[2]) else -1,
        )

    def modern_argv(
        self, container: Container, log: str, stdin: bool, leave_stdin_open: bool
    ) -> list[str]:
        """The monitor's arguments; what is in the way of its exit file is removed."""
        exit_dir = ""
        if self._container_dir:
            exit_dir = store.make_directory(self.exit_dir)
            creation.remove_leftovers(exit_dir, [container.name])
        return argv_of.modern_create(
            container.name,
            self.path,
            container.bundle_path,
            cuuid=container.id or container.name,
            log=log,
            exit_dir=exit_dir,
            systemd_cgroup=self._systemd_cgroup,
            terminal=container.terminal,
            stdin=stdin,
            leave_stdin_open=leave_stdin_open,
        )

    def note_created(
        self, container: Container, pid: int, child: spawn.Child, classic: bool
    ) -> None:
        """Keep what a monitor has told of a new container, in memory and in its record."""
        creation.note(container, pid, child, classic)
        store.save(self._container_dir, container)

    def exec_request(
        self,
        container: Container,
        command: Sequence[str],
        settings: ExecSettings | None = None,
        *,
        attach: bool = False,
    ) -> ExecRequest:
        """What an ExecSession needs; `attach`: with a terminal, through an attach socket."""
        words = check_args(command, "command")
        spawn.reap()
        settings = settings or ExecSettings()
        process = None
        if not self._monitor.classic(settings.plain() and not attach):
            process = exec_process(container.bundle_path, words, settings, terminal=attach)
        return ExecRequest(
            self.conmon_path,
            self._monitor.environment,
            self.path,
            container.name,
            words,
            terminal=container.terminal if process is None else attach,
            process=process,
            attach=attach,
            start_seconds=self._create_timeout,
        )

    def exit_file(self, container: Container) -> str:
        """Where the monitor writes the exit code: `exit` in the bundle."""
        return os.path.join(container.bundle_path, "exit")

    @property
    def exit_dir(self) -> str:
        """Where monitors of the modern dialect write an exit file NAME as well, until deletion."""
        return os.path.join(self._container_dir, "exits")
