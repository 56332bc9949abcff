"""Runtime: what a program does with containers.

The operations of CRI-O's Go client (operations.py), and on top of them: wait, run in one call, live
execs, attaching, logs, statistics, exit events, finding containers again after a restart, picking
up containers whose monitor has died, and blocks that clean up behind themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack

from . import attach as attaching
from . import control, exec_sync, lookup, recovery, store
from . import events as exit_events
from . import logs as log_files
from . import run as running
from . import stats as statistics
from .bundle import Bundle
from .container import Container
from .creation import Output
from .errors import (
    ContainerNotFound,
    InvalidArgumentError,
    NotRunningError,
    PyconmonError,
)
from .exec_process import ExecProcess
from .operations import Operations
from .process_spec import ExecSettings
from .wait import ExitWatch


class Runtime(Operations):
    """An OCI runtime at `path`, containers recorded in `container_dir`, monitors at `conmon_path`.

    `conmon_env` is the monitors' whole environment (a mapping, or strings "KEY=value"); None means
    the caller's PATH, and XDG_RUNTIME_DIR where that is set. `cgroup_manager` is "cgroupfs" or
    "systemd". An empty `container_dir` keeps no records. `dialect`: "classic" starts monitors
    exactly as the Go client did, "modern" as Podman does; "auto" takes the classic one where
    the monitor has it (pyconmon) and no log, attaching or the like is asked for.
    `create_timeout` limits, in seconds, creating a container and every call of the runtime.
    """

    # ---- waiting

    def wait(self, container: Container, timeout: float | None = None) -> int:
        """Wait until the container has ended; its exit code, or -1 if nobody can know it any more.

        Also for containers that another process started. WaitTimeout after `timeout` seconds.
        """
        with self.watch_exit(container) as watch:
            ended = watch.wait(timeout, f"container {container.name}")
        self.note_exit(container, ended)
        return ended.code

    def watch_exit(self, container: Container) -> ExitWatch:
        """What wait() waits on, for callers with an event loop of their own; close it."""
        init = lookup.init_of(container, self.oci)
        return ExitWatch(
            self.exit_file(container),
            init,
            lookup.monitor_of(container),
            partial(lookup.monitor_of, container),
        )

    def recover(self, container: Container, timeout: float = 30.0) -> bool:
        """Give a container whose monitor has died a new one (pyconmon only).

        False if there was nothing to do: it still has its monitor. A container that has ended
        meanwhile is reported by the new monitor: its exit file is there when this returns.
        MonitorError with the new monitor's reason if it cannot take over.
        """
        with container.lock:
            monitor = lookup.monitor_of(container)
            if monitor is not None and monitor.alive():
                return False
            taken_by = recovery.recover(
                self.conmon_path, self.environment, container.bundle_path, timeout
            )
            if taken_by is None:
                return False
            init = lookup.init_of(container, self.oci)
            if init is None or not init.alive():
                taken_by.wait(timeout)
            container.monitor = taken_by
            store.save(self._container_dir, container)
            return True

    # ---- execs

    def exec(
        self,
        container: Container,
        command: Sequence[str],
        *,
        stdin: bool = True,
        terminal: bool = False,
        env: Mapping[str, str] | Sequence[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> ExecProcess:
        """Start a command in a running container and return it live; use it in a `with` block.

        `stdin` False gives it /dev/null. `terminal`: a terminal, see ExecProcess.attachment, of
        `size` (rows, columns).
        `env`, `cwd` and `user` as in exec_sync. ExecStartError if its monitor cannot be started;
        the runtime's refusal comes as ExecStartError of `wait`.
        """
        settings = ExecSettings(env, cwd, user, size)
        request = self.exec_request(container, command, settings, attach=terminal)
        return ExecProcess(request, stdin=stdin)

    # ---- whole lives

    def run(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        name: str | None = None,
        stdin: bytes | None = None,
        timeout: float | None = None,
        max_output: int = exec_sync.MAX_OUTPUT,
        kill_on_output: bool = False,
        check: bool = False,
    ) -> running.RunResult:
        """Run a bundle's container to its end and return its exit code and output; it is deleted.

        `timeout` seconds after its start it is killed, and with `kill_on_output` when a stream
        exceeds `max_output` bytes (else the rest is dropped). `check` raises RunError for
        everything but exit code 0.
        """
        name = name or running.new_name()
        container = Container(name, name, os.path.abspath(os.fspath(bundle)))
        result = running.run(
            self,
            container,
            stdin=stdin,
            timeout=timeout,
            max_output=max_output,
            kill_on_output=kill_on_output,
            watch_exit=self.watch_exit,
        )
        killed = result.timed_out or result.output_exceeded
        if check and (result.exit_code != 0 or killed):
            raise running.RunError(name, result)
        return result

    @contextmanager
    def running(
        self,
        container: Container,
        *,
        output: Output = "auto",
        stdin: bool = False,
        leave_stdin_open: bool = False,
        stdio: tuple[int, int, int] | None = None,
    ) -> Iterator[Container]:
        """A block with the container created and started; killed and deleted at its end."""
        self.create_container(
            container, output=output, stdin=stdin, leave_stdin_open=leave_stdin_open, stdio=stdio
        )
        try:
            self.start_container(container)
            yield container
        finally:
            try:
                self.delete_container(container, force=True)
            except ContainerNotFound:
                pass

    # ---- containers on disk

    def list(self) -> list[Container]:
        """All containers recorded in container_dir; unreadable records are left out."""
        found = []
        for name in store.names(self._container_dir):
            try:
                found.append(self.reload(name))
            except PyconmonError:
                continue
        return found

    def reload(self, name: str) -> Container:
        """The container of that name as recorded; RecordError. update_status says how it is now."""
        return store.load(self._container_dir, name)

    # ---- streams, logs, numbers

    def attach(self, container: Container, timeout: float = 0.5) -> attaching.Attachment:
        """Connect to its streams; it must have been created with output "log" or "none"."""
        return attaching.attach(container.bundle_path, timeout=timeout)

    def resize(self, container: Container, rows: int, columns: int) -> None:
        """Give the container's terminal a new size. NotRunningError, AttachError within a second."""
        control.resize(container.bundle_path, rows, columns)

    def reopen_logs(self, container: Container) -> None:
        """Make its monitor open the log anew after it was moved away."""
        control.reopen_logs(container.bundle_path)

    def logs(
        self, container: Container, *, follow: bool = False, **options: Unpack[log_files.LogOptions]
    ) -> log_files.LogReader:
        """The lines of its log; LogReader tells of the options. `follow` ends with the container."""
        return log_files.logs(container.log_path, **self.log_options(container, follow), **options)

    def log_options(self, container: Container, follow: bool) -> dict[str, Any]:
        """What a LogReader has to know of the container's end; PyconmonError if it has no log."""
        if not container.log_path:
            raise PyconmonError(f"could not read logs of container {container.name}: it has no log")
        if not follow:
            return {}

        def watch() -> ExitWatch | None:
            found = self.watch_exit(container)
            if container.state is not None or not found.idle:
                return found
            found.close()  # not created yet: its exit file will tell
            return None

        return {"follow": True, "exit_file": self.exit_file(container), "watch": watch}

    def stats(self, container: Container) -> statistics.Stats:
        """CPU, memory, I/O and number of its processes now; NotRunningError.

        From the second call on, `cpu_percent` is that since the call before.
        """
        init = lookup.init_of(container, self.oci)
        if init is None or not init.alive():
            raise NotRunningError(f"could not measure container {container.name}: it does not run")
        return self.samplers.sample(container.name, init)

    def events(self, *, existing: bool = False) -> exit_events.ExitEvents:
        """Exits of containers created with a monitor of the modern dialect, as they happen."""
        if not self._container_dir:
            raise InvalidArgumentError(
                "events: container_dir is empty, so no monitor reports to this runtime; give one"
            )
        return exit_events.ExitEvents(store.make_directory(self.exit_dir), existing=existing)
