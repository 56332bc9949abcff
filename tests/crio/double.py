"""A double of CRI-O's side: it starts a monitor with CRI-O's words, environment, descriptors and order, and reacts alike.

The tests rely on Crio (create, start, exec_sync, attach, reopen_log, status) and its errors. Everything that CRI-O
decides by the wire is decided here the same way, strictly: what it would choke on fails the test.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.spawning import Process, spawn
from tests.helpers.waiting import wait_until

EXEC_CAP = 16 * 1024 * 1024
_PATIENCE = 60.0


class CrioError(Exception):
    """What CRI-O would report to the kubelet."""


@dataclass(frozen=True)
class ExecResult:
    exit_code: int
    stdout: bytes
    stderr: bytes


class Watch:
    """inotify on one directory; what fsnotify calls Create and Write."""

    _IN_MODIFY, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x80, 0x100

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_CLOEXEC)
        mask = self._IN_CREATE | self._IN_MOVED_TO | self._IN_MODIFY
        done = libc.inotify_add_watch(self._fd, os.fsencode(directory), mask)
        assert done >= 0, os.strerror(ctypes.get_errno())

    def wait_for(self, name: str, *, created: bool = False) -> None:
        """Until that name gets created (or, unless `created`, written to)."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no event for {name}"
            if not select.select([self._fd], [], [], left)[0]:
                continue
            events = os.read(self._fd, 1 << 16)
            while events:
                _, mask, _, length = struct.unpack_from("iIII", events)
                found = events[16 : 16 + length].rstrip(b"\0").decode(errors="surrogateescape")
                events = events[16 + length :]
                if found == name and not (created and mask == self._IN_MODIFY):
                    return

    def close(self) -> None:
        os.close(self._fd)


class Crio:
    """The daemon. All that it must know again after a restart is in its directory and the bundles."""

    def __init__(self, directory: Path, monitor: Path, runtime: Path, runtime_root: Path) -> None:
        self.directory = directory
        self.monitor = monitor
        self.runtime = runtime
        self.runtime_root = runtime_root
        self.exits = directory / "exits"
        self.sockets = directory / "crio"
        self.exits.mkdir(exist_ok=True)
        self.sockets.mkdir(exist_ok=True)
        self.exec_options: tuple[str, ...] = ()

    def _environment(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "CRI_O_EXTERNAL": "1", "XDG_RUNTIME_DIR": "/run/user/0"}

    # --- creating a container

    def persist_dir(self, cid: str) -> Path:
        return self.directory / "persist" / cid

    def create_argv(
        self, bundle: Path, cid: str, log: Path, *, terminal: bool, stdin: bool, stdin_once: bool
    ) -> list[str]:
        argv = [str(self.monitor), "-b", str(bundle), "-c", cid, "--exit-dir", str(self.exits)]
        argv += ["-l", str(log), "--log-level", "info", "-n", f"k8s_ctr_pod_ns_{cid}"]
        argv += ["-P", str(bundle / "conmon-pidfile"), "-p", str(bundle / "pidfile")]
        argv += ["--persist-dir", str(self.persist_dir(cid)), "-r", str(self.runtime)]
        argv += [f"--runtime-arg=--root={self.runtime_root}"]
        argv += ["--socket-dir-path", str(self.sockets), "--syslog", "-u", cid]
        if terminal:
            argv.append("-t")
        elif stdin:
            argv += [*([] if stdin_once else ["--leave-stdin-open"]), "-i"]
        return argv

    def create(
        self,
        bundle: Path,
        cid: str,
        log: Path,
        *,
        terminal: bool = False,
        stdin: bool = False,
        stdin_once: bool = False,
        options: Sequence[str] = (),
    ) -> int:
        """Returns the container's pid; CrioError with the monitor's message if there is none."""
        self.persist_dir(cid).mkdir(parents=True, exist_ok=True)
        argv = self.create_argv(
            bundle, cid, log, terminal=terminal, stdin=stdin, stdin_once=stdin_once
        )
        sync, sync_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        start, start_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = {3: sync_child.fileno(), 4: start_child.fileno()}
        captured = Captured(2) if terminal else None
        if captured:
            fds |= captured.fds
        process = spawn(
            [*argv, *options],
            env={**self._environment(), "_OCI_SYNCPIPE": "3", "_OCI_STARTPIPE": "4"},
            fds=fds,
            cwd=bundle,
            new_group=True,
        )
        sync_child.close()
        start_child.close()
        if captured:
            captured.started()
        try:
            start.sendall(b"\0")  # here the real one has moved the monitor to its cgroup
            start.close()
            status = process.wait(_PATIENCE)
            if captured:
                captured.finish()  # Go's Wait returns when the captured pipe has ended, too
            if status != 0:
                raise CrioError(f"conmon exited with {status}")
            answer = decode_one(sync)
        finally:
            sync.close()
            start.close()
            process.end()
        if answer["pid"] == -1:
            raise CrioError(answer.get("message") or "container create failed")
        monitor_pid = strict_integer((bundle / "conmon-pidfile").read_text())
        start_time(monitor_pid)  # it must be alive, and be known again after a restart
        pid = answer["pid"]
        assert isinstance(pid, int)
        return pid

    # --- a command, its output, its code

    def exec_sync(
        self,
        spec: dict[str, Any],
        cid: str,
        *,
        timeout: int = 0,
        terminal: bool = False,
        cap: int = EXEC_CAP,
    ) -> ExecResult:
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="exec-") as name:
            return self._exec_sync(Path(name), spec, cid, timeout, terminal, cap)

    def _exec_sync(
        self, where: Path, spec: dict[str, Any], cid: str, timeout: int, terminal: bool, cap: int
    ) -> ExecResult:
        pidfile, log, process_spec = where / "pidfile", where / "log", where / "process.json"
        pidfile.touch()  # CRI-O makes a temporary file, and hands over its name
        process_spec.write_text(json.dumps({**spec, "terminal": terminal}))
        argv = [str(self.monitor), "-c", cid, "-n", f"k8s_ctr_pod_ns_{cid}"]
        argv += ["-r", str(self.runtime), "-p", str(pidfile), "-e", "-l", str(log)]
        argv += ["--socket-dir-path", str(self.sockets), "--log-level", "info", "--sync"]
        argv += ["--log-global-size-max", str(cap)]
        argv += [*(["-t"] if terminal else []), *(["-T", str(timeout)] if timeout else [])]
        argv += ["-s", "--exec-process-spec", str(process_spec)]
        argv += ["--runtime-arg", f"--root={self.runtime_root}", *self.exec_options]
        read, write = os.pipe()
        start, start_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        captured = Captured(1, 2)
        process = spawn(
            argv,
            env={**self._environment(), "_OCI_SYNCPIPE": "3", "_OCI_STARTPIPE": "4"},
            fds={3: write, 4: start_child.fileno(), **captured.fds},
        )
        os.close(write)
        start_child.close()
        captured.started()
        start.sendall(b"\0")
        start.close()
        try:
            process.wait(_PATIENCE)  # the status says nothing that the pipe does not say
            captured.finish()
            with open(read, "rb", closefd=False) as sync:
                said = sync.read()
        finally:
            os.close(read)
            process.end()
        answer = decode(said)
        code = answer["exit_code"]
        if code == -1 and answer.get("message") == "command timed out":
            return ExecResult(-1, b"", b"command timed out")
        if code == -1:
            raise CrioError(answer.get("message", ""))
        stdout, stderr = parse_log(log.read_bytes())
        return ExecResult(code, stdout, stderr)

    # --- the rest of a container's life

    def start(self, cid: str) -> None:
        self.run_runtime("start", cid)

    def run_runtime(self, *words: str) -> str:
        argv = [str(self.runtime), f"--root={self.runtime_root}", *words]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise CrioError(done.stderr)
        return done.stdout

    def exit_code(self, cid: str) -> int:
        """The finished container's code, from the persist directory; 255 if that does not come."""
        path = self.persist_dir(cid) / "exit"
        try:
            text = wait_until(path.read_text, 5, "the persist file")
        except AssertionError:
            return 255
        return strict_integer(text)

    def attach(self, bundle: Path, cid: str) -> socket.socket:
        """The stream to a client: packets of one stream byte and at most 8192 others."""
        os.close(os.open(bundle / "ctl", os.O_WRONLY))
        path = self.sockets / cid / "attach"
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            made.connect(f"/proc/self/fd/{directory}/attach")
        finally:
            os.close(directory)
        return made

    def reopen_log(self, bundle: Path, log: Path) -> None:
        """Returns when the file at the log's path has been made or written to."""
        watch = Watch(log.parent)
        try:
            with open(bundle / "ctl", "wb", buffering=0) as control:
                control.write(b"2 0 0\n")
            watch.wait_for(log.name)
        finally:
            watch.close()


class Captured:
    """Pipes for a child's stdout and stderr, read to their end as Go's exec.Cmd does."""

    def __init__(self, *numbers: int) -> None:
        self.output: dict[int, bytes] = {}
        self.fds: dict[int, int] = {}
        self._threads: list[threading.Thread] = []
        self._reading: dict[int, int] = {}
        for number in numbers:
            self._reading[number], self.fds[number] = os.pipe()

    def started(self) -> None:
        """The child has its copies now."""
        for fd in self.fds.values():
            os.close(fd)
        for number, fd in self._reading.items():
            thread = threading.Thread(target=self._read, args=(number, fd), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _read(self, number: int, fd: int) -> None:
        with open(fd, "rb") as pipe:
            self.output[number] = pipe.read()

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(_PATIENCE)
        assert len(self.output) == len(self._threads), "a captured pipe is still held open"


def decode_one(sync: socket.socket) -> dict[str, Any]:
    """One JSON value from the stream, as Go's Decoder takes it: it does not wait for the end."""
    sync.settimeout(_PATIENCE)
    said = b""
    while b"\n" not in said:
        data = sync.recv(4096)
        if not data:
            raise CrioError(f"EOF on the sync pipe after {said!r}")
        said += data
    return decode(said.partition(b"\n")[0])


def decode(said: bytes) -> dict[str, Any]:
    """The one value in `said`."""
    if not said:
        raise CrioError("EOF on the sync pipe")
    value = json.loads(said.decode("utf-8", errors="replace"))
    assert isinstance(value, dict)
    return value


def strict_integer(text: str) -> int:
    """As Go's Atoi: no blanks, no newline."""
    assert re.fullmatch(r"-?\d+", text), repr(text)
    return int(text)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def parse_log(text: bytes) -> tuple[bytes, bytes]:
    """stdout and stderr out of a log: four fields at three blanks, P records without their LF."""
    streams: dict[bytes, list[bytes]] = {b"stdout": [], b"stderr": []}
    for line in text.splitlines(keepends=True):
        fields = line.split(b" ", 3)
        assert len(fields) == 4, line
        _, stream, tag, data = fields
        streams[stream].append(data.removesuffix(b"\n") if tag == b"P" else data)
    return b"".join(streams[b"stdout"]), b"".join(streams[b"stderr"])


__all__ = ["Captured", "Crio", "CrioError", "ExecResult", "Process", "Watch", "strict_integer"]
