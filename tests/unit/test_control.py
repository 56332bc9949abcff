"""The fifos ctl and winsz: the line syntax as a table, and both fifos on a real loop."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon.control import Control, Messages, scan_numbers
from pyconmon.loop import Loop
from tests.helpers.serving import Messages as Said
from tests.helpers.serving import open_descriptors, serve_until, wake_ups


@pytest.mark.parametrize(
    ("line", "numbers", "clean"),
    [
        (b"1 30 40", [1, 30, 40], True),
        (b"  1\t030  0040 ", [1, 30, 40], True),
        (b"1 30 40 50 words", [1, 30, 40], True),
        (b"1 30 40x", [1, 30, 40], True),
        (b"+1 -30 40", [1, -30, 40], True),
        (b"1 10.5 20", [1, 10], False),
        (b"1 0x10 20", [1, 0], False),
        (b"1 2", [1, 2], True),
        (b"", [], True),
        (b"   ", [], True),
        (b"- 1 2", [], False),
        (b"one 2 3", [], False),
        (b"1 \0 3", [1], False),
        (b"9" * 150 + b" 1 1", [int("9" * 20), 1, 1], True),
    ],
)
def test_numbers_are_read_as_scanf_does(line: bytes, numbers: list[int], clean: bool) -> None:
    assert scan_numbers(line, 3) == (numbers, clean)


@pytest.mark.parametrize(
    ("reads", "messages"),
    [
        ([b"1 30 40\n"], [(1, 30, 40)]),
        ([b"1 30 40\n2 0 0\n1 31 41\n"], [(1, 30, 40), (2, 0, 0), (1, 31, 41)]),
        ([b"1 30", b" 4", b"0\n"], [(1, 30, 40)]),
        ([b"1 30 40"], []),
        ([b"1\n30\n40\n"], [(1, 30, 40)]),
        ([b"1\n", b"30\n", b"40\n"], [(1, 30, 40)]),
        ([b"rubbish\n1 30 40\n"], [(1, 30, 40)]),
        ([b"1\nrubbish\n1 30 40\n"], [(1, 30, 40)]),
        ([b"1\n2 0 0\n"], [(2, 0, 0)]),  # a short line does not eat the good one after it
        ([b"1 \n\n\n30 40\n"], [(1, 30, 40)]),
        ([b"1 30 40 " + b"x" * 190 + b"\n"], [(1, 30, 40)]),
        ([b"1 30 40 " + b"x" * 191 + b"\n1 31 41\n"], [(1, 31, 41)]),  # too long for a message
        ([b"x" * 199, b"1 30 40\n"], [(1, 30, 40)]),
        ([b"x" * 5000, b"1 30 40\n"], [(1, 30, 40)]),
        ([b"x" * 198, b"1 30 40\n"], []),  # still one line
    ],
)
def test_messages_are_cut_from_reads(reads: list[bytes], messages: list[tuple[int, ...]]) -> None:
    cutter = Messages(3)
    assert [message for data in reads for message in cutter.feed(data)] == messages


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_rubbish_never_hides_the_message_after_it(reads: list[bytes]) -> None:
    cutter = Messages(3)
    for data in reads:
        for message in cutter.feed(data):
            assert len(message) == 3
    assert cutter.feed(b"\n1 30 40\n")[-1] == (1, 30, 40)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 1000), st.integers(0, 1000))),
    st.integers(1, 64),
)
def test_how_the_bytes_arrive_makes_no_difference(
    messages: list[tuple[int, int, int]], size: int
) -> None:
    data = b"".join(b"%d %d %d\n" % message for message in messages)
    cutter = Messages(3)
    found = []
    for at in range(0, len(data), size):
        found += cutter.feed(data[at : at + size])
    assert found == messages


class Served:
    """A Control on its loop, and what it asked for."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.loop = Loop()
        self.diag = Said()
        self.calls: list[object] = []
        self.control = Control(
            self.loop,
            self.diag,
            str(bundle),
            lambda rows, columns: self.calls.append((rows, columns)),
            lambda: self.calls.append("reopen"),
        )

    def send(self, name: str, data: bytes) -> None:
        fd = os.open(self.bundle / name, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, data)
        os.close(fd)

    def expect(self, *calls: object) -> None:
        serve_until(self.loop, lambda: len(self.calls) >= len(calls))
        assert self.calls == list(calls)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    before = open_descriptors()
    served = Served(tmp_path)
    served.control.open()
    yield served
    served.control.close()
    assert open_descriptors() == before


def test_both_fifos_are_read(served: Served) -> None:
    served.send("ctl", b"1 30 40\n")
    served.expect((30, 40))
    served.send("ctl", b"2 0 0\n")
    served.expect((30, 40), "reopen")
    served.send("winsz", b"31 41\n")
    served.expect((30, 40), "reopen", (31, 41))


@pytest.mark.parametrize(
    "line",
    [
        b"1 1001 40\n",
        b"1 30 -1\n",
        b"1 30 99999999999999999999\n",
        b"3 30 40\n",
        b"1 30\n",
        b"\xff\n",
    ],
)
def test_a_bad_message_is_left_out(served: Served, line: bytes) -> None:
    served.send("ctl", line)
    served.send("winsz", b"5000 1\n")
    served.send("ctl", b"\n1 0 1000\n")
    served.expect((0, 1000))


def test_mode_and_kind_do_not_depend_on_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "ctl").symlink_to(target)
    (tmp_path / "winsz").write_bytes(b"old")
    old_umask = os.umask(0)
    try:
        served = Served(tmp_path)
        served.control.open()
    finally:
        os.umask(old_umask)
    for name in ("ctl", "winsz"):
        status = os.lstat(tmp_path / name)
        assert stat.S_ISFIFO(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o660
    assert target.read_bytes() == b"precious"
    served.control.close()
    assert sorted(os.listdir(tmp_path)) == ["target"]


def test_what_cannot_be_replaced_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ctl").mkdir()
    with pytest.raises(OSError):
        Served(tmp_path).control.open()


def test_a_writer_that_leaves_causes_no_wake_ups(served: Served) -> None:
    served.send("ctl", b"1 30 40\n")
    served.send("winsz", b"1 2")
    served.expect((30, 40))
    assert wake_ups(served.loop) == 0


def test_after_the_end_a_writer_gets_an_error(served: Served) -> None:
    served.control.close()
    with pytest.raises(FileNotFoundError):
        served.send("ctl", b"1 30 40\n")
    served.control.close()


def test_the_fifos_of_the_next_monitor_stay(served: Served) -> None:
    heir = Served(served.bundle)
    heir.control.open()
    served.control.close()
    heir.send("ctl", b"1 5 6\n")
    heir.expect((5, 6))
    heir.control.close(unlink=False)
    assert {"ctl", "winsz"} <= set(os.listdir(served.bundle))
    with pytest.raises(OSError):  # ENXIO: nobody reads it any more
        heir.send("ctl", b"1 5 6\n")
