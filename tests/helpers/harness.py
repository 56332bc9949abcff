"""Containers and execs through a monitor in the modern dialect, with every option, pipe and file in a test's reach.

Tests rely on Harness (the factory, see the `harness` fixture), Container, Exec and Call. It starts the monitor as
Podman does (packet sockets, `--api-version 1`, `--full-attach`) unless a test asks otherwise; CRI-O's way is tests/crio.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import runtimes
from tests.helpers.bundles import Edit, make_bundle
from tests.helpers.call import Call
from tests.helpers.monitors import PYCONMON
from tests.helpers.spawning import spawn
from tests.helpers.waiting import gone, wait_until
from tests.helpers.wire import Client, Log, Wire


class Monitored:
    """What a container and an exec have in common: a directory with the monitor's files, and the calls made."""

    def __init__(
        self, owner: Harness, directory: Path, cid: str, cuuid: str, terminal: bool
    ) -> None:
        self.owner = owner
        self.directory = directory
        self.cid = cid
        self.cuuid = cuuid
        self.terminal = terminal
        self.api = 1
        self.runtime: str | Path = owner.runtime
        self.exit_dir = directory / "exits"
        self.exit_dir.mkdir(exist_ok=True)
        self.persist_dir = directory / "persist"
        self.persist_dir.mkdir(exist_ok=True)
        self.pidfile = directory / "pidfile"
        self.monitor_pidfile = directory / "conmon.pid"
        self.log = Log(directory / "ctr.log")
        self.call: Call | None = None

    # --- starting the monitor

    def _common(self, log: Sequence[str] | None) -> list[str]:
        argv = [str(self.owner.monitor)]
        if self.api:
            argv += ["--api-version", "1"]
        argv += [
            "-c",
            self.cid,
            "-u",
            self.cuuid,
            "-n",
            f"name-{self.cid}",
            "-r",
            str(self.runtime),
        ]
        argv += [
            "-b",
            str(self.directory),
            "-p",
            str(self.pidfile),
            "-P",
            str(self.monitor_pidfile),
        ]
        argv += [
            "--exit-dir",
            str(self.exit_dir),
            "--persist-dir",
            str(self.persist_dir),
            "--full-attach",
        ]
        for value in [f"k8s-file:{self.log.path}"] if log is None else log:
            argv += ["-l", value]
        argv += ["--log-level", "warning"]
        if self.terminal:
            argv.append("-t")
        return argv

    def launch(
        self,
        argv: Sequence[str | bytes],
        *,
        env: Mapping[str, str] | None = None,
        start_pipe: bool = False,
        attach_pipe: bool = False,
        fds: Mapping[int, int] | None = None,
        cwd: Path | None = None,
        umask: int | None = None,
        new_group: bool = False,
    ) -> Call:
        """Starts the monitor with fd 3 as its sync pipe, 4 as start pipe, 5 as attach pipe (packet sockets)."""
        environment = {"PATH": os.environ["PATH"], **(env or {})}
        said = self.directory / f"monitor-{uuid.uuid4().hex[:6]}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited: list[socket.socket] = [theirs]
        numbers = {3: theirs.fileno()}
        environment.setdefault("_OCI_SYNCPIPE", "3")
        start = attach = None
        if start_pipe:
            start, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            inherited.append(far)
            numbers[4] = far.fileno()
            environment.setdefault("_OCI_STARTPIPE", "4")
        if attach_pipe:
            attach, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            inherited.append(far)
            numbers[5] = far.fileno()
            environment.setdefault("_OCI_ATTACHPIPE", "5")
        out, err = (
            os.open(said.with_suffix(s), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            for s in (".out", ".err")
        )
        process = spawn(
            argv,
            env=environment,
            fds={1: out, 2: err, **numbers, **(fds or {})},
            cwd=cwd,
            umask=umask,
            new_group=new_group,
        )
        for held in inherited:
            held.close()
        os.close(out)
        os.close(err)
        self.call = Call(
            process,
            Wire(ours.detach()),
            Wire(attach.detach()) if attach else None,
            start.detach() if start else None,
            said,
        )
        self.owner.calls.append(self.call)
        return self.call

    # --- the monitor

    def monitor_pid(self) -> int:
        """From the conmon pidfile, which is there when the foreground process has ended."""
        return int(self.monitor_pidfile.read_text())

    def wait_monitor_gone(self, seconds: float = 30) -> None:
        wait_until(lambda: gone(self.monitor_pid()), seconds, "the monitor's end")

    # --- what it leaves

    @property
    def exit_file(self) -> Path:
        return self.exit_dir / self.cid

    def wait_exit(self, seconds: float = 30) -> str:
        """The text of the exit file as soon as it is there."""
        wait_until(self.exit_file.exists, seconds, f"exit file {self.exit_file}")
        return self.exit_file.read_text()

    def attach(self, *, accepted: bool = True) -> Client:
        """A new client; by default only when the monitor has accepted it.

        C conmon accepts one client a turn of its loop, and those it has not come to by then miss output.
        """
        monitor = self._monitor_or_none() if accepted else None
        before = _sockets(monitor)
        client = Client(self.directory / "attach")
        self.owner.clients.append(client)
        if monitor is not None:
            wait_until(
                lambda: gone(monitor) or _sockets(monitor) - before, what="the monitor's accept"
            )
        return client

    def _monitor_or_none(self) -> int | None:
        if self.monitor_pidfile.exists():
            return self.monitor_pid()
        return self.call.process.pid if self.call and self.call.process.running else None

    def ctl(self, text: str, name: str = "ctl") -> None:
        """Writes to a control FIFO; OSError (ENXIO) if no monitor reads it."""
        fd = os.open(self.directory / name, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def container_pid(self) -> int:
        return int(self.pidfile.read_text())

    def container_pid_if_known(self) -> int:
        """0 as long as the pid file is missing or empty."""
        text = self.pidfile.read_text() if self.pidfile.exists() else ""
        return int(text or "0")


class Container(Monitored):
    """A container: `create`, `start`, `wait_exit`; `run` is the first two."""

    def __init__(
        self, owner: Harness, args: Sequence[str], cid: str, terminal: bool, edit: Edit | None
    ) -> None:
        directory = owner.home / cid
        make_bundle(directory, list(args), terminal=terminal, edit=edit)
        super().__init__(owner, directory, cid, cid, terminal)
        self.execs = 0

    def create_argv(self, *options: str, log: Sequence[str] | None = None) -> list[str]:
        return [*self._common(log), *options]

    def create(self, *options: str, log: Sequence[str] | None = None, **launch: Any) -> Call:
        """Starts the monitor; it need not have created anything yet when this returns."""
        return self.launch(self.create_argv(*options, log=log), **launch)

    def created(self, *options: str, log: Sequence[str] | None = None, **launch: Any) -> int:
        """Creates the container and gives its pid; AssertionError if that fails."""
        call = self.create(*options, log=log, **launch)
        if "--sync" not in options:
            status = call.status()
            assert status == 0, (status, call.stderr)
        value = call.sync.value()
        pid = value.get("data" if self.api else "pid")
        assert isinstance(pid, int), value
        assert pid > 0, value
        return pid

    def start(self) -> None:
        self.owner.runc("start", self.cid)

    def run(self, *options: str, log: Sequence[str] | None = None, **launch: Any) -> int:
        pid = self.created(*options, log=log, **launch)
        self.start()
        return pid

    def kill(self, name: str = "KILL") -> None:
        self.owner.runc("kill", self.cid, name)

    def state(self) -> str:
        """What the runtime says: created, running, stopped, or "" if it knows nothing of it."""
        return runtimes.state(self.owner.runtime, self.cid)

    def delete(self) -> None:
        self.owner.runc("delete", "--force", self.cid)

    def exec(self, args: Sequence[str], *, terminal: bool = False) -> Exec:
        self.execs += 1
        return Exec(self, list(args), f"exec{self.execs}", terminal)


class Exec(Monitored):
    """A command in a running container: `begin` starts the monitor; its files are in a directory of its own."""

    def __init__(
        self, container: Container, args: Sequence[str], name: str, terminal: bool
    ) -> None:
        directory = container.directory / name
        directory.mkdir()
        super().__init__(container.owner, directory, container.cid, name, terminal)
        self.runtime = container.runtime
        self.spec = directory / "process.json"
        process = json.loads((container.directory / "config.json").read_text())["process"]
        process.update(args=list(args), terminal=terminal)
        self.spec.write_text(json.dumps(process))

    def argv(self, *options: str, log: Sequence[str] | None = None) -> list[str]:
        return [*self._common(log), "-e", "--exec-process-spec", str(self.spec), *options]

    def begin(self, *options: str, log: Sequence[str] | None = None, **launch: Any) -> Call:
        if "--exec-attach" in options:
            launch = {"start_pipe": True, "attach_pipe": True, **launch}
        return self.launch(self.argv(*options, log=log), **launch)

    def results(self) -> tuple[int, int]:
        """(pid, exit code) as API version 1 reports them."""
        assert self.call
        pid = self.call.sync.value()
        assert pid["data"] > 0, pid
        return pid["data"], self.call.sync.value()["data"]


class Harness:
    """Makes containers for one test with one monitor, and puts everything away afterwards."""

    def __init__(self, home: Path, monitor: Path, runtime: Path) -> None:
        self.home = home
        self.monitor = monitor
        self.runtime = runtime
        self.calls: list[Call] = []
        self.clients: list[Client] = []
        self.made: list[Container] = []

    def container(
        self,
        args: Sequence[str],
        *,
        cid: str | None = None,
        terminal: bool = False,
        edit: Edit | None = None,
    ) -> Container:
        made = Container(self, args, cid or f"c{uuid.uuid4().hex[:16]}", terminal, edit)
        self.made.append(made)
        return made

    def running(self, args: Sequence[str] = ("sleep", "1000"), **kind: Any) -> Container:
        """A container that is started and stays."""
        made = self.container(args, **kind)
        made.run()
        return made

    def script(self, name: str, text: str) -> Path:
        """An executable shell script: a stand-in for a runtime or an exit command."""
        path = self.home / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def runc(self, *words: str) -> str:
        done = subprocess.run(
            [str(self.runtime), *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for container in self.made:
            subprocess.run(
                [str(self.runtime), "delete", "--force", container.cid],
                check=False,
                capture_output=True,
                timeout=60,
            )
        for call in self.calls:
            call.close()
        for pidfile in self.home.rglob("conmon.pid"):
            with contextlib.suppress(ValueError, OSError, AssertionError):
                _end_monitor(int(pidfile.read_text()), os.fsencode(self.monitor))


def _sockets(pid: int | None) -> set[str]:
    """The sockets that process has open, by their inodes."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd") if pid else ():
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {link for link in found if link.startswith("socket:")}


def _end_monitor(pid: int, monitor: bytes) -> None:
    """Gives a monitor a moment to end by itself, and kills it if its command line shows that it is still one."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: gone(pid), 5, "the monitor's end")
        return
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        if monitor in file.read().split(b"\0"):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def harness(monitor_path: Path, runc: Path, tmp_path: Path) -> Iterator[Harness]:
    """Containers with the monitor under test; a folder's conftest imports it."""
    made = Harness(tmp_path, Path(monitor_path), Path(runc))
    yield made
    made.close()


def target(because: str) -> pytest.MarkDecorator:
    """Marks a test that conmon 2.1.6 is known to fail (`because` says how): it runs with pyconmon only."""
    assert because
    return pytest.mark.parametrize("monitor_path", [PYCONMON], ids=["pyconmon"])
