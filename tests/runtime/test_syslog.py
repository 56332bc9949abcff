"""What a monitor says to the system log in the course of a container's life."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.harness import Container, Harness, target
from tests.helpers.need import need_program

# Runs the monitor with a /dev of its own, where the system log is the test's socket.
PRIVATE_DEV = """exec {unshare} --mount --propagation private sh -c '
touch "$0.null" && mount --bind /dev/null "$0.null" && mount -t tmpfs none /dev &&
touch /dev/null && mount --bind "$0.null" /dev/null && ln -s "$0" /dev/log && exec "$@"' {log} {monitor} "$@"
"""


class SystemLog:
    """A system log that is read here and nowhere else."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def lines(self) -> list[str]:
        """All that has come so far."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 16, socket.MSG_DONTWAIT).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def system_log(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLog]:
    path = tmp_path_factory.mktemp("log") / "socket"
    log = SystemLog(path)
    text = PRIVATE_DEV.format(unshare=need_program("unshare"), log=path, monitor=harness.monitor)
    harness.monitor = harness.script(harness.monitor.name, text)
    yield log
    log.socket.close()


def end(container: Container) -> str:
    code = container.wait_exit()
    container.wait_monitor_gone()
    return code


def test_the_end_is_told(harness: Harness, system_log: SystemLog) -> None:
    container = harness.container(["sh", "-c", "exit 3"])
    pid = container.run("--syslog", "--log-level", "info")
    assert end(container) == "3"
    told = rf"<14>.* (py)?conmon: conmon {container.cid[:20]} <ninfo>: container {pid} exited with status 3 ?\n"
    assert [line for line in system_log.lines() if re.fullmatch(told, line)]


@target("conmon tells each time that a container takes no input just now")
def test_nothing_is_told_of_an_ordinary_life(harness: Harness, system_log: SystemLog) -> None:
    container = harness.container(["sh", "-c", "read x; sleep 0.5; exit 3"])
    container.created("--syslog", "-i")
    client = container.attach()
    container.start()
    client.socket.settimeout(0.2)
    with pytest.raises(OSError):  # the container takes no more
        while True:
            client.send(b"x" * 8000 + b"\n")
    assert end(container) == "3"
    assert system_log.lines() == []
