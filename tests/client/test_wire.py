"""Bytes of monitors: sync-pipe messages, exit files, wait statuses. No processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyconmon_client import Container, ExitFileError, SyncPipeError
from pyconmon_client.exit_status import from_wait_status, read_exit_file
from pyconmon_client.wire import LINE_LIMIT, Message, SyncReader, parse


@pytest.fixture
def pipe() -> Iterator[tuple[SyncReader, int]]:
    read, write = os.pipe()
    yield SyncReader(read), write
    os.close(read)
    try:
        os.close(write)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"pid": 7}', Message("pid", 7)),
        (b'{"exit_code": 137}', Message("exit_code", 137)),
        (b'{"data": -1, "message": "a\\/b \\"q\\"\\n"}', Message("data", -1, 'a/b "q"\n')),
        (b'{"data": -1, "message": ""}', Message("data", -1)),
        # Things the C program lets through: raw control characters, bytes that are not UTF-8.
        (b'{"data": -1, "message": "x\x1fy\xff"}', Message("data", -1, "x\x1fy\ufffd")),
    ],
)
def test_messages(line: bytes, message: Message) -> None:
    assert parse(line) == message


@pytest.mark.parametrize(
    "line",
    [b"", b"7", b"[]", b"{}", b'{"pid": "7"}', b'{"pid": true}', b'{"pid": 1.5}', b'{"pid": null}',
     b'{"data": 1, "message": 5}', b'{"data": 1', b'{"other": 1}', b"[" * 5000, b"\0"],
)  # fmt: skip
def test_what_is_no_message(line: bytes) -> None:
    with pytest.raises(SyncPipeError, match="monitor's message"):
        parse(line)


def test_reader_takes_any_pieces(pipe: tuple[SyncReader, int]) -> None:
    reader, write = pipe
    assert reader.read() == []
    os.write(write, b'{"data": 5}\n{"da')
    assert reader.read() == [Message("data", 5)]
    os.write(write, b'ta": 6}\n\n')
    assert reader.read() == [Message("data", 6)]
    assert not reader.eof
    os.write(write, b'{"data": 7}')
    os.close(write)
    assert reader.read() == [Message("data", 7)], "the last one needs no line end"
    assert reader.eof


def test_reader_is_bounded(pipe: tuple[SyncReader, int]) -> None:
    reader, write = pipe
    with pytest.raises(SyncPipeError, match="longer than"):
        for _ in range(LINE_LIMIT // 4096 + 1):
            os.write(write, b"x" * 4096)
            reader.read()


@pytest.mark.parametrize(("text", "code"), [("0", 0), ("137", 137), ("255", 255)])
def test_exit_files(tmp_path: Path, text: str, code: int) -> None:
    path = tmp_path / "exit"
    assert read_exit_file(str(path)) is None
    path.write_text(text)
    found = read_exit_file(str(path))
    assert found is not None
    assert (found.code, found.known) == (code, True)
    assert found.finished is not None
    assert found.finished.timestamp() == pytest.approx(path.stat().st_ctime, abs=0.001)


def test_an_unknown_code_in_an_exit_file(tmp_path: Path) -> None:
    (tmp_path / "exit").write_text("-1")
    found = read_exit_file(str(tmp_path / "exit"))
    assert found is not None
    assert (found.code, found.known) == (-1, False)


@pytest.mark.parametrize(
    "content", [b"", b"1\n", b" 1", b"+1", b"1_0", b"0x1", b"256", b"-2", b"1" * 70]
)
def test_foreign_exit_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exit"
    path.write_bytes(content)
    with pytest.raises(ExitFileError) as caught:
        read_exit_file(str(path))
    assert caught.value.path == str(path)


def test_exit_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "target").write_text("0")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("fifo", "directory", "link"):
        with pytest.raises(ExitFileError):
            read_exit_file(str(tmp_path / name))


def test_wait_statuses() -> None:
    assert [from_wait_status(status) for status in (0, 3 << 8, 255 << 8)] == [0, 3, 255]
    assert [from_wait_status(status) for status in (9, 15, 11 | 0x80)] == [137, 143, 139]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_container_names(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Container("id", name, "/bundle")
