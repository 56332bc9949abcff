"""The operations of CRI-O's Go client of January 2017 on containers, under Python names.

Their arguments to runtime and monitor, and their results, are those of the Go code, closed where it
leaves things open: time limits, no lost or made-up exit codes, no process that is mistaken for
another. They may be called from any thread; those that change a container hold its lock.
Out of scope: what has no counterpart there; runtime.py builds it on these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from . import argv as argv_of
from . import creation, exec_sync, lookup, spawn, store
from .container import RUNNING, STOPPED, Container, ContainerState
from .creation import Output
from .deadline import readable
from .dialect import Dialect
from .errors import (
    ContainerNotFound,
    PyconmonError,
    RuntimeCommandError,
)
from .exit_status import Exit
from .process_spec import ExecSettings
from .settings import Settings
from .wait import ExitWatch

# After the runtime says "stopped": how long a living monitor may take to write the exit file.
_REPORT_SECONDS = 30.0
_KILL_SECONDS = 10.0


class Operations(Settings):
    """See Runtime, which is this and more."""

    def version(self) -> str:
        """The runtime's version: the last word of the first line of `RUNTIME -v`."""
        return self.oci.version()

    def runtime_ready(self) -> bool:
        """Always True, as in the Go client."""
        return True

    def network_ready(self) -> bool:
        """Always True, as in the Go client."""
        return True

    def create_container(
        self,
        container: Container,
        *,
        output: Output = "auto",
        stdin: bool = False,
        leave_stdin_open: bool = False,
        stdio: tuple[int, int, int] | None = None,
        timeout: float | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        """Create it: afterwards its first process exists and waits for start_container.

        `output`: "caller" gives the container the caller's stdin, stdout and stderr (or the three
        descriptors of `stdio`; -1 is /dev/null), "log" writes to the container's log_path, "none"
        drops the output; "log" and "none" can be attached to, with `stdin` input as well, which
        ends when the first client ends it or leaves: for several clients, one after the other, give
        `leave_stdin_open` too. "auto" is "log" with a log_path, else "caller". `timeout` is in
        seconds, default the runtime's create_timeout. Raises CreateError with the runtime's reason,
        CreateTimeout.
        """
        spawn.reap()
        with container.lock, creation.explained(container):
            request = self.create_request(
                container, output, stdin, leave_stdin_open, stdio, timeout, dialect
            )
            try:
                pid, child = creation.create(request)
                self.note_created(container, pid, child, not request.daemon)
            except BaseException:
                creation.forget_half_made(container, self.oci, request.begun)
                raise

    def start_container(self, container: Container) -> None:
        """Let a created container run. Raises RuntimeCommandError with the runtime's reason."""
        with container.lock:
            argv = argv_of.runtime_start(self.path, container.name)
            self.oci.call("start", argv, container.name)
            if container.state is None:
                container.state = ContainerState(id=container.name)
            container.state.status = RUNNING
            container.state.started = datetime.now(UTC)
            store.save(self._container_dir, container)

    def exec_sync(
        self,
        container: Container,
        command: Sequence[str],
        timeout: float | None = None,
        *,
        stdin: bytes | None = None,
        max_output: int = exec_sync.MAX_OUTPUT,
        check: bool = True,
        env: Mapping[str, str] | Sequence[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> exec_sync.ExecResult:
        """Run a command in a running container and wait for it.

        `timeout` in seconds from the command's start (None or 0: none): then the command and all it
        started is killed, and ExecTimeout raised with the output so far. `max_output` bytes of each
        stream are kept. `check`: an exit code other than 0 raises ExecExitError. `env` (a mapping or
        "K=v", added to the container's), `cwd` and `user` ("uid" or "uid:gid") need the modern
        dialect.
        Raises ExecStartError if the command could not be started; all are ExecSyncErrors.
        """
        return exec_sync.run(
            self.exec_request(container, command, ExecSettings(env, cwd, user)),
            timeout=timeout if timeout and timeout > 0 else None,
            stdin=stdin,
            max_output=max_output,
            check=check,
        )

    def stop_container(
        self, container: Container, timeout: float = 10.0, signal: str = "TERM"
    ) -> None:
        """Signal the container's first process, wait `timeout` seconds, then kill it.

        A container that has ended already is fine. When this returns it has ended; its exit code
        follows by update_status or wait.
        """
        with container.lock:
            init = lookup.init_of(container, self.oci)
            pidfd = init.open() if init else None
            try:
                try:
                    self.kill_container(container, signal)
                except ContainerNotFound:
                    raise
                except RuntimeCommandError:
                    # "not running" is what was wanted; anything else is an error.
                    if self.oci.status(container.name) != STOPPED:
                        raise
                if pidfd is not None and not (
                    readable(pidfd, timeout) or spawn.kill_pidfd(pidfd, _KILL_SECONDS)
                ):
                    raise PyconmonError(
                        f"could not stop container {container.name}: its first process does "
                        "not end even when killed (paused, or stuck in the kernel)"
                    )
            finally:
                if pidfd is not None:
                    os.close(pidfd)
        spawn.reap()

    def kill_container(self, container: Container, signal: str | int = "KILL") -> None:
        """Send a signal ("TERM", "SIGTERM" or a number) to the container's first process."""
        argv = argv_of.runtime_kill(self.path, container.name, str(signal))
        self.oci.call("signal", argv, container.name)

    def delete_container(self, container: Container, force: bool = False) -> None:
        """Remove a container that has ended (with `force`, end it), its record and endpoints.

        Log and exit file in the bundle stay: the bundle is the caller's.
        """
        with container.lock:
            lookup.monitor_of(container)
            argv = argv_of.runtime_delete(self.path, container.name, force=force)
            try:
                self.oci.call("delete", argv, container.name)
            except ContainerNotFound:
                # Gone already, perhaps with the machine's last boot: the rest is still ours.
                if container.name not in store.names(self._container_dir):
                    raise
            self._see_monitor_off(container)
            self.samplers.drop(container.name)
            if self._container_dir:
                creation.remove_leftovers(self.exit_dir, [container.name])
                store.remove(self._container_dir, container.name)

    def _see_monitor_off(self, container: Container) -> None:
        """It has nothing left to watch; wait until it has written its last, and reap it."""
        pidfd = container.monitor.open() if container.monitor else None
        if pidfd is not None:
            try:
                if not readable(pidfd, _KILL_SECONDS):
                    return
            finally:
                os.close(pidfd)
        spawn.reap()
        try:
            creation.remove_leftovers(container.bundle_path, creation.ENDPOINTS)
        except PyconmonError:
            pass

    def update_status(self, container: Container) -> ContainerState:
        """Ask the runtime for the container's state; for a stopped one take its exit code too.

        The runtime may say "stopped" before the monitor has written the exit file: as long as the
        monitor lives, that is waited for. With the monitor gone and no file the code is -1 and
        `exit_code_known` False. Raises ContainerNotFound, ExitFileError.
        """
        spawn.reap()
        with container.lock:
            reported = self.oci.state(container.name)
            state = container.state = container.state or ContainerState()
            state.merge(reported)
            init = lookup.init_of(container, self.oci, reported)
            monitor = lookup.monitor_of(container)
            state.monitored = monitor.alive() if monitor else (False if init else None)
            if state.status == STOPPED:
                with ExitWatch(self.exit_file(container), init, monitor) as watch:
                    ended = watch.wait(_REPORT_SECONDS, f"the monitor of {container.name}")
                self.note_exit(container, ended)
            return state

    def container_status(self, container: Container) -> ContainerState | None:
        """The state as last known (None before the first), without asking anybody."""
        with container.lock:
            return container.state

    def note_exit(self, container: Container, ended: Exit) -> None:
        """Keep what an ExitWatch has found in the container's state."""
        with container.lock:
            state = container.state = container.state or ContainerState(id=container.name)
            state.status = STOPPED
            state.exit_code, state.exit_code_known = ended.code, ended.known
            state.finished = ended.finished or state.finished
            state.oom_killed = os.path.exists(os.path.join(container.bundle_path, "oom"))
        spawn.reap()
