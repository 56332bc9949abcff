"""The relay of sd-notify messages from a container to the socket of whoever started it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.harness import Container, Harness, target


class Receiver:
    """The far end: what systemd would get."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(20)

    def one(self) -> bytes:
        return self.socket.recv(1 << 16)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "host")
    yield made
    made.socket.close()


def notifying(harness: Harness, receiver: Receiver) -> Container:
    container = harness.container(["sleep", "1000"])
    (container.directory / "notify").mkdir()
    container.run(f"--sdnotify-socket={receiver.path}")
    return container


def say(container: Container, text: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text, str(container.directory / "notify/notify.sock"))


def test_readiness(harness: Harness, receiver: Receiver) -> None:
    container = notifying(harness, receiver)
    path = container.directory / "notify/notify.sock"
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o777
    say(container, b"READY=1")
    assert receiver.one().rstrip(b"\n") == b"READY=1"


@target("2.1.6 passes on readiness and the watchdog only")
def test_only_what_concerns_the_service_is_passed_on(harness: Harness, receiver: Receiver) -> None:
    container = notifying(harness, receiver)
    say(container, b"MAINPID=1\nSTATUS=half way\nREADY=1\nFDSTORE=1\nNOTREADY=1\nERRNO=2\n")
    assert receiver.one().split() == b"STATUS=half way READY=1 ERRNO=2".split()
    say(container, b"MAINPID=77")
    say(container, b"READY=10\nXREADY=1")
    for word in ("RELOADING=1", "STOPPING=1", "WATCHDOG=1", "WATCHDOG=trigger", "BUSERROR=x"):
        say(container, word.encode())
        assert receiver.one().rstrip(b"\n") == word.encode()
    say(container, b"RELOADING=1\rMONOTONIC_USEC=77")
    assert receiver.one().split() == [b"RELOADING=1", b"MONOTONIC_USEC=77"]


def test_a_receiver_that_is_gone_hurts_nobody(harness: Harness, receiver: Receiver) -> None:
    container = notifying(harness, receiver)
    receiver.socket.close()
    receiver.path.unlink()
    for _ in range(5):
        say(container, b"READY=1")
    container.kill()
    assert container.wait_exit() == "137"


def test_without_its_directory_there_is_no_container(harness: Harness, receiver: Receiver) -> None:
    container = harness.container(["true"])
    call = container.create("--sync", f"--sdnotify-socket={receiver.path}")
    line = call.sync.line()
    assert line == b"" or b": -1" in line
    assert call.status() == 1
    assert container.state() == ""
