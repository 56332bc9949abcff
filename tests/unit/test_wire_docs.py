"""docs/wire.md is true: its golden bytes are what pyconmon writes, and what the client reads."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyconmon import backlog, usage
from pyconmon.control import Messages
from pyconmon.diag import Diag
from pyconmon.exit_report import write_exit_file
from pyconmon.logs import record
from pyconmon.logs.journald import PRIORITIES, Fields, Lines
from pyconmon.sync_pipe import LONGEST_MESSAGE, encode
from pyconmon_client import exit_status, records, wire

PAGE = Path(__file__).resolve().parents[2] / "docs/wire.md"
GOLDEN: dict[str, Any] = {}
for _name, _text in re.findall(
    r"<!-- golden: (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL
):
    GOLDEN[_name] = eval(_text.strip(), {"__builtins__": {}})  # our own page: bytes and numbers


@pytest.fixture
def time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that sets the time zone of this process for the test."""

    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


def test_every_block_is_used() -> None:
    assert set(GOLDEN) == {
        "version", "sync", "attach-pipe", "attach", "ctl", "exit-file", "k8s-file", "journald",
    }  # fmt: skip


def test_version() -> None:
    assert usage.version().encode().startswith(GOLDEN["version"])


@pytest.mark.parametrize(("message", "line"), GOLDEN["sync"])
def test_sync(message: tuple[str, int, bytes], line: bytes) -> None:
    assert encode(*message) == line
    key, value, text = message
    read = wire.parse(line[:-1])
    assert (read.key, read.value) == (key, value)
    assert read.message == text.partition(b"\0")[0].decode("utf-8", "replace")


def test_long_message_keeps_both_ends() -> None:
    line = encode("pid", -1, b"a" * 5000 + b"b" * 5000)
    text = wire.parse(line[:-1]).message
    assert len(text) == LONGEST_MESSAGE == 8191
    assert re.fullmatch(r"a+\n\[\.\.\.\]\nb+", text)


def test_attach_pipe() -> None:
    assert encode("data", 0) == GOLDEN["attach-pipe"]
    assert wire.parse(GOLDEN["attach-pipe"][:-1]).value == 0


@pytest.mark.parametrize(("content", "packet"), GOLDEN["attach"])
def test_attach(content: tuple[int, bytes], packet: bytes) -> None:
    stream, data = content
    kept = backlog.Backlog()
    kept.extend(bytes([stream]), backlog.cut(memoryview(data)), 0)
    assert [kept.packet(number) for number in range(kept.end)] == [packet]


def test_attach_pieces() -> None:
    assert [len(piece) for piece in backlog.cut(memoryview(bytes(8192)))] == [8192]
    data = bytes(range(250)) * 80
    pieces = backlog.cut(memoryview(data))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 8192
    assert backlog.cut(memoryview(b"")) == []


@pytest.mark.parametrize(("data", "messages"), GOLDEN["ctl"])
def test_ctl(data: bytes, messages: list[tuple[int, ...]]) -> None:
    assert Messages(3).feed(data) == messages
    by_byte = Messages(3)
    assert [m for byte in data for m in by_byte.feed(bytes([byte]))] == messages


@pytest.mark.parametrize(("code", "content"), GOLDEN["exit-file"])
def test_exit_file(code: int, content: bytes, tmp_path: Path) -> None:
    write_exit_file(str(tmp_path), "ID", code, Diag("error", "conmon"))
    assert (tmp_path / "ID").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["ID"]
    read = exit_status.read_exit_file(str(tmp_path / "ID"))
    assert read is not None
    assert read.code == code


@pytest.mark.parametrize(("read", "text"), GOLDEN["k8s-file"])
def test_k8s_file(read: tuple[int, str, int, bytes], text: bytes, time_zone: Any) -> None:
    nanoseconds, zone, stream, data = read
    time_zone(zone)
    head = record.Stamp().head(stream, nanoseconds)
    buffers: list[bytes | memoryview] = []
    for start, stop, whole in record.runs(data, 0, len(data)):
        record.add_run(buffers, head, data, start, stop, whole)
    assert b"".join(buffers) == text
    assert record.text_size(data, 0, len(data)) == len(text)

    joiner = records.Joiner()
    lines = [line for line in map(joiner.add, text[:-1].split(b"\n")) if line is not None]
    lines += joiner.rest()
    assert b"".join(line.data for line in lines) == data
    assert {line.time_ns for line in lines} == {nanoseconds}
    assert {line.stream for line in lines} == {"stdout" if stream == 1 else "stderr"}


@pytest.mark.parametrize(("container", "stream", "output", "entries"), GOLDEN["journald"])
def test_journald(
    container: tuple[str, str | None, str | None, list[str]],
    stream: int,
    output: bytes,
    entries: list[bytes],
) -> None:
    cid, name, tag, labels = container
    fields = Fields(
        cid.encode(),
        name.encode() if name else None,
        tag.encode() if tag else None,
        [label.encode() for label in labels],
    )
    lines = Lines(PRIORITIES[stream])
    assert [fields.entry(*message) for message in lines.feed(output) + lines.flush()] == entries
