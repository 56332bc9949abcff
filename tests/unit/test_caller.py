"""The caller's terminal, with a process whose 0 and 1 are whatever a caller may have.

The process runs a CallerTerminal on one end of a pseudo-terminal, of which the test has the slave:
the container's side.
"""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyconmon.caller import raw
from tests.helpers.waiting import wait_until

PROGRAM = """
import fcntl, os, sys, termios
from pyconmon.caller import CallerTerminal
from pyconmon.diag import Diag
from pyconmon.loop import Loop

master, orders, answers = map(int, sys.argv[1:4])
if sys.argv[4:] == ["background"]:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    child = os.fork()
    if child:  # the leader, who keeps the terminal
        os.waitpid(child, 0)
        os._exit(0)
    os.setpgid(0, 0)
os.set_blocking(master, False)
loop = Loop()
flags = [os.get_blocking(fd) for fd in (0, 1)]
caller = CallerTerminal(loop, Diag())
caller.attach(master)

def answer(text):
    os.write(answers, text.encode() + b"\\n")

def order(_events):
    word = os.read(orders, 1)
    if not word:
        loop.stop()
    elif word == b"w":
        caller.window_changed()
        answer("window")
    elif word == b"i":
        count = 0
        timer = loop.call_after(0.15, lambda: None)
        while timer.callback is not None:
            loop.turn()
            count += 1
        answer(f"idle {count - 1}")
    else:
        caller.finish()
        caller.finish()
        caller.restore()
        answer("finished" if flags == [os.get_blocking(fd) for fd in (0, 1)] else "flags changed")

loop.watch(orders, 1, order)
answer("ready")
loop.run()
"""


class Session:
    """The process between a caller's descriptors and a container's terminal."""

    def __init__(self, stdin: int, stdout: int, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        attributes = termios.tcgetattr(self.slave)
        termios.tcsetattr(self.slave, termios.TCSANOW, raw(attributes))
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        environment = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[2]))
        passed = (self.master, orders, answers)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, passed), *arguments],
            stdin=stdin,
            stdout=stdout,
            pass_fds=passed,
            env=environment,
        )
        for fd in passed:
            os.close(fd)
        assert self.answer() == "ready"

    def answer(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            got = os.read(self._answers, 1)
            assert got, "the process has ended"
            text += got
        return text.decode().strip()

    def order(self, word: bytes) -> str:
        os.write(self._orders, word)
        return self.answer()

    def becomes_idle(self) -> None:
        """Once what is under way has arrived, nothing wakes the process."""
        wait_until(lambda: self.order(b"i") == "idle 0")

    def close(self) -> None:
        for fd in (self.slave, self._orders, self._answers):
            if fd >= 0:
                os.close(fd)
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    made: list[Session] = []
    yield made
    for session in made:
        session.close()


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """Descriptors to be closed at the end."""
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


def take(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = os.read(fd, size - len(data))
        assert got, "the end comes too early"
        data += got
    return data


def window(fd: int) -> tuple[int, ...]:
    return struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))[:2]


def test_a_terminal_is_raw_while_it_is_the_containers(
    sessions: list[Session], fds: list[int]
) -> None:
    outer, inner = pty.openpty()
    fds += [outer, inner]
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    before = termios.tcgetattr(inner)
    session = Session(inner, inner)
    sessions.append(session)
    assert termios.tcgetattr(inner) == raw(before)
    assert window(session.slave) == (31, 97)
    os.write(outer, b"a\x03\x04\r")
    assert take(session.slave, 4) == b"a\x03\x04\r"
    os.write(session.slave, b"out\r\n\x00\xff")
    assert take(outer, 7) == b"out\r\n\x00\xff"
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 6, 0, 0))
    assert session.order(b"w") == "window"
    assert window(session.slave) == (5, 6)
    session.becomes_idle()
    os.write(session.slave, b"last words")
    assert session.order(b"f") == "finished"
    assert take(outer, 10) == b"last words"
    assert termios.tcgetattr(inner) == before


def test_pipes_and_files_are_copied_without_a_terminal(
    sessions: list[Session], fds: list[int], tmp_path: Path
) -> None:
    text = os.urandom(50_000).replace(b"\x00", b"x")
    (tmp_path / "in").write_bytes(text)
    (tmp_path / "out").write_bytes(b"before ")
    stdin = os.open(tmp_path / "in", os.O_RDONLY)
    stdout = os.open(tmp_path / "out", os.O_WRONLY | os.O_APPEND)
    fds += [stdin, stdout]
    session = Session(stdin, stdout)
    sessions.append(session)
    assert take(session.slave, len(text)) == text
    session.becomes_idle()
    os.write(session.slave, b"output")
    assert session.order(b"f") == "finished"
    assert (tmp_path / "out").read_bytes() == b"before output"


@pytest.mark.parametrize("kind", ["pipe", "null", "socket"])
def test_the_end_of_input_wakes_nobody(sessions: list[Session], fds: list[int], kind: str) -> None:
    if kind == "pipe":
        stdin, writer = os.pipe()
    elif kind == "socket":
        stdin, writer = (end.detach() for end in socket.socketpair())
    else:
        stdin, writer = os.open("/dev/null", os.O_RDONLY), -1
    fds.append(stdin)
    reader, stdout = os.pipe()
    fds += [reader, stdout]
    session = Session(stdin, stdout)
    sessions.append(session)
    if writer >= 0:
        os.write(writer, b"typed")
        assert take(session.slave, 5) == b"typed"
        os.close(writer)
    os.write(session.slave, b"x")
    assert take(reader, 1) == b"x"
    session.becomes_idle()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_caller_that_reads_late_gets_every_byte(
    sessions: list[Session], fds: list[int], kind: str
) -> None:
    if kind == "pipe":
        reader, stdout = os.pipe()
    else:
        reader, stdout = (end.detach() for end in socket.socketpair())
    null = os.open("/dev/null", os.O_RDONLY)
    fds += [reader, stdout, null]
    session = Session(null, stdout)
    sessions.append(session)
    os.set_blocking(session.slave, False)
    text = b"0123456789abcdef" * 1024
    sent = 0
    # Until everything in between is full: the caller does not read, so the container has to wait.
    while True:
        try:
            sent += os.write(session.slave, text[sent % len(text) :])
        except BlockingIOError:
            if session.order(b"i") == "idle 0":
                break
    data = take(reader, sent)
    assert data == (text * (sent // len(text) + 1))[:sent]
    assert session.order(b"f") == "finished"


def test_a_caller_that_is_gone_does_not_stop_the_container(
    sessions: list[Session], fds: list[int]
) -> None:
    reader, stdout = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    fds.append(null)
    session = Session(null, stdout)
    sessions.append(session)
    os.close(reader)
    os.close(stdout)
    for _ in range(100):
        os.write(session.slave, bytes(4096))
    session.becomes_idle()
    assert session.order(b"f") == "finished"


def test_at_the_end_a_caller_that_does_not_read_is_not_waited_for(
    sessions: list[Session], fds: list[int]
) -> None:
    reader, stdout = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    fds += [reader, stdout, null]
    session = Session(null, stdout)
    sessions.append(session)
    os.set_blocking(session.slave, False)
    while True:
        try:
            os.write(session.slave, bytes(4096))
        except BlockingIOError:
            if session.order(b"i") == "idle 0":
                break
    assert session.order(b"f") == "finished"


def test_a_container_that_closes_its_terminal_wakes_nobody(
    sessions: list[Session], fds: list[int]
) -> None:
    stdin, writer = os.pipe()
    reader, stdout = os.pipe()
    fds += [stdin, writer, reader, stdout]
    session = Session(stdin, stdout)
    sessions.append(session)
    os.write(session.slave, b"bye")
    os.close(session.slave)
    session.slave = -1
    assert take(reader, 3) == b"bye"
    session.becomes_idle()
    os.write(writer, b"for nobody")
    session.becomes_idle()
    assert session.order(b"f") == "finished"


def test_in_the_background_the_terminal_is_left_alone(
    sessions: list[Session], fds: list[int]
) -> None:
    """The leader has the terminal; the process is in a group of its own, as callers do it."""
    outer, inner = pty.openpty()
    fds += [outer, inner]
    before = termios.tcgetattr(inner)
    reader, stdout = os.pipe()
    fds += [reader, stdout]

    session = Session(inner, stdout, "background")
    sessions.append(session)
    assert termios.tcgetattr(inner) == before
    os.write(outer, b"typed\n")
    os.write(session.slave, b"out")
    assert take(reader, 3) == b"out"
    session.becomes_idle()
    assert session.order(b"f") == "finished"
