"""The console socket, with a test that plays the runtime, and real terminals."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyconmon import console
from pyconmon.console import Console, set_window_size
from pyconmon.loop import Loop
from tests.helpers.serving import Messages, open_descriptors, serve_until, wake_ups


class Served:
    """A Console on its loop, and what it reported."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.diag = Messages()
        self.terminals: list[int] = []
        self.errors: list[str] = []
        self.console = Console(self.loop, self.diag, self.terminals.append, self.errors.append)


@pytest.fixture
def served() -> Iterator[Served]:
    before = open_descriptors()
    served = Served()
    yield served
    served.console.close()
    served.console.close()
    for fd in served.terminals:
        os.close(fd)
    assert open_descriptors() == before


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.ONLCR
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    yield master, slave
    os.close(master)
    os.close(slave)


def hand_over(path: str, *fds: int, name: bytes = b"/dev/pts/0") -> None:
    """What a runtime does."""
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.settimeout(20)
        runtime.connect(path)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if name or fds:
            runtime.sendmsg([name], ancillary)


def test_the_terminal_arrives_ready_for_use(
    served: Served, terminal: tuple[int, int], tmp_path: Path
) -> None:
    path = served.console.listen(str(tmp_path))
    assert Path(path).parent == tmp_path
    assert Path(path).name.startswith("conmon-term.")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    before = termios.tcgetattr(terminal[0])
    hand_over(path, terminal[0])
    serve_until(served.loop, lambda: served.terminals)
    assert os.listdir(tmp_path) == []
    (master,) = served.terminals
    assert os.fstat(master).st_rdev == os.fstat(terminal[0]).st_rdev
    assert not os.get_inheritable(master)
    assert not os.get_blocking(master)
    after = termios.tcgetattr(master)
    assert after[1] == before[1] | termios.ONLCR
    assert after[0:1] + after[2:] == before[0:1] + before[2:]
    assert wake_ups(served.loop) == 0


def test_a_connection_that_waits_is_served_when_the_runtime_has_ended(
    served: Served, terminal: tuple[int, int], tmp_path: Path
) -> None:
    hand_over(served.console.listen(str(tmp_path)), terminal[0])
    served.console.pending()
    assert len(served.terminals) == 1
    served.console.pending()
    assert len(served.terminals) == 1
    assert served.errors == []


def test_a_runtime_that_never_connects(served: Served, tmp_path: Path) -> None:
    served.console.listen(str(tmp_path))
    served.console.pending()
    assert wake_ups(served.loop) == 0
    served.console.close()
    assert os.listdir(tmp_path) == []
    assert served.terminals == []
    assert served.errors == []


def test_a_connection_that_says_nothing_yet_blocks_nobody(served: Served, tmp_path: Path) -> None:
    path = served.console.listen(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(path)
        served.console.pending()
        served.console.pending()
        assert served.errors == []
        assert wake_ups(served.loop) == 0
    serve_until(served.loop, lambda: served.errors)
    assert len(served.errors) == 1


@pytest.mark.parametrize("name", [b"", b"/dev/pts/0"])
def test_a_message_without_a_terminal_is_an_error(
    served: Served, tmp_path: Path, name: bytes
) -> None:
    hand_over(served.console.listen(str(tmp_path)), name=name)
    serve_until(served.loop, lambda: served.errors)
    served.console.pending()
    assert len(served.errors) == 1
    assert served.terminals == []
    assert os.listdir(tmp_path) == []


def test_descriptors_too_many_are_closed(
    served: Served, terminal: tuple[int, int], tmp_path: Path
) -> None:
    # The fixture sees that none stays open.
    hand_over(served.console.listen(str(tmp_path)), terminal[0], 0, 1, 2)
    serve_until(served.loop, lambda: served.terminals)
    assert len(served.terminals) == 1


def test_what_is_no_terminal_is_taken_with_a_warning(served: Served, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    hand_over(served.console.listen(str(tmp_path)), read_end)
    os.close(read_end)
    os.close(write_end)
    serve_until(served.loop, lambda: served.terminals)
    assert len(served.diag.said) == 1
    assert served.errors == []


def test_a_directory_with_a_long_name_is_avoided(
    served: Served, terminal: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp") / f"pyconmon-console-{os.getpid()}"
    short.mkdir()
    try:
        monkeypatch.setattr(console, "SHORT_DIRECTORIES", ("/proc/nowhere", str(short)))
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        path = served.console.listen(str(deep))
        assert Path(path).parent == short
        hand_over(path, terminal[0])
        serve_until(served.loop, lambda: served.terminals)
        assert os.listdir(short) == os.listdir(deep) == []
        assert os.listdir(tmp_path) == [deep.name]
    finally:
        short.rmdir()


def test_a_directory_that_is_missing_is_an_error(served: Served, tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        served.console.listen(str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in str(caught.value)


def test_a_name_that_is_taken_is_not_used(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([b"aaa", b"aaa", b"bbb"])
    monkeypatch.setattr(os, "urandom", lambda _size: next(numbers))
    (tmp_path / "conmon-term.616161").write_bytes(b"")
    path = served.console.listen(str(tmp_path))
    assert path == str(tmp_path / "conmon-term.626262")


def test_the_window_size_is_set_without_pixels(terminal: tuple[int, int]) -> None:
    set_window_size(terminal[0], 37, 1000)
    got = fcntl.ioctl(terminal[1], termios.TIOCGWINSZ, bytes(8))
    assert struct.unpack("HHHH", got) == (37, 1000, 0, 0)
    with open(os.devnull) as null, pytest.raises(OSError):
        set_window_size(null.fileno(), 1, 1)
