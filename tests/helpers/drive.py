"""Drive: one container's life through a monitor, as an engine of today drives it.

The modern dialect (API version 1): a sync pipe, exit files, a log file, an attach socket. It works
with pyconmon and with C conmon. A Drive is a context manager and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.helpers.bundles import Edit, make_bundle, process_spec
from tests.helpers.session import TOKEN
from tests.helpers.waiting import gone, wait_until

_numbers = itertools.count(1)
_PATIENCE = 30.0


class SyncPipe:
    """The reading end of a sync (or attach) pipe; lines are JSON objects."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.buffer = b""

    def started(self) -> None:
        """The monitor has its copy of the write end now: without ours its end is EOF."""
        if self.write_end >= 0:
            end, self.write_end = self.write_end, -1
            os.close(end)

    def raw_line(self, seconds: float = _PATIENCE) -> bytes:
        """The next line with its LF; what there is at EOF, at least b""."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self.read_end], [], [], remaining)[0]:
                raise AssertionError(f"no line on the sync pipe within {seconds} s")
            data = os.read(self.read_end, 65536)
            if not data:
                rest, self.buffer = self.buffer, b""
                return rest
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line + b"\n"

    def line(self, seconds: float = _PATIENCE) -> dict[str, Any] | None:
        """The next line as an object; None at EOF."""
        raw = self.raw_line(seconds)
        return json.loads(raw.decode(errors="surrogateescape")) if raw else None

    def rest(self, seconds: float = _PATIENCE) -> bytes:
        """Everything up to EOF."""
        lines = []
        while line := self.raw_line(seconds):
            lines.append(line)
        return b"".join(lines)

    def close(self) -> None:
        """Both ends."""
        self.started()
        if self.read_end >= 0:
            end, self.read_end = self.read_end, -1
            os.close(end)


class Attached:
    """A client on an attach socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The descriptor stands for the directory: a socket path has only 107 bytes.
        directory = os.open(path.parent, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self.stdout = b""
        self.stderr = b""
        self.eof = False

    def send(self, data: bytes) -> None:
        """Towards the container's stdin."""
        self.socket.sendall(data)

    def half_close(self) -> None:
        """No more input."""
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self, seconds: float = _PATIENCE) -> bool:
        """Take one packet into stdout or stderr; False at EOF."""
        self.socket.settimeout(seconds)
        try:
            packet = self.socket.recv(1 << 20)
        except ConnectionResetError:
            packet = b""
        if not packet:
            self.eof = True
        elif packet[0] == 2:
            self.stdout += packet[1:]
        elif packet[0] == 3:
            self.stderr += packet[1:]
        else:
            raise AssertionError(f"stream {packet[0]} in a packet of the attach socket")
        return not self.eof

    def until(self, text: bytes, seconds: float = _PATIENCE) -> bytes:
        """Receive until text is in the output of either stream; the output so far."""
        deadline = time.monotonic() + seconds
        while text not in self.stdout and text not in self.stderr:
            if not self.receive(max(0.01, deadline - time.monotonic())):
                raise AssertionError(f"{text!r} never came: {self.stdout!r} {self.stderr!r}")
        return self.stdout

    def all(self, seconds: float = _PATIENCE) -> tuple[bytes, bytes]:
        """Receive until EOF; all of stdout and all of stderr."""
        while not self.eof:
            self.receive(seconds)
        return self.stdout, self.stderr

    def close(self) -> None:
        """Gone."""
        self.socket.close()


class Session:
    """One run of a monitor, for a container or for an exec in it: what both have."""

    def __init__(self, directory: Path, ident: str, monitor: Path) -> None:
        self.directory = directory
        self.ident = ident
        self.monitor = monitor
        self.pidfile = directory / "pidfile"
        self.monitor_pidfile = directory / "conmon.pid"
        self.exit_dir = directory / "exits"
        self.log = directory / "ctr.log"
        self.sync = SyncPipe()
        self.attach_pipe: SyncPipe | None = None
        self.start_pipe: int = -1
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = -1
        self._clients: list[Attached] = []
        directory.mkdir(parents=True, exist_ok=True)
        self.exit_dir.mkdir(exist_ok=True)

    def spawn(
        self, arguments: Sequence[str | Path], environment: dict[str, str], **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start the monitor with our pipes; its stderr goes to the file stderr.

        What is not --sync comes back at once (a daemon goes on): then this waits for it.
        """
        pipes = [self.sync.write_end]
        environment = {**environment, "_OCI_SYNCPIPE": str(self.sync.write_end)}
        if self.attach_pipe is not None:
            pipes.append(self.attach_pipe.write_end)
            environment["_OCI_ATTACHPIPE"] = str(self.attach_pipe.write_end)
        start_read = -1
        if self.attach_pipe is not None:
            start_read, self.start_pipe = os.pipe()
            pipes.append(start_read)
            environment["_OCI_STARTPIPE"] = str(start_read)
        pass_fds = tuple(pipes) + tuple(more.pop("pass_fds", ()))
        more.setdefault("stdin", subprocess.DEVNULL)
        more.setdefault("stdout", subprocess.DEVNULL)
        with open(self.directory / "stderr", "ab") as stderr:
            more.setdefault("stderr", stderr)
            self.process = subprocess.Popen(
                [str(self.monitor), *map(str, arguments)],
                env=environment,
                pass_fds=pass_fds,
                **more,
            )
        if start_read >= 0:
            os.close(start_read)
            os.write(self.start_pipe, b"\0")
        self.sync.started()
        if self.attach_pipe is not None:
            self.attach_pipe.started()
        if "--sync" not in arguments:
            self.process.wait(_PATIENCE)
        return self.process

    @property
    def stderr(self) -> str:
        """What the monitor said on its stderr."""
        return (self.directory / "stderr").read_text(errors="replace")

    @property
    def monitor_pid(self) -> int:
        """The pid of the (daemonised) monitor, from its pid file."""
        if self.process is not None and self.process.poll() is None:
            return self.process.pid
        return int(wait_until(self.monitor_pidfile.read_text, what="the monitor's pid file"))

    def attach(self) -> Attached:
        """A new client on our attach socket."""
        client = wait_until(
            lambda: Attached(self.directory / "attach"), what=f"the attach socket of {self.ident}"
        )
        self._clients.append(client)
        return client

    def ctl(self, message: str) -> None:
        """One control message, such as "1 24 80". OSError when nobody listens."""
        control = os.open(self.directory / "ctl", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(control, message.encode() + b"\n")
        finally:
            os.close(control)

    @property
    def exit_file(self) -> Path:
        """Where the exit code gets written."""
        return self.exit_dir / self.ident

    def wait_exit(self, seconds: float = _PATIENCE) -> int:
        """The exit code, once its file is there."""
        wait_until(self.exit_file.exists, seconds, f"the exit file of {self.ident}")
        return int(self.exit_file.read_text())

    def wait_monitor(self, seconds: float = _PATIENCE) -> None:
        """Until the monitor has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.wait(seconds)
        elif self.monitor_pidfile.exists():
            pid = self.monitor_pid
            wait_until(lambda: gone(pid), seconds, f"the end of monitor {pid}")

    def records(self) -> list[tuple[str, str, bytes]]:
        """The log as (stream, "F" or "P", text without LF)."""
        found = []
        for line in self.log.read_bytes().split(b"\n")[:-1]:
            _, stream, tag, text = line.split(b" ", 3)
            found.append((stream.decode(), tag.decode(), text))
        return found

    def logged(self, stream: str = "stdout") -> bytes:
        """The bytes of one stream as the container wrote them, put together from the log."""
        return b"".join(
            text + (b"\n" if tag == "F" else b"")
            for name, tag, text in self.records()
            if name == stream
        )

    def close(self) -> None:
        """End the monitor if it is still there, and let go of all descriptors."""
        for client in self._clients:
            client.close()
        if self.start_pipe >= 0:
            os.close(self.start_pipe)
            self.start_pipe = -1
        self.sync.close()
        if self.attach_pipe is not None:
            self.attach_pipe.close()
        for pid in self._monitors():
            try:
                wait_until(partial(gone, pid), seconds=5)
            except AssertionError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(_PATIENCE)

    def _monitors(self) -> list[int]:
        """The monitor processes that name our own directory (a pid file may be stale)."""
        pids = []
        needle = os.fsencode(self.pidfile) + b"\0"
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                command = Path("/proc", name, "cmdline").read_bytes()
                if needle in command and int(name) != os.getpid():
                    pids.append(int(name))
        return pids


class Drive(Session):
    """A container: create(), start(), exec(), attach(), ctl(), wait_exit(), logged() ...

    args is the container's command. Settings: monitor and runtime (paths), name, terminal, stdin,
    edit (of config.json, see bundles.py), log (values of -l; default one k8s-file),
    options (more words for the monitor at create), environment (more variables for the monitor).
    """

    def __init__(
        self,
        args: Sequence[str],
        where: Path,
        *,
        monitor: Path,
        runtime: Path,
        name: str = "c",
        terminal: bool = False,
        stdin: bool = False,
        edit: Edit | None = None,
        log: Sequence[str] | None = None,
        options: Sequence[str | Path] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        number = next(_numbers)
        ident = f"{name}-{TOKEN.rpartition('-')[2]}-{number}"
        super().__init__(where / f"{name}{number}", ident, monitor)
        self.runtime = runtime
        self.terminal = terminal
        self.stdin = stdin
        self.logs = list(log) if log is not None else [f"k8s-file:{self.log}"]
        self.options = list(options)
        self.environment = {**os.environ, **(environment or {})}
        self.execs: list[Exec] = []
        self.bundle = make_bundle(self.directory, args, terminal, edit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()
        for each in self.execs:
            each.close()
        self.close()

    def arguments(self) -> list[str | Path]:
        """The words of the monitor for create."""
        words: list[str | Path] = ["--api-version", "1", "-c", self.ident, "-u", self.ident]
        words += ["-n", self.ident, "-r", self.runtime, "-b", self.bundle, "-p", self.pidfile]
        words += ["-P", self.monitor_pidfile, "--exit-dir", self.exit_dir, "--full-attach"]
        for log in self.logs:
            words += ["-l", log]
        words += ["-t"] * self.terminal + ["-i"] * self.stdin
        return words + self.options

    def launch(self, **more: Any) -> Drive:
        """Start the monitor for create, and do not wait for its answer (see sync)."""
        self.spawn(self.arguments(), self.environment, **more)
        return self

    def create(self, **more: Any) -> Drive:
        """launch(), and the pid that it reports; AssertionError with the message if it fails."""
        self.launch(**more)
        answer = self.sync.line()
        if not answer or answer.get("data", -1) <= 0:
            raise AssertionError(f"create failed: {answer} {self.stderr}")
        self.pid = answer["data"]
        return self

    def run_runtime(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The runtime itself with these words."""
        return subprocess.run(
            [self.runtime, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )

    def start(self) -> Drive:
        """Let the created container run its command."""
        started = self.run_runtime("start", self.ident)
        if started.returncode != 0:
            raise AssertionError(f"start failed: {started.stderr}")
        return self

    def run(self) -> Drive:
        """create() and start()."""
        return self.create().start()

    def status(self) -> str:
        """What the runtime says: created, running, stopped, or "" (unknown)."""
        result = self.run_runtime("state", self.ident)
        return str(json.loads(result.stdout)["status"]) if result.returncode == 0 else ""

    def kill(self, sig: str = "KILL") -> None:
        """A signal to the container, through the runtime."""
        self.run_runtime("kill", self.ident, sig)

    def exec(self, args: Sequence[str], **settings: Any) -> Exec:
        """A command in the running container, through a monitor of its own; see Exec."""
        each = Exec(self, args, **settings)
        self.execs.append(each)
        return each

    def delete(self) -> None:
        """Take the container away, running or not."""
        self.run_runtime("delete", "--force", self.ident)


class Exec(Session):
    """A command in a running container: started at once, pid and code come over its sync pipe.

    timeout: seconds of -T. attach: --exec-attach, so that nothing is missed (the command starts
    only after a client has been attached here). options, environment, log: as in Drive.
    """

    def __init__(
        self,
        container: Drive,
        args: Sequence[str],
        *,
        terminal: bool = False,
        stdin: bool = False,
        timeout: int = 0,
        attach: bool = False,
        monitor: Path | None = None,
        runtime: Path | None = None,
        log: Sequence[str] | None = None,
        options: Sequence[str | Path] = (),
        environment: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        number = next(_numbers)
        directory = container.directory / f"e{number}"
        super().__init__(directory, container.ident, monitor or container.monitor)
        spec = directory / "process.json"
        spec.write_text(json.dumps(process_spec(args, terminal)))
        words: list[str | Path] = ["--api-version", "1", "-c", container.ident]
        words += ["-u", f"{container.ident}-e{number}", "-n", container.ident]
        words += ["-r", runtime or container.runtime, "-b", directory, "-p", self.pidfile]
        words += ["-P", self.monitor_pidfile, "--exit-dir", self.exit_dir, "--full-attach"]
        words += ["-e", "--exec-process-spec", spec]
        for path in log if log is not None else [f"k8s-file:{self.log}"]:
            words += ["-l", path]
        words += ["-t"] * terminal + ["-i"] * stdin
        words += ["-T", str(timeout)] if timeout else []
        if attach:
            self.attach_pipe = SyncPipe()
            words.append("--exec-attach")
        self.spawn([*words, *options], {**container.environment, **(environment or {})}, **more)
        self.client: Attached | None = None
        if self.attach_pipe is not None:
            ready = self.attach_pipe.line()
            assert ready == {"data": 0}, ready
            self.client = self.attach()
            os.write(self.start_pipe, b"\0")
        self._answers: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any] | None:
        """The next line of the sync pipe: first {"data": PID}, then {"data": CODE}."""
        line = self.sync.line()
        if line is not None:
            self._answers.append(line)
        return line

    def wait(self) -> int:
        """The exit code; AssertionError with the answer if it never ran or was timed out."""
        while len(self._answers) < 2:
            line = self.answer()
            if line is None or "message" in line:
                raise AssertionError(f"exec failed: {line} after {self._answers} {self.stderr}")
            if len(self._answers) == 1:
                self.pid = line["data"]
        return int(self._answers[1]["data"])
