"""The journald driver against a socket of our own: the exact bytes, and a journal that is slow or gone."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyconmon.logs import journald
from pyconmon.logs.journal_socket import field
from pyconmon.logs.journald import Fields, Journald, Lines
from tests.helpers.logs import Heard, log_options

CID = "0123456789abcdef"


class FakeJournal:
    """A bound socket that is read only when a test asks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def receive(self) -> list[bytes]:
        """All entries that have come, those in memfds too."""
        result: list[bytes] = []
        while True:
            try:
                data, control, _flags, _address = self.socket.recvmsg(1 << 20, 64)
            except BlockingIOError:
                return result
            for level, kind, value in control:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and not data
                (fd,) = array.array("i", value)
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_WRITE and seals & fcntl.F_SEAL_SHRINK
                data = os.pread(fd, os.fstat(fd).st_size, 0)
                os.close(fd)
            result.append(data)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FakeJournal]:
    fake = FakeJournal(tmp_path / "socket")
    yield fake
    fake.socket.close()


def driver(path: Path, heard: Heard, fields: Fields | None = None) -> Journald:
    return Journald(fields or Fields(CID.encode(), None, None), heard, str(path))  # type: ignore[arg-type]


def parse(entry: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of an entry, as journald reads them."""
    result = []
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, entry = rest[8 : 8 + size], rest[8 + size + 1 :]
            assert rest[8 + size : 8 + size + 1] == b"\n"
        else:
            entry = rest
        result.append((name, value))
    return result


def messages(entries: list[bytes]) -> list[tuple[bytes, bytes, bool]]:
    found = [dict(parse(entry)) for entry in entries]
    return [
        (one[b"MESSAGE"], one[b"PRIORITY"], b"CONTAINER_PARTIAL_MESSAGE" in one) for one in found
    ]


def test_the_bytes_of_an_entry() -> None:
    fields = Fields(CID.encode(), b"name", b"tag", [b"FOO=bar baz", b"EMPTY="])
    common = (
        b"CONTAINER_ID_FULL=0123456789abcdef\nPRIORITY=6\nCONTAINER_ID=0123456789ab\n"
        b"CONTAINER_TAG=tag\nCONTAINER_NAME=name\nSYSLOG_IDENTIFIER=tag\n"
    )
    labels = b"FOO=bar baz\nEMPTY=\n"
    assert fields.entry(b"a\n", b"6", False) == b"MESSAGE\n\2\0\0\0\0\0\0\0a\n\n" + common + labels
    assert fields.entry(b"tail", b"6", True) == (
        b"MESSAGE=tail\n" + common + b"CONTAINER_PARTIAL_MESSAGE=true\n" + labels
    )


@pytest.mark.parametrize(
    ("name", "tag", "identifier"),
    [(None, None, b"0123456789ab"), (b"n", None, b"n"), (b"n", b"t", b"t"), (None, b"t", b"t")],
)
def test_who_the_entry_is_from(name: bytes | None, tag: bytes | None, identifier: bytes) -> None:
    found = dict(parse(Fields(CID.encode(), name, tag).entry(b"x", b"3", False)))
    assert found[b"SYSLOG_IDENTIFIER"] == identifier
    assert found.get(b"CONTAINER_NAME") == name and found.get(b"CONTAINER_TAG") == tag
    assert found[b"PRIORITY"] == b"3"


def test_no_value_can_forge_a_field() -> None:
    evil = b"x\nPRIORITY=0\nMESSAGE=forged"
    fields = Fields(CID.encode(), evil, evil, [b"L=" + evil])
    found = parse(fields.entry(evil, b"6", False))
    assert [value for name, value in found if name == b"PRIORITY"] == [b"6"]
    assert [value for name, value in found if name == b"MESSAGE"] == [evil]
    assert field(b"A", b"b\n") == b"A\n\2\0\0\0\0\0\0\0b\n\n"


LINES: list[tuple[list[bytes], list[tuple[bytes, bytes, bool]]]] = [
    ([b"hi\n"], [(b"hi\n", b"6", False)]),
    ([b"par", b"tial\n"], [(b"partial\n", b"6", False)]),
    ([b"a\nb", b"\n\n", b"c"], [(b"a\n", b"6", False), (b"b\n", b"6", False), (b"\n", b"6", False), (b"c", b"6", True)]),
    ([b"nul\0\xff\n"], [(b"nul\0\xff\n", b"6", False)]),
    (
        [b"Z" * 20000 + b"\n"],
        [(b"Z" * 8192, b"6", True), (b"Z" * 8192, b"6", True), (b"Z" * 3616 + b"\n", b"6", False)],
    ),
    ([b"Z" * 8000, b"Z" * 191 + b"\n"], [(b"Z" * 8191 + b"\n", b"6", False)]),
    ([b"<3>boom\n<7>dbg\nplain\n"], [(b"boom\n", b"3", False), (b"dbg\n", b"7", False), (b"plain\n", b"6", False)]),
    ([b"<3>\n"], [(b"\n", b"3", False)]),
    ([b"<9>no\n<3\n<>\n<a>\n<<0>>\n< 0>\n<\n"], [(text + b"\n", b"6", False) for text in (b"<9>no", b"<3", b"<>", b"<a>", b"<<0>>", b"< 0>", b"<")]),
    ([b"<", b"4", b">split\n"], [(b"split\n", b"4", False)]),
    ([b"a", b"<3>b\n"], [(b"a<3>b\n", b"6", False)]),
    ([b"<2>" + b"y" * 9000 + b"\nnext\n"], [(b"y" * 8189, b"2", True), (b"y" * 811 + b"\n", b"2", False), (b"next\n", b"6", False)]),
    ([b"x" * 8192 + b"<3>in the middle\n"], [(b"x" * 8192, b"6", True), (b"<3>in the middle\n", b"6", False)]),
]  # fmt: skip


@pytest.mark.parametrize(("reads", "expected"), LINES)
def test_messages(reads: list[bytes], expected: list[tuple[bytes, bytes, bool]]) -> None:
    lines = Lines(b"6")
    assert [one for read in reads for one in lines.feed(read)] + lines.flush() == expected
    # The cut into reads does not matter.
    lines = Lines(b"6")
    data = b"".join(reads)
    found = [one for i in range(len(data)) for one in lines.feed(data[i : i + 1])]
    assert found + lines.flush() == expected


def test_both_streams_through_the_socket(journal: FakeJournal) -> None:
    heard = Heard()
    logs = driver(journal.path, heard)
    logs.write(1, b"par")
    logs.write(2, b"err\nmore")
    logs.write(1, b"tial\n<4>w\n")
    logs.finish(True)
    logs.close()
    assert messages(journal.receive()) == [
        (b"err\n", b"3", False),
        (b"partial\n", b"6", False),
        (b"w\n", b"4", False),
        (b"more", b"3", True),
    ]
    assert not heard.texts


def test_nothing_is_flushed_unless_asked(journal: FakeJournal) -> None:
    logs = driver(journal.path, Heard())
    logs.write(1, b"held")
    logs.finish(False)
    logs.close()
    assert journal.receive() == []


def test_options(journal: FakeJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    options = log_options(
        name="nä\udcff", log_labels=("A=1", "B="), no_container_partial_message=True
    )
    logs = Journald.from_options(options, Heard())  # type: ignore[arg-type]
    found = dict(parse(logs._fields.entry(b"x", b"6", True)))
    assert found == {
        b"MESSAGE": b"x",
        b"CONTAINER_ID_FULL": CID.encode(),
        b"PRIORITY": b"6",
        b"CONTAINER_ID": CID[:12].encode(),
        b"CONTAINER_NAME": b"n\xc3\xa4\xff",
        b"SYSLOG_IDENTIFIER": b"n\xc3\xa4\xff",
        b"A": b"1",
        b"B": b"",
    }


def test_an_entry_too_big_for_a_datagram_goes_as_a_memfd(journal: FakeJournal) -> None:
    heard = Heard()
    fields = Fields(CID.encode(), None, None, [b"BIG=" + b"v" * 5_000_000])
    logs = driver(journal.path, heard, fields)
    logs.write(1, b"one\ntwo\n")
    logs.close()
    entries = journal.receive()
    assert [one[0] for one in messages(entries)] == [b"one\n", b"two\n"] and not heard.texts
    assert dict(parse(entries[0]))[b"BIG"] == b"v" * 5_000_000


def test_no_journal_and_one_that_comes_back(tmp_path: Path) -> None:
    heard = Heard()
    path = tmp_path / "socket"
    logs = driver(path, heard)
    for _ in range(5):
        logs.write(1, b"lost\n" * 1000)
    assert len(heard.of("warn")) == 1
    fake = FakeJournal(path)
    logs.write(1, b"one\n")
    fake.close()  # a restart: the old socket is gone, a new one has its name
    fake2 = FakeJournal(path)
    logs.write(1, b"two\n")
    assert messages(fake2.receive()) == [(b"two\n", b"6", False)]
    assert len(heard.of("warn")) == 1 and len(heard.of("info")) == 1
    fake2.close()
    logs.close()


class OneLoop:
    """Just enough of pyconmon.loop.Loop."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        assert events == select.POLLOUT
        self.watched[fd] = callback

    def forget(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def turn(self) -> None:
        for fd, callback in list(self.watched.items()):
            if select.select([], [fd], [], 0)[1]:
                callback(select.POLLOUT)


def test_a_slow_journal_gets_everything_in_order(journal: FakeJournal) -> None:
    heard = Heard()
    logs = driver(journal.path, heard)
    loop = OneLoop()
    logs.use_loop(loop)  # type: ignore[arg-type]
    sent = [b"%d\n" % number for number in range(5000)]
    for text in sent:
        logs.write(1, text)
    assert loop.watched, "more than a socket holds must be waiting"
    found = []
    for _ in range(20000):
        found += messages(journal.receive())
        if not loop.watched:
            break
        loop.turn()
    found += messages(journal.receive())
    assert [one[0] for one in found] == sent
    assert not loop.watched and not heard.texts
    logs.close()


@pytest.mark.parametrize("with_loop", [False, True])
def test_a_journal_that_hangs_costs_little(
    journal: FakeJournal, monkeypatch: pytest.MonkeyPatch, with_loop: bool
) -> None:
    monkeypatch.setattr(journald, "QUEUE_MAX", 20000)
    monkeypatch.setattr(journald, "PATIENCE", 0.01)
    waits = []
    heard = Heard()
    logs = driver(journal.path, heard)
    wait = logs._socket.wait

    def counted(_self: object, seconds: float) -> bool:
        waits.append(seconds)
        return wait(seconds)

    monkeypatch.setattr("pyconmon.logs.journal_socket.JournalSocket.wait", counted)
    loop = OneLoop()
    if with_loop:
        logs.use_loop(loop)  # type: ignore[arg-type]
    for _ in range(200):
        logs.write(1, b"line\n" * 100)
    assert waits == [0.01], "it is waited for once, not with every write"
    assert len(heard.of("warn")) == 1 and not loop.watched
    journal.receive()
    logs.write(1, b"again\n")
    assert messages(journal.receive()) == [(b"again\n", b"6", False)]
    assert len(heard.of("info")) == 1
    logs.close()


def test_a_journal_that_goes_away_with_entries_waiting(journal: FakeJournal) -> None:
    heard = Heard()
    logs = driver(journal.path, heard)
    loop = OneLoop()
    logs.use_loop(loop)  # type: ignore[arg-type]
    logs.write(1, b"line\n" * 3000)
    assert loop.watched
    journal.close()
    loop.turn()
    assert not loop.watched and len(heard.of("warn")) == 1
    new = FakeJournal(journal.path)
    logs.write(1, b"again\n")
    assert messages(new.receive()) == [(b"again\n", b"6", False)]
    logs.close()
    new.close()
