"""Runtime: an OCI runtime with monitors, and every operation on its containers.

The operations, their arguments to runtime and monitor and their results are those of CRI-O's Go
client of January 2017, closed where it left things open: time limits, no lost or made-up exit
codes, no process that is mistaken for another. Operations may be called from any thread; those
that change a container hold its lock.
"""

from __future__ import annotations

import json
import os
import signal as signals
import stat
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from . import argv as argv_of
from . import creation, exec_sync, spawn, store
from .container import CREATED, RUNNING, STOPPED, Container, ContainerState
from .errors import (
    ContainerNotFound,
    ContainerStateError,
    CreateError,
    MonitorError,
    PyconmonError,
    RuntimeCommandError,
)
from .exec_session import ExecRequest
from .exit_status import Exit
from .monitor import ProcessId, parent_monitor
from .wait import ExitWatch

Dialect = Literal["auto", "classic", "modern"]
Output = Literal["auto", "caller", "log", "none"]

# After the runtime says "stopped": how long a living monitor may take to write the exit file.
_REPORT_SECONDS = 30.0
_KILL_SECONDS = 10.0
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STALE = ("exit", "oom", "pidfile", "conmon.pid")
_ENDPOINTS = ("ctl", "winsz", "attach", "conmon.pid", "pidfile")


class Runtime:
    """An OCI runtime at `path`, containers recorded in `container_dir`, monitors at `conmon_path`.

    `conmon_env` is the monitors' whole environment (a mapping, or strings "KEY=value"); None means
    the caller's PATH, and XDG_RUNTIME_DIR where that is set. `cgroup_manager` is "cgroupfs" or
    "systemd". An empty `container_dir` keeps no records. `dialect`: "classic" starts monitors
    exactly as the Go client did, "modern" as Podman does; "auto" takes the classic one where
    the monitor has it (pyconmon) and no log, attaching or the like is asked for.
    """

    def __init__(
        self,
        path: str,
        container_dir: str,
        conmon_path: str,
        conmon_env: Mapping[str, str] | Sequence[str] | None = None,
        cgroup_manager: str = "cgroupfs",
        *,
        dialect: Dialect = "auto",
        create_timeout: float = 60.0,
    ) -> None:
        if cgroup_manager not in ("cgroupfs", "systemd"):
            raise ValueError(f"cgroup_manager is cgroupfs or systemd, not {cgroup_manager!r}")
        if dialect not in ("auto", "classic", "modern"):
            raise ValueError(f"dialect is auto, classic or modern, not {dialect!r}")
        self._path = str(path)
        self._container_dir = str(container_dir) if container_dir else ""
        self._conmon_path = str(conmon_path)
        self._conmon_env = _environment(conmon_env)
        self._cgroup_manager = cgroup_manager
        self._dialect = dialect
        self._create_timeout = create_timeout
        self._has_classic: bool | None = None

    @property
    def name(self) -> str:
        """The runtime's base name, such as "runc"."""
        return os.path.basename(self._path)

    @property
    def path(self) -> str:
        return self._path

    @property
    def container_dir(self) -> str:
        return self._container_dir

    @property
    def conmon_path(self) -> str:
        return self._conmon_path

    def version(self) -> str:
        """The runtime's version: the last word of the first line of `RUNTIME -v`."""
        output = self._call("ask for the version of", argv_of.runtime_version(self._path), "")
        words = output.partition("\n")[0].split()
        if not words:
            raise PyconmonError(f"could not ask {self._path} for its version: it printed nothing")
        return words[-1]

    def runtime_ready(self) -> bool:
        """Always True, as in the Go client."""
        return True

    def network_ready(self) -> bool:
        """Always True, as in the Go client."""
        return True

    # ---- create, start, stop, delete

    def create_container(
        self,
        container: Container,
        *,
        output: Output = "auto",
        stdin: bool = False,
        leave_stdin_open: bool = False,
        stdio: tuple[int, int, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Create it: afterwards its first process exists and waits for start_container.

        `output`: "caller" gives the container the caller's stdin, stdout and stderr (or the three
        descriptors of `stdio`; -1 is /dev/null), "log" writes to the container's log_path, "none"
        drops the output; "log" and "none" can be attached to, with `stdin` input as well. "auto" is
        "log" with a log_path, else "caller". `timeout` is in seconds, default the runtime's
        create_timeout. Raises CreateError with the runtime's reason, CreateTimeout.
        """
        spawn.reap()
        if output == "auto":
            output = "log" if container.log_path and stdio is None else "caller"
        bundle = container.bundle_path
        with container.lock:
            if not os.path.isdir(bundle):
                raise CreateError(
                    f"could not create container {container.name}: no bundle {bundle}"
                )
            classic = self._classic(output == "caller" and not (stdin or leave_stdin_open))
            argv = (
                argv_of.classic_create(
                    container.name,
                    self._path,
                    bundle,
                    systemd_cgroup=self._cgroup_manager == "systemd",
                    terminal=container.terminal,
                )
                if classic
                else self._modern_create(container, output, stdin, leave_stdin_open, stdio)
            )
            request = self._create_request(container, argv, classic, output, stdio, timeout)
            creation.remove_leftovers(bundle, _STALE)
            try:
                pid, child = creation.create(request)
            except PyconmonError:
                self._forget_half_made(container)
                raise
            self._note_created(container, pid, child, classic)

    def _modern_create(
        self,
        container: Container,
        output: Output,
        stdin: bool,
        leave_stdin_open: bool,
        stdio: tuple[int, int, int] | None,
    ) -> list[str]:
        if output == "log":
            if not container.log_path or ":" in container.log_path:
                raise ValueError(f"not a path a monitor can log to: {container.log_path!r}")
            log = f"k8s-file:{container.log_path}"
        elif output == "none" or container.terminal or _any_terminal(stdio):
            # C conmon refuses to pass a terminal through.
            log = "none"
        else:
            log = "passthrough"
        exit_dir = ""
        if self._container_dir:
            exit_dir = os.path.join(self._container_dir, "exits")
            os.makedirs(exit_dir, mode=0o700, exist_ok=True)
            creation.remove_leftovers(exit_dir, [container.name])
        return argv_of.modern_create(
            container.name,
            self._path,
            container.bundle_path,
            cuuid=container.id or container.name,
            log=log,
            exit_dir=exit_dir,
            systemd_cgroup=self._cgroup_manager == "systemd",
            terminal=container.terminal,
            stdin=stdin,
            leave_stdin_open=leave_stdin_open,
        )

    def _create_request(
        self,
        container: Container,
        argv: list[str],
        classic: bool,
        output: Output,
        stdio: tuple[int, int, int] | None,
        timeout: float | None,
    ) -> creation.CreateRequest:
        own = classic or (output == "caller" and "passthrough" in argv)
        descriptors = (stdio or (0, 1, 2)) if own else (-1, -1, -1)
        return creation.CreateRequest(
            self._conmon_path,
            argv,
            self._conmon_env,
            container.bundle_path,
            container.name,
            descriptors,
            daemon=not classic,
            seconds=self._create_timeout if timeout is None else timeout,
            stderr_file=descriptors[2] if own and _is_file(descriptors[2]) else -1,
        )

    def _note_created(
        self, container: Container, pid: int, child: spawn.Child, classic: bool
    ) -> None:
        container.dialect = "classic" if classic else "modern"
        container.init = ProcessId.of(pid)
        if classic:
            container.monitor = ProcessId.of(child.pid)
            child.leave()
        else:
            child.close()
            pidfile = os.path.join(container.bundle_path, "conmon.pid")
            container.monitor = creation.read_pidfile(pidfile)
        container.state = ContainerState(
            id=container.name,
            status=CREATED,
            pid=pid,
            bundle=container.bundle_path,
            created=datetime.now(UTC),
            monitored=True,
        )
        store.save(self._container_dir, container)

    def _forget_half_made(self, container: Container) -> None:
        """After a failed create: the runtime may have got as far as keeping a state for it."""
        try:
            state = self._state(container)
            if state.get("bundle") == os.path.realpath(container.bundle_path):
                argv = argv_of.runtime_delete(self._path, container.name, force=True)
                self._call("delete", argv, container.name)
        except PyconmonError:
            pass

    def start_container(self, container: Container) -> None:
        """Let a created container run. Raises RuntimeCommandError with the runtime's reason."""
        with container.lock:
            self._call("start", argv_of.runtime_start(self._path, container.name), container.name)
            if container.state is None:
                container.state = ContainerState(id=container.name)
            container.state.status = RUNNING
            container.state.started = datetime.now(UTC)
            store.save(self._container_dir, container)

    def stop_container(
        self, container: Container, timeout: float = 10.0, signal: str = "TERM"
    ) -> None:
        """Signal the container's first process, wait `timeout` seconds, then kill it.

        A container that has ended already is fine. When this returns it has ended; its exit code
        follows by update_status or wait.
        """
        with container.lock:
            init = self._find_init(container)
            pidfd = init.open() if init else None
            try:
                try:
                    self.kill_container(container, signal)
                except ContainerNotFound:
                    raise
                except RuntimeCommandError:
                    # "not running" is what was wanted; anything else is an error.
                    if self._status(container) != STOPPED:
                        raise
                if pidfd is not None and not spawn.wait_pidfd(pidfd, timeout):
                    # The pidfd means the process it was opened for, whatever happens to the pid.
                    try:
                        signals.pidfd_send_signal(pidfd, signals.SIGKILL)
                    except ProcessLookupError:
                        pass
                    if not spawn.wait_pidfd(pidfd, _KILL_SECONDS):
                        raise PyconmonError(
                            f"could not stop container {container.name}: process {init} does not "
                            "end even when killed (paused, or stuck in the kernel)"
                        )
            finally:
                if pidfd is not None:
                    os.close(pidfd)
            spawn.reap()

    def kill_container(self, container: Container, signal: str | int = "KILL") -> None:
        """Send a signal ("TERM", "SIGTERM" or a number) to the container's first process."""
        argv = argv_of.runtime_kill(self._path, container.name, str(signal))
        self._call("signal", argv, container.name)

    def delete_container(self, container: Container, force: bool = False) -> None:
        """Remove a container that has ended (with `force`, end it), its record and endpoints.

        Log and exit file stay in place; the bundle is the caller's.
        """
        with container.lock:
            argv = argv_of.runtime_delete(self._path, container.name, force=force)
            try:
                self._call("delete", argv, container.name)
            except ContainerNotFound:
                # Gone already, perhaps with the machine's last boot: the rest is still ours.
                if store.names(self._container_dir).count(container.name) == 0:
                    raise
            self._see_monitor_off(container)
            store.remove(self._container_dir, container.name)

    def _see_monitor_off(self, container: Container) -> None:
        """It has nothing left to watch; wait until it has written its last, and reap it."""
        pidfd = container.monitor.open() if container.monitor else None
        if pidfd is not None:
            try:
                ended = spawn.wait_pidfd(pidfd, _KILL_SECONDS)
            finally:
                os.close(pidfd)
            if not ended:
                return
        spawn.reap()
        try:
            creation.remove_leftovers(container.bundle_path, _ENDPOINTS)
        except PyconmonError:
            pass

    # ---- state

    def update_status(self, container: Container) -> ContainerState:
        """Ask the runtime for the container's state; for a stopped one take its exit code too.

        The runtime may say "stopped" before the monitor has written the exit file: as long as the
        monitor lives, that is waited for. With the monitor gone and no file the code is -1 and
        `exit_code_known` False. Raises ContainerNotFound, ExitFileError.
        """
        spawn.reap()
        with container.lock:
            reported = self._state(container)
            state = container.state or ContainerState()
            _merge(state, reported)
            container.state = state
            init = self._find_init(container)
            monitor = self._find_monitor(container)
            state.monitored = monitor.alive() if monitor else (False if init else None)
            if state.status == STOPPED:
                with ExitWatch(self.exit_file(container), init, monitor) as watch:
                    ended = watch.wait(_REPORT_SECONDS, f"the monitor of {container.name}")
                self._note_exit(container, ended)
            return state

    def container_status(self, container: Container) -> ContainerState | None:
        """The state as last known (None before the first), without asking anybody."""
        with container.lock:
            return container.state

    def exit_file(self, container: Container) -> str:
        """Where the monitor writes the exit code: `exit` in the bundle."""
        return os.path.join(container.bundle_path, "exit")

    def wait(self, container: Container, timeout: float | None = None) -> int:
        """Wait until the container has ended; its exit code, or -1 if nobody can know it any more.

        Also for containers that another process started. WaitTimeout after `timeout` seconds.
        """
        with self.watch_exit(container) as watch:
            ended = watch.wait(timeout, f"container {container.name}")
        self.note_exit(container, ended)
        return ended.code

    def watch_exit(self, container: Container) -> ExitWatch:
        """What wait() waits on, for callers with an event loop of their own."""
        init, monitor = self._find_init(container), self._find_monitor(container)
        return ExitWatch(self.exit_file(container), init, monitor)

    def note_exit(self, container: Container, ended: Exit) -> None:
        """Keep what a watch has found in the container's state."""
        with container.lock:
            if container.state is None:
                container.state = ContainerState(id=container.name)
            container.state.status = STOPPED
            self._note_exit(container, ended)
        spawn.reap()

    def _note_exit(self, container: Container, ended: Exit) -> None:
        state = container.state
        assert state is not None
        state.exit_code, state.exit_code_known = ended.code, ended.known
        state.finished = ended.finished or state.finished
        state.oom_killed = os.path.exists(os.path.join(container.bundle_path, "oom"))

    def _state(self, container: Container) -> dict[str, Any]:
        argv = argv_of.runtime_state(self._path, container.name)
        text = self._call("ask for the state of", argv, container.name)
        try:
            loaded = json.loads(text)
        except ValueError as error:
            raise PyconmonError(
                f"could not read the state of container {container.name} from {self._path}: {error}"
            ) from error
        if not isinstance(loaded, dict):
            raise PyconmonError(
                f"could not read the state of container {container.name}: not a JSON object"
            )
        return loaded

    def _status(self, container: Container) -> str:
        return str(self._state(container).get("status", ""))

    def _find_init(self, container: Container) -> ProcessId | None:
        """The container's first process: as created, else as its pid file or the runtime says."""
        if container.init is None:
            pidfile = os.path.join(container.bundle_path, "pidfile")
            candidate = creation.read_pidfile(pidfile)
            pid = candidate.pid if candidate else 0
            try:
                # A pid file may be old; the runtime compares start times.
                known = self._state(container)
                pid = int(known.get("pid") or 0) if known.get("status") != STOPPED else 0
            except (PyconmonError, ValueError, TypeError):
                pid = 0
            container.init = ProcessId.of(pid) if pid > 0 else None
        return container.init

    def _find_monitor(self, container: Container) -> ProcessId | None:
        if container.monitor is None:
            pidfile = os.path.join(container.bundle_path, "conmon.pid")
            container.monitor = creation.read_pidfile(pidfile, container.name)
            if container.monitor is None and container.init is not None:
                container.monitor = parent_monitor(container.init, container.name)
        return container.monitor

    # ---- exec

    def exec_sync(
        self,
        container: Container,
        command: Sequence[str],
        timeout: float | None = None,
        *,
        stdin: bytes | None = None,
        max_output: int = exec_sync.MAX_OUTPUT,
        check: bool = True,
        env: Sequence[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> exec_sync.ExecResult:
        """Run a command in a running container and wait for it.

        `timeout` in seconds from the command's start (None or 0: none): then the command and all it
        started is killed, and ExecTimeout raised with the output so far. `max_output` bytes of each
        stream are kept. `check`: an exit code other than 0 raises ExecExitError. `env` ("K=v"
        added to the container's), `cwd` and `user` ("uid" or "uid:gid") need the modern dialect.
        Raises ExecStartError when the command could not be started; all are ExecSyncErrors.
        """
        request = self.exec_request(container, command, env=env, cwd=cwd, user=user)
        return exec_sync.run(
            request,
            timeout=timeout if timeout and timeout > 0 else None,
            stdin=stdin,
            max_output=max_output,
            check=check,
        )

    def exec_request(
        self,
        container: Container,
        command: Sequence[str],
        *,
        terminal: bool = False,
        env: Sequence[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> ExecRequest:
        """What an exec needs to know, for this module's callers and the asyncio client."""
        if isinstance(command, str | bytes) or not command:
            raise ValueError(f"a command is a list of words, not {command!r}")
        spawn.reap()
        plain = env is None and cwd is None and user is None
        classic = self._classic(plain)
        process = None
        if not classic:
            process = _process(container, list(command), env, cwd, user, terminal)
        return ExecRequest(
            self._conmon_path,
            self._conmon_env,
            self._path,
            container.name,
            list(command),
            terminal=(terminal or container.terminal) if classic else terminal,
            process=process,
        )

    # ---- the two ways to start a monitor

    def _classic(self, enough: bool) -> bool:
        """Whether to use the classic dialect; `enough`: it can do what is asked for."""
        if self._dialect == "classic":
            if not enough:
                raise ContainerStateError(
                    "could not do this in the classic dialect: it knows no logs, no attaching and "
                    'no environment of an exec (use dialect="auto")'
                )
            return True
        if self._dialect == "modern" or not enough:
            return False
        if self._has_classic is None:
            self._has_classic = self._ask_monitor()
        return self._has_classic

    def _ask_monitor(self) -> bool:
        """C conmon of today has only the modern dialect; pyconmon names itself as its commit."""
        try:
            asked = subprocess.run(
                [self._conmon_path, "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self._conmon_env,
                timeout=self._create_timeout,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MonitorError(
                f"could not ask the monitor {self._conmon_path} for its version: {error}"
            ) from error
        return b"pyconmon" in asked.stdout

    def _call(self, what: str, argv: list[str], name: str) -> str:
        """A runtime command's output; RuntimeCommandError or ContainerNotFound with its words."""
        what = f"{what} container {name}" if name else f"{what} {self._path}"
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._create_timeout
            )
        except subprocess.TimeoutExpired as error:
            text = f"{self._path} did not end within {self._create_timeout} s"
            raise RuntimeCommandError(what, argv, -1, text) from error
        except OSError as error:
            text = f"{self._path}: {error.strerror}"
            raise RuntimeCommandError(what, argv, -1, text) from error
        if done.returncode != 0:
            text = (done.stderr or done.stdout).decode("utf-8", "replace")
            missing = "does not exist" in text or "not found" in text
            kind = ContainerNotFound if name and missing else RuntimeCommandError
            raise kind(what, argv, done.returncode, text)
        return done.stdout.decode("utf-8", "replace")


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


def _process(
    container: Container,
    command: list[str],
    env: Sequence[str] | None,
    cwd: str | None,
    user: str | None,
    terminal: bool,
) -> dict[str, Any]:
    """The OCI process of an exec: the container's own, with another command."""
    path = os.path.join(container.bundle_path, "config.json")
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            process: dict[str, Any] = dict(json.load(file)["process"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PyconmonError(f"could not read the process of {path}: {error}") from error
    process |= {"args": command, "terminal": terminal}
    process.pop("consoleSize", None)
    if env is not None:
        process["env"] = [*process.get("env", []), *env]
    if cwd is not None:
        process["cwd"] = cwd
    if user is not None:
        uid, _, gid = user.partition(":")
        process["user"] = {"uid": int(uid), "gid": int(gid or uid)}
    return process


def _merge(state: ContainerState, reported: Mapping[str, Any]) -> None:
    """The runtime's JSON over what is known; fields it does not mention stay."""
    state.oci_version = str(reported.get("ociVersion", state.oci_version))
    state.id = str(reported.get("id", state.id))
    state.status = str(reported.get("status", state.status))
    state.pid = int(reported.get("pid") or 0)
    state.bundle = str(reported.get("bundle", state.bundle))
    state.annotations = dict(reported.get("annotations") or {})
    created = reported.get("created")
    if isinstance(created, str):
        # Go prints nanoseconds, Python reads microseconds.
        head, dot, tail = created.rstrip("Z").partition(".")
        try:
            when = datetime.fromisoformat(head + dot + tail[:6].ljust(6, "0") if dot else head)
            state.created = when if when.tzinfo else when.replace(tzinfo=UTC)
        except ValueError:
            pass


def _any_terminal(stdio: tuple[int, int, int] | None) -> bool:
    return any(fd >= 0 and os.isatty(fd) for fd in (stdio or (0, 1, 2)))


def _is_file(fd: int) -> bool:
    try:
        return fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
