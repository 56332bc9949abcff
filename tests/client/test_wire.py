"""Bytes of others: sync-pipe messages, exit files, wait statuses, records, what a runtime says. No processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyconmon_client import (
    Container,
    ContainerState,
    ExitFileError,
    PyconmonError,
    RecordError,
    SyncPipeError,
    store,
)
from pyconmon_client.exit_status import from_wait_status, read_exit_file
from pyconmon_client.oci_runtime import state_in
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


# --- whatever the bytes are, the outcome is an answer or the error that says so

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
fuzzed = settings(derandomize=True, max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@fuzzed
@given(
    st.binary(max_size=80)
    | st.fixed_dictionaries(
        {}, optional={key: JSON for key in ("pid", "exit_code", "data", "message")}
    ).map(lambda value: json.dumps(value).encode())
)
def test_messages_of_any_bytes(line: bytes) -> None:
    try:
        message = parse(line)
    except SyncPipeError:
        return
    assert message.key in ("pid", "exit_code", "data")
    assert type(message.value) is int and type(message.message) is str


@fuzzed
@given(st.lists(st.binary(max_size=60) | st.just(b'{"data": 7}\n'), max_size=12))
def test_the_reader_takes_any_bytes(pieces: list[bytes]) -> None:
    """In whatever pieces they come; then it is the same as if they had come at once."""

    def read(parts: list[bytes]) -> list[Message] | None:
        read_end, write_end = os.pipe()
        reader = SyncReader(read_end)
        found = []
        try:
            for part in parts:
                os.write(write_end, part)
                found += reader.read()
            os.close(write_end)
            write_end = -1
            found += reader.read()
            assert reader.eof
            return found
        except SyncPipeError:
            return None
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)

    assert read(pieces) == read([b"".join(pieces)])


@fuzzed
@given(st.binary(max_size=12) | st.integers(-300, 300).map(lambda code: b"%d" % code))
def test_exit_files_of_any_bytes(folder: Path, content: bytes) -> None:
    path = folder / "exit"
    path.write_bytes(content)
    try:
        found = read_exit_file(str(path))
    except ExitFileError as error:
        assert error.path == str(path)
        return
    assert found is not None and -1 <= found.code <= 255
    assert int(content) == found.code


RECORD = {
    "pyconmon_client": 1, "id": "x", "name": "x", "bundle_path": "/b", "log_path": "", "netns": None,
    "labels": {}, "annotations": {}, "image": None, "metadata": None, "sandbox": "",
    "terminal": False, "dialect": "modern", "boot_id": None, "monitor": [2, 3], "init": [4, 5],
    "created": "2026-01-31T12:00:00+00:00", "started": None,
}  # fmt: skip
OURS = {**RECORD, "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}


@fuzzed
@given(
    st.binary(max_size=80)
    | st.dictionaries(st.sampled_from(sorted(RECORD)), JSON, max_size=3).map(
        lambda changes: json.dumps({**OURS, **changes}).encode()
    )
)
@example(json.dumps({**OURS, "monitor": [float("inf"), 1]}).encode())
@example(json.dumps({**OURS, "init": [2**70, 1]}).encode())
@example(json.dumps({**OURS, "labels": 5}).encode())
def test_records_of_any_bytes(folder: Path, content: bytes) -> None:
    (folder / "x.json").write_bytes(content)
    try:
        container = store.load(str(folder), "x")
    except RecordError as error:
        assert error.path == str(folder / "x.json")
        return
    assert container.name == "x"
    for process in (container.monitor, container.init):
        assert process is None or not process.alive() or process.pid > 1


@fuzzed
@given(
    st.text(max_size=60)
    | st.fixed_dictionaries(
        {},
        optional={
            key: JSON
            for key in ("ociVersion", "id", "status", "pid", "bundle", "annotations", "created")
        },
    ).map(json.dumps)
)
def test_states_of_any_text(text: str) -> None:
    state = ContainerState()
    try:
        state.merge(state_in(text, "x", "/runtime"))
    except PyconmonError as error:
        assert "could not read the state of container x from /runtime" in str(error)
        return
    assert type(state.pid) is int and type(state.status) is str
