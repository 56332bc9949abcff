"""The sd-notify relay: its filter as a table, and datagrams from a container to a host."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon import notify
from pyconmon.loop import Loop
from pyconmon.notify import NotifyRelay, allowed
from tests.helpers.serving import Messages, open_descriptors, serve_until, wake_ups


@pytest.mark.parametrize(
    ("datagram", "passed"),
    [
        (b"READY=1", b"READY=1"),
        (b"READY=1\n", b"READY=1"),
        (b"READY=1\nSTATUS=busy with x=1\nMAINPID=1\n", b"READY=1\nSTATUS=busy with x=1"),
        (
            b"RELOADING=1\rMONOTONIC_USEC=12\r\nSTOPPING=1",
            b"RELOADING=1\nMONOTONIC_USEC=12\nSTOPPING=1",
        ),
        (b"WATCHDOG=1\nWATCHDOG=trigger\nWATCHDOG=2", b"WATCHDOG=1\nWATCHDOG=trigger"),
        (b"ERRNO=2\nBUSERROR=org.x\nSTATUS=", b"ERRNO=2\nBUSERROR=org.x\nSTATUS="),
        (b"READY=10", b""),
        (b" READY=1", b""),
        (b"XREADY=1", b""),
        (b"MAINPID=1\nFDSTORE=1\nFDNAME=x\nBARRIER=1\nEXTEND_TIMEOUT_USEC=5", b""),
        (b"STATUS=\xff\0bytes", b"STATUS=\xff\0bytes"),
        (b"", b""),
    ],
)
def test_only_harmless_lines_are_passed_on(datagram: bytes, passed: bytes) -> None:
    assert allowed(datagram) == passed


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"READY=1", b"MAINPID=", b"STATUS=", b"\n", b"\r", b"=", b"1", b"\0"])
    )
)
def test_what_is_passed_on_is_passed_on_again(parts: list[bytes]) -> None:
    passed = allowed(b"".join(parts))
    assert allowed(passed) == passed
    assert b"MAINPID" not in [line.split(b"=")[0] for line in passed.split(b"\n")]


class Served:
    """A relay between a bundle and a host's socket."""

    def __init__(self, tmp_path: Path, host: Path | str | None = None) -> None:
        self.host_path = tmp_path / "host.sock" if host is None else host
        self.loop = Loop()
        self.diag = Messages()
        self.bundle = tmp_path
        self.path = tmp_path / "notify" / "notify.sock"
        self.relay = NotifyRelay(self.loop, self.diag, str(tmp_path), str(self.host_path))
        self.host: socket.socket | None = None

    def listen(self) -> None:
        self.host = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = str(self.host_path)
        self.host.bind("\0" + address[1:] if address.startswith("@") else address)
        self.host.setblocking(False)

    def say(self, *datagrams: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as container:
            directory = os.open(self.path.parent, os.O_PATH)
            for datagram in datagrams:
                container.sendto(datagram, f"/proc/self/fd/{directory}/{self.path.name}")
            os.close(directory)

    def heard(self) -> bytes:
        assert self.host is not None
        try:
            return self.host.recv(65536)
        except BlockingIOError:
            return b""

    def hears(self) -> bytes:
        return serve_until(self.loop, self.heard)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    before = open_descriptors()
    made: list[Served] = []

    def serve(bundle: Path = tmp_path, host: Path | str | None = None) -> Served:
        (bundle / "notify").mkdir(exist_ok=True)
        served = Served(bundle, host)
        made.append(served)
        served.listen()
        served.relay.open()
        return served

    yield serve
    for served in made:
        served.relay.close()
        served.relay.close()
        if served.host is not None:
            served.host.close()
        assert not served.path.exists()
    assert open_descriptors() == before


def test_states_reach_the_host(make: Callable[..., Served]) -> None:
    served = make()
    served.say(b"READY=1\nMAINPID=1", b"MAINPID=1", b"STATUS=fine")
    assert served.hears() == b"READY=1"
    assert served.hears() == b"STATUS=fine"
    assert served.heard() == b""
    assert wake_ups(served.loop) == 0


def test_every_user_of_the_container_may_write(make: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "notify").mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"")
    precious.chmod(0o600)
    (tmp_path / "notify" / "notify.sock").symlink_to(precious)
    served = make()
    status = os.lstat(served.path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o777
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


def test_descriptors_are_not_taken(make: Callable[..., Served]) -> None:
    served = make()
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as container:
        container.connect(str(served.path))
        socket.send_fds(container, [b"FDSTORE=1\nREADY=1"], [0, 1, 2])
    assert served.hears() == b"READY=1"
    assert len(open_descriptors()) == len(before) + 1  # the sender


def test_long_paths_on_both_sides(make: Callable[..., Served], tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    served = Served(deep, deep / "host")
    (deep / "notify").mkdir()
    directory = os.open(deep, os.O_PATH)
    served.host = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    served.host.bind(f"/proc/self/fd/{directory}/host")
    served.host.setblocking(False)
    os.close(directory)
    served.relay.open()
    served.say(b"READY=1")
    assert served.hears() == b"READY=1"
    served.relay.close()
    served.host.close()


def test_an_abstract_host_socket(make: Callable[..., Served]) -> None:
    served = make(host=f"@pyconmon-test-{os.getpid()}")
    served.say(b"READY=1")
    assert served.hears() == b"READY=1"


def test_a_host_that_is_away_is_told_of_once_and_found_again(make: Callable[..., Served]) -> None:
    served = make()
    served.say(b"READY=1")
    assert served.hears() == b"READY=1"
    assert served.host is not None
    served.host.close()
    os.unlink(served.host_path)
    for _ in range(3):
        served.say(b"WATCHDOG=1")
        serve_until(served.loop, lambda: served.diag.said)
    assert wake_ups(served.loop) == 0
    assert len(served.diag.said) == 1
    served.listen()
    served.say(b"STOPPING=1")
    assert served.hears() == b"STOPPING=1"


def test_a_host_that_does_not_read_gets_the_newest(
    make: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "MOST_HELD", 3)
    served = make()
    # Fill the host's queue by somebody else's doing, so that the relay cannot send at all.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        filled = 0
        try:
            while True:
                other.sendto(b"other", str(served.host_path))
                filled += 1
        except BlockingIOError:
            pass
    for number in range(10):
        served.say(b"STATUS=%d" % number)
        for _ in range(3):
            served.loop.turn(0)
    assert wake_ups(served.loop) == 0
    for _ in range(filled):
        assert served.heard() == b"other"
    assert [served.hears() for _ in range(3)] == [b"STATUS=7", b"STATUS=8", b"STATUS=9"]
    assert wake_ups(served.loop) == 0


def test_the_last_words_are_passed_on(make: Callable[..., Served]) -> None:
    served = make()
    served.say(b"STOPPING=1")
    served.relay.close()
    assert served.heard() == b"STOPPING=1"


@pytest.mark.parametrize("problem", ["missing", "symlink", "occupied"])
def test_what_cannot_be_bound_is_an_error(tmp_path: Path, problem: str) -> None:
    before = open_descriptors()
    if problem == "symlink":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "notify").symlink_to(tmp_path / "elsewhere")
    if problem == "occupied":
        (tmp_path / "notify" / "notify.sock").mkdir(parents=True)
    with pytest.raises(OSError):
        Served(tmp_path).relay.open()
    assert open_descriptors() == before
