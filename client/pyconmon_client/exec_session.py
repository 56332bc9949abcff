"""One exec through a monitor, from starting the monitor to its last message, without waiting.

Shared by exec_sync, the live exec process and the asyncio client: they own the waiting (poll or an
event loop) and call in when a descriptor is ready. What the session owns (descriptors, a folder
for the pid file, the monitor process) is given back by `close()`, in every way out.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import argv as argv_of
from . import process_tree, spawn
from .attach import Attachment, attach
from .deadline import Deadline
from .errors import MonitorError, PyconmonError
from .monitor import ProcessId
from .wire import Message, SyncReader

# A monitor prepares its socket within milliseconds; this is for a machine under heavy load.
_ATTACH_SECONDS = 60.0
_FILE_CLOCK = 0.02  # seconds by which the times of files differ from the clock


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What to run, and through what. `process` is an OCI process (modern dialect), else None."""

    monitor_path: str
    environment: Mapping[str, str]
    runtime_path: str
    container: str
    command: Sequence[str]
    terminal: bool = False
    process: Mapping[str, Any] | None = None
    attach: bool = False
    """Through an attach socket in the session's directory (modern dialect)."""
    start_seconds: float = 60.0
    """With a time limit for the command: how long its start may take on top of it."""


@dataclass(slots=True)
class Outcome:
    """How it ended: `exit_code` or, where the command never ran, `failure`, the reason."""

    exit_code: int = -1
    failure: str = ""


@dataclass(slots=True)
class _Pipes:
    """Descriptors by role; `child` ones are closed as soon as the monitor has them."""

    ours: list[int] = field(default_factory=list)
    child: list[int] = field(default_factory=list)

    def pipe(self, to_child: bool = False) -> tuple[int, int]:
        read, write = os.pipe()
        ours, theirs = (write, read) if to_child else (read, write)
        self.ours.append(ours)
        self.child.append(theirs)
        return ours, theirs

    def open_null(self) -> int:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.child.append(fd)
        return fd

    def close_child(self) -> None:
        while self.child:
            os.close(self.child.pop())


class ExecSession:
    """A started exec. Poll `sync.fd` and `child.pidfd`, then call `advance()`.

    `stdout` and `stderr` (and `stdin`, when asked for) are our ends of pipes, blocking as made.
    """

    def __init__(self, request: ExecRequest, *, stdin: bool = False) -> None:
        self.request = request
        self.messages: list[Message] = []
        self._pid = 0
        self._first: ProcessId | None = None
        self._closed = False
        self.attachment: Attachment | None = None
        self._child: spawn.Child | None = None
        self.mark: int | None = None
        self._pipes = _Pipes()
        self.directory = tempfile.mkdtemp(prefix="pyconmon-exec-")
        self.pidfile = os.path.join(self.directory, "pidfile")
        self.started_at = time.monotonic()
        self._wall_clock = time.time()
        try:
            self._start(stdin)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """A start that failed half-way: end what runs, close what is open."""
        if self._child is not None:
            self.end_everything()
            self._child.close()
        if self.attachment is not None:
            self.attachment.close()
        self._pipes.close_child()
        for fd in self._pipes.ours:
            os.close(fd)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, stdin: bool) -> None:
        pipes, request = self._pipes, self.request
        self.stdin = -1
        if stdin:
            self.stdin, stdin_child = pipes.pipe(to_child=True)
        else:
            stdin_child = pipes.open_null()
        self.stdout, stdout_child = pipes.pipe()
        self.stderr, stderr_child = pipes.pipe()
        sync, sync_child = pipes.pipe()
        descriptors = [stdin_child, stdout_child, stderr_child, sync_child]
        environment = {**request.environment, "_OCI_SYNCPIPE": "3"}
        start_pipe = attach_pipe = -1
        if request.process is not None:
            start_pipe, start_child = pipes.pipe(to_child=True)
            descriptors.append(start_child)
            environment["_OCI_STARTPIPE"] = "4"
        if request.attach:
            attach_pipe, attach_child = pipes.pipe()
            descriptors.append(attach_child)
            environment["_OCI_ATTACHPIPE"] = "5"
        self.sync = SyncReader(sync)
        self.child = self._child = spawn.start(
            request.monitor_path, self._argv(), environment, descriptors=descriptors
        )
        pipes.close_child()
        # A monitor of the classic dialect has no start pipe to hold it back, but it needs
        # milliseconds before it starts the runtime, and this needs none.
        self.mark = process_tree.mark(self.child.pid)
        if start_pipe >= 0:
            self._let_start(start_pipe)
        if request.attach:
            self._attach(attach_pipe, start_pipe)
        for fd in (start_pipe, attach_pipe):
            if fd >= 0:
                pipes.ours.remove(fd)
                os.close(fd)

    def _let_start(self, start_pipe: int) -> None:
        try:
            os.write(start_pipe, b"\0")
        except BrokenPipeError:
            pass  # The monitor has ended already; its status tells why.

    def _attach(self, attach_pipe: int, start_pipe: int) -> None:
        """Attached first, started second: not a byte of the output is missed."""
        ready = SyncReader(attach_pipe)
        poller = select.poll()
        poller.register(attach_pipe, select.POLLIN)
        poller.register(self.child.pidfd, select.POLLIN)
        deadline = Deadline(_ATTACH_SECONDS)
        while not (messages := ready.read()):
            if ready.eof or not poller.poll(deadline.milliseconds()):
                self.end_everything()
                said = drain(self.stderr).decode("utf-8", "replace").strip()
                raise MonitorError(
                    f"could not run a command in container {self.request.container}: its monitor "
                    f"{self.request.monitor_path} offers no attach socket: {said or 'no reason'}",
                    said,
                )
        if messages[0].value < 0:
            raise MonitorError(
                f"could not run a command in container {self.request.container}: "
                f"{messages[0].message}"
            )
        self.attachment = attach(self.directory)
        self._let_start(start_pipe)

    def _argv(self) -> list[str]:
        request = self.request
        if request.process is None:
            return argv_of.classic_exec(
                request.container,
                request.runtime_path,
                self.pidfile,
                request.command,
                terminal=request.terminal,
            )
        spec = os.path.join(self.directory, "process.json")
        with open(spec, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(request.process, file, ensure_ascii=False)
        return argv_of.modern_exec(
            request.container,
            request.runtime_path,
            self.pidfile,
            spec,
            cuuid=os.path.basename(self.directory),
            log="none" if request.attach else "passthrough",
            session_dir=self.directory if request.attach else "",
            terminal=request.terminal,
            stdin=request.attach,
        )

    @property
    def pid(self) -> int:
        """The command's pid in the caller's pid namespace; 0 before it is known."""
        if not self._pid:
            try:
                with open(self.pidfile, "rb") as file:
                    text = file.read(32).strip()
                self._note_pid(int(text) if text.isdigit() else 0)
            except OSError:
                pass
        return self._pid

    def _note_pid(self, pid: int) -> None:
        if pid > 0 and not self._pid:
            # Once, as early as can be: later the number may be another process's.
            self._pid = pid
            try:
                self._first = ProcessId.of(pid)
            except PyconmonError:
                pass  # it has its mark

    @property
    def first(self) -> ProcessId | None:
        """The command's main process; None before it is known, or if it had ended by then."""
        return self._first if self.pid else None

    def time_left(self, seconds: float) -> float:
        """How long to wait before `seconds` of the command's run time can have passed.

        The clock starts when the runtime writes the pid file, not when the monitor starts. While
        it has not, the full time is left (within `start_seconds`, for a runtime that hangs): asking
        again after it, the start is known exactly.
        """
        elapsed = time.monotonic() - self.started_at
        try:
            begun = os.stat(self.pidfile).st_mtime
        except OSError:
            return max(0.0, min(seconds, self.request.start_seconds - elapsed))
        # Somebody may have set the wall clock after the file was written, or before: only one of
        # its times lies between our start and now.
        ages = (self._wall_clock + elapsed - begun, time.time() - begun)
        fitting = (age for age in ages if -_FILE_CLOCK <= age <= elapsed + _FILE_CLOCK)
        return max(0.0, seconds - max(0.0, next(fitting, elapsed)))

    def advance(self) -> bool:
        """Take what the monitor has said; True when it has said everything and has been reaped."""
        if self._closed:
            return True
        ended = self.child.poll() is not None
        if not self.sync.eof:
            self.messages += self.sync.read()
            if self.request.process is not None and self.messages:
                self._note_pid(self.messages[0].value)
        return ended and self.sync.eof

    @property
    def exit_code(self) -> int | None:
        """The command's exit code as soon as the monitor has told it."""
        told = self._told()
        return told.value if told is not None and told.value >= 0 else None

    def _told(self) -> Message | None:
        """The message with the result, of either dialect."""
        for message in self.messages:
            if message.key == "exit_code":
                return message
        if len(self.messages) > 1:
            return self.messages[1]
        return None

    def outcome(self) -> Outcome:
        """After the end: the exit code, or why there is none."""
        code = self.exit_code
        if code is not None:
            return Outcome(code)
        told = self._told() or (self.messages[0] if self.messages else None)
        if told is not None and told.message:
            return Outcome(-1, told.message.strip())
        status = self.child.returncode
        if status is not None and status < 0:
            return Outcome(-1, f"the monitor was killed by signal {-status}")
        if told is not None and told.value < 0:
            return Outcome(-1, "the runtime could not start it")
        return Outcome(
            status or -1, f"the monitor gave no exit code and ended with status {status}"
        )

    def end_everything(self, seconds: float = 5.0) -> None:
        """End the command and all that it started, then see the monitor off and reap it."""
        roots = [self.first] if self.first else []
        deadline = time.monotonic() + seconds
        ended = process_tree.end(self.mark, roots, spare=[self.child.pid], seconds=seconds)
        # The monitor of what has just been ended reports and leaves by itself. One that does not,
        # or that has not come to starting anything, is killed, and what it may have started since.
        patience = max(0.5, deadline - time.monotonic()) if ended or self.pid else 0.0
        if self.child.wait(patience) is None:
            self.child.send_signal(signal.SIGKILL)
            self.child.wait(seconds)
            process_tree.end(self.mark, [], seconds=seconds)
        self.hear_last()

    def hear_last(self) -> None:
        """After the monitor's end: what is left in its pipe."""
        try:
            self.advance()
        except PyconmonError:
            pass  # nobody waits for its exit code any more

    def signal(self, number: int) -> bool:
        """Signal the command's main process; False if it has ended (or has not begun)."""
        if self.exit_code is not None or self.child.returncode is not None:
            return False
        return self.first is not None and self.first.send_signal(number)

    def release(self, role: str) -> int:
        """Hand "stdin", "stdout" or "stderr" over to the caller, who closes it from now on."""
        fd: int = getattr(self, role)
        setattr(self, role, -1)
        return fd

    def close_stdin(self) -> None:
        self._close("stdin")

    def close(self) -> None:
        """Give everything back; a command that still runs is ended first."""
        if self._closed:
            return
        try:
            if self.child.poll() is None:
                self.end_everything()
            else:
                self.hear_last()
        finally:
            self._closed = True
            if self.attachment is not None:
                self.attachment.close()
            for role in ("stdin", "stdout", "stderr"):
                self._close(role)
            os.close(self.sync.fd)
            self.child.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _close(self, role: str) -> None:
        fd = self.release(role)
        if fd >= 0:
            os.close(fd)


def pipe_capacity(fd: int) -> int:
    """How many bytes a pipe can hold."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def drain(fd: int) -> bytes:
    """What is in a pipe now, and no more than fits into one.

    After a program's end all that it wrote is there; a background process that goes on writing
    cannot make this endless, one that writes nothing does not make it wait.
    """
    os.set_blocking(fd, False)
    chunks: list[bytes] = []
    left = pipe_capacity(fd)
    while left > 0:
        try:
            chunk = os.read(fd, left)
        except BlockingIOError:
            break
        if not chunk:
            break
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def write_some(fd: int, data: memoryview) -> memoryview:
    """Writes what there is room for; what is left, nothing once nobody reads any more."""
    try:
        return data[os.write(fd, data[:65536]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]
