"""The classic dialect as its callers of 2017 speak it: a container, execs in it, and what each call gave.

Call is one run of the monitor; Container has a bundle and makes the calls; Containers makes those and puts
everything away. A monitor's standard streams are the container's, so each call has files (or what the test
hands in) for them.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.helpers import runtimes
from tests.helpers.bundles import Edit, make_bundle
from tests.helpers.monitors import monitor
from tests.helpers.waiting import gone, wait_until
from tests.helpers.wire import Wire

PATIENCE = 60.0
Word = str | bytes | Path
_numbers = itertools.count(1)


class Call:
    """One run of the monitor in the classic dialect. `words` come after its name.

    stdin, stdout, stderr: as subprocess has them; without them nothing, and a file each. sync: "pipe",
    "socket" (a stream socket), or "" for none.
    """

    def __init__(
        self,
        where: Path,
        words: Sequence[Any],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        sync: str = "pipe",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
        **more: Any,
    ) -> None:
        base = where / f"call{next(_numbers)}"
        self._out, self._err = base.with_suffix(".out"), base.with_suffix(".err")
        variables = {"PATH": os.environ["PATH"], **(environment or {})}
        ends: tuple[int, int] | None = None
        if sync == "pipe":
            ends = os.pipe()
        elif sync == "socket":
            ours, theirs = socket.socketpair()
            ends = ours.detach(), theirs.detach()
        if ends is not None:
            variables.setdefault("_OCI_SYNCPIPE", str(ends[1]))
            pass_fds = (*pass_fds, ends[1])
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [os.fspath(monitor("pyconmon")), *words],
                cwd=cwd or where,
                env=variables,
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                pass_fds=pass_fds,
                **more,
            )
        self.pidfile: Path | None = None
        self.sync: Wire | None = None
        if ends is not None:
            os.close(ends[1])
            self.sync = Wire(ends[0])

    @property
    def pid(self) -> int:
        """The monitor's."""
        return self.process.pid

    @property
    def stdout(self) -> bytes:
        return self._out.read_bytes()

    @property
    def stderr(self) -> bytes:
        return self._err.read_bytes()

    def status(self, seconds: float = PATIENCE) -> int:
        """The monitor's exit status, as soon as it has ended."""
        return self.process.wait(seconds)

    def watches(self) -> bool:
        """Whether the runtime has gone, and the exec'ed command is the monitor's only child."""
        assert self.pidfile is not None
        return children(self.pid) == [int(self.pidfile.read_text())]

    def answer(self, seconds: float = PATIENCE) -> bytes:
        """The next line of the sync pipe, b"" at its end."""
        assert self.sync is not None
        return self.sync.line(seconds)

    def rest(self, seconds: float = PATIENCE) -> bytes:
        """Everything on the sync pipe up to its end."""
        assert self.sync is not None
        return self.sync.rest(seconds)

    def close_sync(self) -> None:
        """The caller does not listen any more."""
        if self.sync is not None:
            self.sync.close()

    def close(self) -> None:
        """Clean-up: nothing of the call is left."""
        self.close_sync()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Container:
    """A bundle, and the calls for it."""

    def __init__(
        self,
        owner: Containers,
        name: str,
        args: Sequence[str],
        runtime: Path,
        terminal: bool,
        edit: Edit | None,
    ) -> None:
        self.owner = owner
        self.name = name
        self.runtime = runtime
        self.terminal = terminal
        self.bundle = make_bundle(owner.home / name, args, terminal, edit)
        self.pidfile = self.bundle / "pidfile"
        self.exit_file = self.bundle / "exit"

    def create_words(self) -> list[Word]:
        """What follows the monitor's name, as the Go client has it."""
        words: list[Word] = ["-c", self.name, "-r", self.runtime]
        words += ["-b", self.bundle, "-p", self.pidfile]
        return words + ["-t"] * self.terminal

    def create(self, **settings: Any) -> Call:
        """Start the monitor; nothing need be created when this returns."""
        return self.owner.call(self.create_words(), **settings)

    def created(self, **settings: Any) -> Call:
        """create(), and the message that it has been created; AssertionError if it is not that."""
        call = self.create(**settings)
        answer = call.answer()
        pid = self.pidfile.read_text().strip() if self.pidfile.exists() else "?"
        assert answer == b'{"pid": %s}\n' % pid.encode(), (answer, pid, call.stderr)
        return call

    def run(self, **settings: Any) -> Call:
        """created() and start()."""
        call = self.created(**settings)
        self.start()
        return call

    def exec(
        self, *command: Word, options: Sequence[Word] = (), name: str = "", **settings: Any
    ) -> Call:
        """Start the monitor of a command in the container, its pid file of its own."""
        pidfile = self.owner.home / f"exec-pid{next(_numbers)}"
        words: list[Word] = ["-c", name or self.name, "-r", self.runtime, "-p", pidfile, "-e"]
        call = self.owner.call([*words, *options, *command], **settings)
        call.pidfile = pidfile
        return call

    def start(self) -> None:
        self.runtime_does("start", self.name)

    def kill(self, name: str = "KILL") -> None:
        self.runtime_does("kill", self.name, name)

    def delete(self) -> None:
        self.runtime_does("delete", "--force", self.name)

    def state(self) -> str:
        """What the runtime says: created, running, stopped, or "" (unknown)."""
        return runtimes.state(self.runtime, self.name)

    def runtime_does(self, *words: str) -> None:
        done = subprocess.run(
            [self.runtime, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (words, done.stderr)

    @property
    def pid(self) -> int:
        """The container's, from its pid file."""
        return int(self.pidfile.read_text())

    def code(self) -> bytes:
        """What is in the exit file as soon as it is there."""
        wait_until(self.exit_file.exists, PATIENCE, f"exit file {self.exit_file}")
        return self.exit_file.read_bytes()


class Containers:
    """Makes containers and calls for one test, and takes everything away at its end."""

    def __init__(self, home: Path, runtime: Path) -> None:
        self.home = home
        self.runtime = runtime
        self.calls: list[Call] = []
        self.made: list[Container] = []

    def __call__(
        self,
        args: Sequence[str] = ("sleep", "1000"),
        *,
        runtime: Path | None = None,
        terminal: bool = False,
        edit: Edit | None = None,
    ) -> Container:
        """A container that runs `args`; nothing is started yet."""
        name = f"classic{next(_numbers)}"
        made = Container(self, name, args, runtime or self.runtime, terminal, edit)
        self.made.append(made)
        return made

    def running(self, args: Sequence[str] = ("sleep", "1000"), **kind: Any) -> Container:
        """A container that is started and stays."""
        container = self(args, **kind)
        container.run()
        return container

    def call(self, words: Sequence[Any], **settings: Any) -> Call:
        """The monitor with just these words."""
        call = Call(self.home, words, **settings)
        self.calls.append(call)
        return call

    def script(self, text: str) -> Path:
        """An executable shell script, as a stand-in for a runtime. $PF in it is the pid file."""
        path = self.home / f"script{next(_numbers)}"
        path.write_text(f"#!/bin/sh\nprevious=\nfor word; do\n{_FIND_PIDFILE}\ndone\n{text}\n")
        path.chmod(0o755)
        return path

    def close(self) -> None:
        for container in self.made:
            if container.runtime == self.runtime:
                container.delete()
        for call in self.calls:
            if call.process.poll() is None:
                try:  # a container that has been deleted ends its monitor
                    call.status(10)
                except subprocess.TimeoutExpired:
                    pass
            call.close()
        for pid in noted_pids(self.home):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


_FIND_PIDFILE = '[ "$previous" = --pid-file ] && PF=$word\nprevious=$word'


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return [child for child in found if not gone(child)]


def noted_pids(directory: Path) -> list[int]:
    """The pids that a stand-in runtime has left there, one a file named pid-*."""
    return [int(path.read_text()) for path in directory.glob("pid-*")]
