"""Terminals in the classic dialect: the caller's own becomes the container's, and is given back as it was.

The caller is a session with a pseudo-terminal, as a login shell's is; the monitor runs in its foreground.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ptyprocess import PtyProcess

from tests.classic.sessions import PATIENCE, Container, Containers
from tests.helpers.monitors import monitor
from tests.helpers.need import need_program
from tests.helpers.waiting import wait_until
from tests.helpers.wire import Wire

ASK_SIZE = "stty -echo; echo ready; while read x; do stty size; done"


class Terminal:
    """The monitor with a terminal; `words` come after its name."""

    def __init__(self, words: list[Any], where: Path, size: tuple[int, int], prepare: str) -> None:
        read_end, write_end = os.pipe()
        os.set_inheritable(write_end, True)
        # A shell starts the monitor, as users do, and keeps the terminal when it has ended.
        shell = f'{prepare}"$@"; code=$?; exec {write_end}>&-; echo "status $code"; read end'
        argv = ["/bin/bash", "-c", shell, "bash", os.fspath(monitor("pyconmon"))]
        self.process = PtyProcess.spawn(
            [*argv, *map(os.fspath, words)],
            cwd=str(where),
            env={"PATH": os.environ["PATH"], "_OCI_SYNCPIPE": str(write_end)},
            pass_fds=[write_end],
            dimensions=size,
        )
        os.close(write_end)
        self.sync = Wire(read_end)
        self.output = b""
        slave = os.readlink(f"/proc/{self.process.pid}/fd/0")
        self.slave = os.open(slave, os.O_RDWR | os.O_NOCTTY)

    @property
    def monitor_pid(self) -> int:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(text.split()[0])

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def raw(self) -> bool:
        return not self.attributes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def type(self, text: bytes) -> None:
        self.process.write(text)

    def until(self, pattern: bytes, seconds: float = PATIENCE) -> bytes:
        """Read on until the pattern matches in the output; gives all of it so far."""
        deadline = time.monotonic() + seconds
        os.set_blocking(self.process.fd, False)

        def found() -> bool:
            try:
                self.output += os.read(self.process.fd, 65536)
            except BlockingIOError:
                pass
            return re.search(pattern, self.output) is not None

        wait_until(found, deadline - time.monotonic(), f"{pattern!r} in {self.output[-500:]!r}")
        return self.output

    def status(self) -> int:
        """The monitor's exit status."""
        return int(re.findall(rb"status (\d+)\r\n", self.until(rb"status \d+\r\n"))[-1])

    def close(self) -> None:
        self.sync.close()
        os.close(self.slave)
        self.process.close(force=True)


Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(words, size=..., prepare=what the shell does before) -> Terminal"""
    made: list[Terminal] = []

    def begin(words: list[Any], size: tuple[int, int] = (24, 80), prepare: str = "") -> Terminal:
        need_program("bash")
        made.append(Terminal(words, tmp_path, size, prepare))
        return made[-1]

    yield begin
    for terminal in made:
        terminal.close()


def create(start: Start, container: Container, **settings: Any) -> Terminal:
    """A container that is created and started, its terminal being the caller's."""
    terminal = start(container.create_words(), **settings)
    assert terminal.sync.line(PATIENCE) == b'{"pid": %d}\n' % container.pid
    container.start()
    return terminal


def execute(start: Start, container: Container, *command: str, **settings: Any) -> Terminal:
    words = ["-c", container.name, "-r", container.runtime, "-p", container.bundle / "exec-pid"]
    return start([*words, "-e", "-t", *command], **settings)


Way = Callable[..., Terminal]


@pytest.fixture(params=["create", "exec"])
def run(
    request: pytest.FixtureRequest, start: Start, containers: Containers
) -> Callable[..., tuple[Terminal, Container]]:
    """run(*command, size=...) -> the terminal in which it runs, and its container."""

    def begin(*command: str, **settings: Any) -> tuple[Terminal, Container]:
        if request.param == "create":
            container = containers(command, terminal=True)
            return create(start, container, **settings), container
        container = containers.running()
        return execute(start, container, *command, **settings), container

    begin.kind = request.param  # type: ignore[attr-defined]
    return begin


def code(run: Any, terminal: Terminal, container: Container) -> bytes:
    """The exit code, from where this kind of call has it."""
    if run.kind == "create":
        assert terminal.sync.rest(PATIENCE) == b""
        return container.code()
    answer = terminal.sync.rest(PATIENCE)
    assert answer.startswith(b'{"exit_code": '), answer
    return answer[14:-2]


def test_output_input_and_code(run: Any) -> None:
    script = "stty -echo; tty; echo err >&2; read x; echo got:$x; exit 7"
    terminal, container = run("sh", "-c", script)
    output = terminal.until(b"err\r\n")
    assert output.splitlines()[0].startswith(b"/dev/pts/")
    terminal.type(b"some words\r")
    terminal.until(b"got:some words\r\n")
    assert terminal.status() == 0
    assert code(run, terminal, container) == b"7"


def test_raw_while_it_runs(run: Any) -> None:
    terminal, container = run("sh", "-c", "stty -icanon -echo -isig; echo ready; head -c 4 | od -c")
    terminal.until(b"ready\r\n")
    assert terminal.raw()
    terminal.type(b"\x03\x1a\x04\x1c")  # none of them means anything to the caller's terminal
    terminal.until(rb"003 +032 +004 +034")
    assert terminal.status() == 0
    assert not terminal.raw()
    assert code(run, terminal, container) == b"0"


def test_control_c_is_the_containers(run: Any) -> None:
    script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done"
    terminal, container = run("sh", "-c", script)
    terminal.until(b"ready\r\n")
    terminal.type(b"\x03")
    assert terminal.status() == 0
    assert code(run, terminal, container) == b"9"


@pytest.mark.parametrize("end", ["exit", "failure", "kill", "TERM", "QUIT", "INT"])
def test_the_settings_come_back(run: Any, end: str) -> None:
    """In every way out."""
    script = "echo ready; read x; exit $x"
    if end in ("TERM", "QUIT", "INT"):
        script = f"trap 'exit 21' {end}; echo ready; while :; do sleep 0.05; done"
    terminal, container = run("sh", "-c", "echo begun; read go; " + script)
    terminal.until(b"begun\r\n")
    terminal.type(b"go\r")
    terminal.until(b"ready\r\n")
    assert terminal.raw()
    shim = not container.runtime.name.startswith("runc")
    if end in ("exit", "failure"):
        expected = b"0" if end == "exit" else b"3"
        terminal.type(expected + b"\r")
    elif end == "kill":
        expected = b"137"
        pidfile = container.pidfile if run.kind == "create" else container.bundle / "exec-pid"
        os.kill(int(pidfile.read_text()), signal.SIGKILL)
    else:
        number = getattr(signal, f"SIG{end}")
        expected = b"%d" % (128 + number) if shim else b"21"  # the shim has no trap
        os.kill(terminal.monitor_pid, number)
    assert terminal.status() == 0
    assert not terminal.raw()
    assert code(run, terminal, container) == expected


def test_unusual_settings_come_back(start: Start, containers: Containers) -> None:
    container = containers(["sh", "-c", "echo ready; read x"], terminal=True)
    terminal = create(start, container, prepare="stty -echoe -ixon intr ^X; ")
    terminal.until(b"ready\r\n")
    assert terminal.raw()
    terminal.type(b"x\r")
    assert terminal.status() == 0
    attributes = terminal.attributes()
    assert attributes[6][termios.VINTR] == b"\x18"
    assert not attributes[0] & termios.IXON
    assert not attributes[3] & termios.ECHOE
    assert attributes[3] & termios.ICANON


def test_the_settings_come_back_when_the_runtime_fails(start: Start, alone: Containers) -> None:
    """It hands over a terminal, and then there is no container."""
    program = alone.home / "terminal-and-nothing"
    program.write_text(
        "#!/usr/bin/python3 -IS\n"
        "import os, socket, sys\n"
        "path = sys.argv[sys.argv.index('--console-socket') + 1]\n"
        "master, slave = os.openpty()\n"
        "with socket.socket(socket.AF_UNIX) as console:\n"
        "    console.connect(path)\n"
        "    socket.send_fds(console, [b'pty'], [master])\n"
        "sys.stdin.read(1)\n"
        "sys.exit('nothing comes of it')\n"
    )
    program.chmod(0o755)
    container = alone(runtime=program, terminal=True)
    terminal = start(container.create_words())
    before = terminal.attributes()
    wait_until(terminal.raw, PATIENCE, "raw mode")
    assert terminal.attributes() != before
    # The runtime reads the same terminal as the monitor: enough for both.
    for _ in range(100):
        terminal.type(b"x")
    assert terminal.status() == 1
    assert terminal.attributes() == before
    assert b"nothing comes of it" in terminal.output
    assert terminal.sync.rest(PATIENCE) == b""
    terminal.type(b"\r")


def test_sizes(run: Any) -> None:
    terminal, container = run("sh", "-c", ASK_SIZE, size=(33, 101))
    terminal.until(b"ready\r\n")
    terminal.type(b"\r")
    terminal.until(b"33 101\r\n")
    for rows, columns in ((50, 132), (9, 40), (24, 80)):
        terminal.process.setwinsize(rows, columns)
        size = b"%d %d\r\n" % (rows, columns)
        before = len(terminal.output)

        def answered(size: bytes = size, before: int = before) -> bool:
            terminal.type(b"\r")
            terminal.until(rb"\d+ \d+\r\n\Z")
            return size in terminal.output[before:]

        wait_until(answered, PATIENCE, f"size {size!r}")
    terminal.type(b"\x04")
    assert terminal.status() == 0
    assert code(run, terminal, container) == b"0"


def test_nothing_is_lost_at_the_end(run: Any) -> None:
    terminal, container = run("sh", "-c", "echo begin; seq 1 5000; echo end")
    assert terminal.status() == 0
    output = terminal.output.partition(b"begin\r\n")[2].partition(b"status")[0]
    assert output == b"".join(b"%d\r\n" % n for n in range(1, 5001)) + b"end\r\n"
    assert code(run, terminal, container) == b"0"


def test_much_input(run: Any) -> None:
    script = "stty raw -echo; echo ready; head -c 100000 | tr -d z | wc -c"
    terminal, _ = run("sh", "-c", script)
    terminal.until(b"ready\n")
    os.set_blocking(terminal.process.fd, True)
    for _ in range(100):
        os.write(terminal.process.fd, b"y" * 1000)
    terminal.until(b"100000")
    assert terminal.status() == 0


@pytest.mark.parametrize("stdin", ["null", "pipe"])
def test_without_a_terminal_of_the_callers_own(containers: Containers, stdin: str) -> None:
    """As the Go client always has it: -t, and stdin is /dev/null."""
    container = containers.running()
    script = "tty; stty -echo; echo ready; read x; echo got:$x; exit 5"
    kind = subprocess.DEVNULL if stdin == "null" else subprocess.PIPE
    call = container.exec("sh", "-c", script, options=["-t"], stdin=kind)
    wait_until(lambda: b"ready\r\n" in call.stdout, PATIENCE, "the command")
    assert call.stdout.startswith(b"/dev/pts/")
    if stdin == "pipe":
        assert call.process.stdin is not None
        call.process.stdin.write(b"words\n")
        call.process.stdin.close()
        assert call.rest() == b'{"exit_code": 5}\n'
        assert call.stdout.endswith(b"got:words\r\n")
    else:
        wait_until(call.watches, PATIENCE, "the runtime's end")
        call.process.send_signal(signal.SIGTERM)
        assert call.rest() == b'{"exit_code": 143}\n'
    assert call.status() == 0
    assert call.stderr == b""


def test_a_caller_whose_terminal_goes(run: Any) -> None:
    """A hang-up is no end: the container goes on, and its code is told."""
    script = (
        "echo ready; n=0; while [ $n -lt 10 ]; do n=$((n+1)); echo $n; sleep 0.02; done; exit 6"
    )
    terminal, container = run("sh", "-c", "trap '' HUP; read x; " + script)
    wait_until(terminal.raw, PATIENCE, "raw mode")
    terminal.type(b"go\r")
    terminal.until(b"ready\r\n")
    watching = terminal.monitor_pid
    os.kill(watching, signal.SIGHUP)
    terminal.process.fileobj.close()
    assert code(run, terminal, container) == b"6"


def test_the_runtime_gives_no_terminal(start: Start, alone: Containers) -> None:
    script = alone.script("sleep 1000 & echo $! >'pid-1'; echo $! >\"$PF\"")
    terminal = start(alone(runtime=script, terminal=True).create_words())
    assert terminal.status() == 1
    assert b"Runtime did not set up terminal" in terminal.output
    assert terminal.sync.rest(PATIENCE) == b""
    terminal.type(b"\r")
