"""Creating a container: start its monitor, hear the container's pid, or say why there is none.

Outsiders rely on `create()` to leave nothing behind when it fails or takes too long: no monitor, no
runtime, no half-made container that the caller would have to know of (the caller deletes that one).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from . import argv as argv_of
from . import process_tree, spawn
from .closing import Closing
from .container import CREATED, Container, ContainerState
from .deadline import milliseconds
from .errors import (
    CreateError,
    CreateTimeout,
    InvalidArgumentError,
    MonitorError,
    PyconmonError,
)
from .lookup import read_pidfile
from .monitor import ProcessId, parent_monitor
from .oci_runtime import OciRuntime
from .wire import SyncReader

Output = Literal["auto", "caller", "log", "none"]

# Files in the bundle: what would be taken for this run's, and what is of no use after it.
STALE = ("exit", "oom", "pidfile", "conmon.pid")
ENDPOINTS = ("ctl", "winsz", "attach", "conmon.pid", "pidfile")

# The end of what a monitor printed is enough for an error, and all that is kept.
_STDERR_KEPT = 64 * 1024
# A monitor that has failed says so and leaves; this is for one that hangs after closing its pipe.
LEAVING_SECONDS = 10.0
# A runtime that is late gets a little more, since one that is killed leaves cgroups behind.
FINISHING_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """One monitor's start. `stdio` are its descriptors 0, 1 and 2; -1 is /dev/null, and for 1 and 2
    a pipe whose content goes into the error message. `daemon`: it goes into the background."""

    monitor_path: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    bundle: str
    name: str
    stdio: tuple[int, int, int]
    daemon: bool
    seconds: float
    stderr_file: int = -1
    """A regular file that descriptor 2 refers to; what is appended to it counts as stderr."""
    begun: int = field(
        default_factory=lambda: int(
            time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
        )
    )
    """Clock ticks since boot: what this monitor makes is younger."""


def create(request: CreateRequest) -> tuple[int, spawn.Child]:
    """(container pid, the started process). Raises CreateError, CreateTimeout or MonitorError."""
    with Start(request) as start:
        conversation = Conversation(start)
        try:
            return conversation.pid(request.seconds), start.child
        except CreateTimeout:
            conversation.give_up(FINISHING_SECONDS)
            raise
        except PyconmonError:
            conversation.end()
            raise
        except BaseException:
            conversation.give_up(LEAVING_SECONDS)
            raise


class Start(Closing):
    """A monitor that was started, and what it is heard by: given back by `close()`, but `child`."""

    stderr = -1
    """Our end of a pipe that is its stderr, where it has no other."""

    def __init__(self, request: CreateRequest) -> None:
        self.request = request
        # A stream socket pair, as CRI-O's client has it.
        self._parent, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # Ours must not keep the pipe open: its end tells that the monitor is through.
        given: list[int] = []
        try:
            descriptors = self._stdio(given)
            self.before = _size(request.stderr_file)
            self.child = spawn.start(
                request.monitor_path,
                request.argv,
                {**request.environment, "_OCI_SYNCPIPE": "3"},
                descriptors=[*descriptors, child_end.fileno()],
                cwd=request.bundle,
                new_group=True,
            )
        except BaseException:
            self.close()
            raise
        finally:
            child_end.close()
            for fd in given:
                os.close(fd)
        self.mark = process_tree.mark(self.child.pid)
        self.sync = SyncReader(self._parent.fileno())

    def _stdio(self, given: list[int]) -> list[int]:
        """Its descriptors 0, 1 and 2; those that are made here are added to `given`."""
        descriptors: list[int] = []
        write = -1
        for number, fd in enumerate(self.request.stdio):
            if fd < 0 and number > 0:
                if write < 0:
                    self.stderr, write = os.pipe()
                    os.set_blocking(self.stderr, False)
                    given.append(write)
                fd = write
            elif fd < 0 or not _is_open(fd):
                fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                given.append(fd)
            descriptors.append(fd)
        return descriptors

    def close(self) -> None:
        self._parent.close()
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1


class Conversation:
    """Waiting for the one message, with the monitor's stderr kept and its end noticed."""

    def __init__(self, start: Start) -> None:
        self.request, self.child, self.sync = start.request, start.child, start.sync
        self._stderr, self._before, self._mark = start.stderr, start.before, start.mark
        self._said = bytearray()

    def pid(self, seconds: float) -> int:
        """The container's pid; CreateError, CreateTimeout."""
        deadline = time.monotonic() + seconds
        poller = select.poll()
        poller.register(self.sync.fd, select.POLLIN)
        if self._stderr >= 0:
            poller.register(self._stderr, select.POLLIN)
        while True:
            messages = self.sync.read()
            if messages:
                first = messages[0]
                if first.value > 0 and first.key in ("pid", "data"):
                    self._see_foreground_off()
                    self._let_go(first.value)
                    return first.value
                raise self._failed(first.message.strip())
            if self.sync.eof:
                raise self._failed("")
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late(seconds)
            for fd, _ in poller.poll(milliseconds(left)):
                if fd == self._stderr and not self._listen():
                    poller.unregister(fd)

    def _see_foreground_off(self) -> None:
        """The modern dialect's first process ends when it has forked the real monitor."""
        if self.request.daemon and self.child.wait(LEAVING_SECONDS) != 0 and not self.child.lost:
            raise self._failed(f"the monitor's first process: status {self.child.returncode}")

    def _let_go(self, pid: int) -> None:
        """From now on it lives on its own: nothing of it will be ended for a failed start."""
        daemon = self._daemon()
        for process in (pid, self.child.pid, daemon.pid if daemon else 0):
            if process > 0:
                process_tree.unmark(process)

    def _late(self, seconds: float) -> MonitorError:
        request = self.request
        return CreateTimeout(
            f"could not create container {request.name}: its monitor {request.monitor_path} "
            f"reported no pid within {seconds} s",
            self.said(),
        )

    def _failed(self, reason: str) -> MonitorError:
        self.child.wait(LEAVING_SECONDS)
        said = self.said()
        status = self.child.returncode
        how = (
            f"killed by signal {-status}"
            if status is not None and status < 0
            else f"status {status}"
        )
        why = reason or said.strip() or f"the monitor ended without a word ({how})"
        return CreateError(f"could not create container {self.request.name}: {why}", said)

    def _listen(self) -> bool:
        """False at the end of the monitor's stderr."""
        try:
            chunk = os.read(self._stderr, 65536)
        except BlockingIOError:
            return True
        self._said += chunk
        del self._said[:-_STDERR_KEPT]
        return bool(chunk)

    def said(self) -> str:
        """What the monitor (or the runtime through it) printed on its stderr."""
        if self._stderr >= 0:
            while (length := len(self._said)) is not None and self._listen():
                if len(self._said) == length:
                    break
        elif self.request.stderr_file >= 0:
            # Through /proc for a read position of our own, and a right to read.
            try:
                with open(f"/proc/self/fd/{self.request.stderr_file}", "rb") as file:
                    file.seek(max(self._before, _size(self.request.stderr_file) - _STDERR_KEPT))
                    self._said = bytearray(file.read(_STDERR_KEPT))
            except OSError:
                pass
        return self._said.decode("utf-8", "replace")

    def give_up(self, seconds: float) -> None:
        """Let a healthy runtime come to its end; the container is the caller's to delete then."""
        try:
            self.pid(seconds)
        except PyconmonError:
            self.end()
        except BaseException:
            self.end()
            raise
        else:
            self.child.leave()

    def end(self) -> None:
        """Nothing that this monitor started stays: the runtime, the container, the monitor."""
        process_tree.end(self._mark, self._roots())
        self.child.wait(LEAVING_SECONDS)
        try:
            self.child.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait(LEAVING_SECONDS)
        self.child.close()

    def _roots(self) -> set[ProcessId]:
        first = ProcessId.of(self.child.pid) if self.child.returncode is None else None
        return {root for root in (first, self._daemon()) if root}

    def _daemon(self) -> ProcessId | None:
        """The background monitor of a modern create that went wrong."""
        if not self.request.daemon:
            return None
        return read_pidfile(os.path.join(self.request.bundle, "conmon.pid"), self.request.name)


@contextmanager
def explained(container: Container) -> Iterator[None]:
    """A block in which the system's refusals (out of descriptors, say) are CreateErrors."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PyconmonError):
            raise
        raise CreateError(f"could not create container {container.name}: {error}") from error


def note(container: Container, pid: int, child: spawn.Child, classic: bool) -> None:
    """Keep what a monitor has told of a new container."""
    container.dialect = "classic" if classic else "modern"
    container.init = ProcessId.of(pid)
    if classic:
        container.monitor = ProcessId.of(child.pid)
        child.leave()
    else:
        child.close()
        container.monitor = read_pidfile(os.path.join(container.bundle_path, "conmon.pid"))
    container.state = ContainerState(
        id=container.name,
        status=CREATED,
        pid=pid,
        bundle=container.bundle_path,
        created=datetime.now(UTC),
        monitored=True,
    )


def refuse_if_alive(container: Container) -> None:
    """CreateError for one that lives: another monitor would take its files and its place from it."""
    pidfile = os.path.join(container.bundle_path, "pidfile")
    init = container.init or read_pidfile(pidfile)
    if init is None or not init.alive():
        return
    if container.init is not None or parent_monitor(init, container.name) is not None:
        raise CreateError(
            f"could not create container {container.name}: it exists already, its first process "
            f"is {init.pid}; stop and delete it first"
        )


def forget_half_made(container: Container, oci: OciRuntime, begun: int) -> None:
    """After a failed create: the runtime may have got as far as keeping a state for it."""
    try:
        if is_of(container, oci.state(container.name), begun):
            monitor = half_made_monitor(container)
            argv = argv_of.runtime_delete(oci.path, container.name, force=True)
            oci.call("delete", argv, container.name)
            if monitor is not None:
                monitor.wait(LEAVING_SECONDS)
    except PyconmonError:
        pass
    spawn.reap()


def is_of(container: Container, state: Mapping[str, Any], begun: int) -> bool:
    """Whether that is the state of what was begun then (see CreateRequest).

    One of another bundle, or with an older process, is somebody else's of the same name. In case
    of doubt (ticks are 10 ms) it is: rather one left over than one too many ended.
    """
    if state.get("bundle") != os.path.realpath(container.bundle_path):
        return False
    init = ProcessId.of(state.get("pid") or 0)
    return init is None or init.start_time > begun


def half_made_monitor(container: Container) -> ProcessId | None:
    return read_pidfile(os.path.join(container.bundle_path, "conmon.pid"), container.name)


def remove_leftovers(bundle: str, names: Sequence[str]) -> None:
    """Files of an earlier run in the same bundle: a stale exit file would be taken for the truth."""
    for name in names:
        try:
            os.unlink(os.path.join(bundle, name))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            path = os.path.join(bundle, name)
            raise PyconmonError(f"could not remove {path} of an earlier run: {error}") from error


def log_of(container: Container, output: Output, stdio: tuple[int, int, int]) -> str:
    """The value of --log-path."""
    if output == "log":
        if not container.log_path or ":" in container.log_path:
            raise InvalidArgumentError(
                f"log_path: {container.log_path!r}; give a path without a colon, monitors cut there"
            )
        return f"k8s-file:{container.log_path}"
    # C conmon refuses to pass a terminal on.
    if output == "none" or container.terminal or any(fd >= 0 and os.isatty(fd) for fd in stdio):
        return "none"
    return "passthrough"


def is_file(fd: int) -> bool:
    try:
        return fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _size(fd: int) -> int:
    return os.fstat(fd).st_size if fd >= 0 else 0
