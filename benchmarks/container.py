"""One container in the care of one monitor, driven over the wire that Podman and CRI-O use.

`Container` creates, starts, execs and removes; it knows the pids and where log and exit file are.
Everything raises BenchError with what the monitor said when a step fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import kernel
from benchmarks.workspace import Workspace

PATIENCE = 120.0


class BenchError(Exception):
    """A step of a benchmark failed; the text says which and why."""


def wait_for(condition: Callable[[], bool], what: str, pause: float = 0.0005) -> None:
    """Looks every `pause` seconds until the condition holds; BenchError after two minutes."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"waited {PATIENCE:.0f} s in vain for {what}")
        time.sleep(pause)


class Container:
    """A container of a bundle. Use it as a context manager: it removes what it made."""

    def __init__(
        self, space: Workspace, monitor: str, bundle: Path, driver: str = "k8s-file"
    ) -> None:
        self.space, self.monitor, self.bundle, self.id = space, monitor, bundle, bundle.name
        # journald wants an id of more than twelve characters.
        self.id = f"{bundle.name}-container"
        self.log = bundle / "ctr.log"
        self.driver = f"k8s-file:{self.log}" if driver == "k8s-file" else driver
        self.exit_file = space.exits / self.id
        self.pid = self.monitor_pid = -1

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def command(self, api: int = 1) -> list[str]:
        """The monitor's argv for create, but for the options of a certain case."""
        return [
            self.monitor, *(["--api-version", "1"] if api else []), "-c", self.id, "-u", self.id,
            "-n", self.id, "-r", str(self.space.runc), "-b", str(self.bundle),
            "-p", f"{self.bundle}/pidfile", "-P", f"{self.bundle}/conmon.pid",
            "--exit-dir", str(self.space.exits), "--full-attach", "-l", self.driver,
            "--log-level", "error",
        ]  # fmt: skip

    def create(self) -> None:
        """Runs the monitor until the container exists: both pids are known then."""
        status, lines = run_monitor(self.command(), str(self.bundle), lines=1)
        self.pid = json.loads(lines[0])["data"] if lines else -1
        if status or self.pid <= 0:
            raise BenchError(f"{self.monitor} created no container: status {status}, {lines!r}")
        self.monitor_pid = int((self.bundle / "conmon.pid").read_text())

    def start(self) -> None:
        subprocess.run([str(self.space.runc), "start", self.id], check=True)

    def exec_command(self, words: list[str], dialect: str) -> list[str]:
        """argv for an exec of `words`: `classic`, `v0` (as CRI-O, with --sync) or `v1`."""
        if dialect == "classic":
            return [
                self.monitor, "-c", self.id, "-r", str(self.space.runc),
                "-p", f"{self.bundle}/exec.pid", "-e", *words,
            ]  # fmt: skip
        spec = json.loads((self.bundle / "config.json").read_text())["process"] | {"args": words}
        path = self.bundle / "process.json"
        path.write_text(json.dumps(spec))
        return [
            self.monitor, "-c", self.id, "-n", self.id, "-r", str(self.space.runc),
            "-p", f"{self.bundle}/exec.pid", "-e", "-l", f"k8s-file:{self.bundle}/exec.log",
            *(["--api-version", "1", "-u", f"{self.id}-exec"] if dialect == "v1" else ["--sync"]),
            "--exec-process-spec", str(path),
        ]  # fmt: skip

    def execute(self, words: list[str], dialect: str) -> int:
        """Executes `words` in the container by way of the monitor; the exit code it reports."""
        command = self.exec_command(words, dialect)
        _, lines = run_monitor(command, str(self.bundle), lines=2 if dialect == "v1" else 1)
        answer = json.loads(lines[-1]) if lines else {}
        code = answer.get("data" if dialect == "v1" else "exit_code", -1)
        if code < 0 or (dialect == "v1" and len(lines) < 2):
            raise BenchError(f"{self.monitor}: exec failed: {lines!r}")
        return int(code)

    def stdout(self) -> int:
        """A descriptor of our own for the write end of the container's stdout pipe."""
        return os.open(f"/proc/{self.pid}/fd/1", os.O_WRONLY | os.O_CLOEXEC)

    def attach(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(f"{self.bundle}/attach")
        return client

    def wait_program(self, name: str) -> None:
        """Returns when the container's first process runs the program of that name."""
        wait_for(lambda: kernel.command_name(self.pid) == name, f"{name} in {self.id}")

    def wait_exit(self) -> str:
        """Returns the exit code when its file is there."""
        wait_for(self.exit_file.exists, f"the exit file of {self.id}", pause=0.0002)
        return self.exit_file.read_text()

    def remove(self) -> None:
        """Kills and deletes the container and sees the monitor out."""
        if self.monitor_pid > 0:
            monitor = _open_pidfd(self.monitor_pid)
            subprocess.run([str(self.space.runc), "delete", "-f", self.id], capture_output=True)
            if monitor >= 0:
                if not _ended(monitor, 20.0):
                    signal.pidfd_send_signal(monitor, signal.SIGKILL)
                os.close(monitor)
            self.monitor_pid = -1
        for path in (self.log, self.exit_file):
            path.unlink(missing_ok=True)


def run_monitor(command: list[str], cwd: str, lines: int) -> tuple[int, list[bytes]]:
    """Starts a monitor with start and sync pipe, as its callers do, and reads the sync pipe.

    Returns the exit status of the foreground process and the lines (at most `lines`) read.
    """
    sync_read, sync_write = os.pipe()
    start_read, start_write = os.pipe()
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "_OCI_SYNCPIPE": str(sync_write),
        "_OCI_STARTPIPE": str(start_read),
    }
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(sync_write, start_read),
    )
    os.close(sync_write)
    os.close(start_read)
    with contextlib.suppress(BrokenPipeError):
        os.write(start_write, b"\0")
    os.close(start_write)
    found: list[bytes] = []
    with open(sync_read, "rb", buffering=0) as sync:
        buffered = b""
        while len(found) < lines:
            data = sync.read(65536)
            if not data:
                break
            *whole, buffered = (buffered + data).split(b"\n")
            found += whole
    return process.wait(), found


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _ended(pidfd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
