"""Descriptors and status files: whole, atomic, and what the environment names."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from pathlib import Path

import pytest

from pyconmon import fds


def test_writing_everything() -> None:
    read_end, write_end = os.pipe()
    data = os.urandom(1_000_000)
    got = bytearray()

    def read() -> None:
        while block := os.read(read_end, 4096):
            got.extend(block)

    reader = threading.Thread(target=read)
    reader.start()
    fds.write_all(write_end, data)
    fds.write_all(write_end, b"")
    os.close(write_end)
    reader.join()
    os.close(read_end)
    assert got == data


def test_closing() -> None:
    read_end, write_end = os.pipe()
    assert fds.close(write_end) == -1
    assert os.read(read_end, 1) == b""
    assert fds.close(write_end) == -1
    assert fds.close(-1) == -1
    os.close(read_end)


# --- replace_file


def test_the_name_appears_when_nothing_can_go_wrong_any_more(tmp_path: Path) -> None:
    """Also the closing may fail: then the name must still be the old file's."""
    closed, moved = 0x8, 0x80  # IN_CLOSE_WRITE, IN_MOVED_TO
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(watch, os.fsencode(tmp_path), closed | moved) >= 0
    fds.replace_file(str(tmp_path / "a"), b"text")
    events = os.read(watch, 4096)
    os.close(watch)
    found = []
    while events:
        _, mask, _, size = struct.unpack_from("iIII", events)
        found.append(mask)
        events = events[16 + size :]
    assert found == [closed, moved]


def test_a_new_file(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        fds.replace_file(str(tmp_path / "a"), b"text")
        which = fds.replace_file(str(tmp_path / "b"), b"", 0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "a").read_bytes() == b"text"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    status = (tmp_path / "b").stat()
    assert which == (status.st_dev, status.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_old_file_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o400)
    with open(path, "rb") as held:
        fds.replace_file(str(path), b"new")
        assert held.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("elsewhere")
    fds.replace_file(str(tmp_path / "link"), b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["folder", "none/file", "file/below", "x" * 300, "nul\0"])
def test_a_failure_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "content").touch()
    (tmp_path / "file").touch()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises((OSError, ValueError)):
        fds.replace_file(f"{tmp_path}/{name}", b"text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_readers_see_it_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [b"a" * 100_000, b"b" * 100_000]
    seen = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                seen.add(path.read_bytes())
            except FileNotFoundError:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        fds.replace_file(str(path), texts[n % 2])
    ended.set()
    reader.join()
    assert seen <= set(texts)


def test_what_was_left_half_way_is_removed(tmp_path: Path) -> None:
    left = ["exit.0123abcd", "exit.ffffffff"]
    others = [
        "exit",
        "exit.1",
        "exit.0123abcx",
        "exit.0123ABCD",
        "exit.0123abcde",
        "other.0123abcd",
    ]
    for name in left + others:
        (tmp_path / name).touch()
    fds.remove_temporaries(str(tmp_path / "exit"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    with pytest.raises(OSError, match="No such file"):
        fds.remove_temporaries(str(tmp_path / "none" / "exit"))


# --- read_status


def test_reading_a_status(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12\n")
    (tmp_path / "long").write_bytes(b"9" * 10_000)
    os.mkfifo(tmp_path / "fifo")
    assert fds.read_status(str(tmp_path / "file")) == b"12\n"
    assert len(fds.read_status(str(tmp_path / "long"))) == fds.LONGEST_STATUS
    assert fds.read_status(str(tmp_path / "fifo")) == b""
    assert fds.read_status("/dev/zero") == bytes(4096)
    for bad in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match="directory"):
            fds.read_status(str(bad))


# --- from_environment


@pytest.mark.parametrize("value", [None, ""])
def test_no_pipe(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("_OCI_SYNCPIPE", raising=False)
    if value is not None:
        monkeypatch.setenv("_OCI_SYNCPIPE", value)
    assert fds.from_environment("_OCI_SYNCPIPE") == -1


def test_a_pipe_becomes_close_on_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    monkeypatch.setenv("_OCI_SYNCPIPE", str(write_end))
    assert fds.from_environment("_OCI_SYNCPIPE") == write_end
    assert not os.get_inheritable(write_end)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize(
    "value",
    ["abc", "-1", "+3", " 3", "3 ", "3\n", "1_0", "0x3", "3.0", "٣", "²", "99999", "9" * 25, "3,4"],
)
def test_a_bad_value_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("_OCI_SYNCPIPE", value)
    with pytest.raises(ValueError, match=r"^_OCI_SYNCPIPE "):
        fds.from_environment("_OCI_SYNCPIPE")


# --- describe


def test_describing() -> None:
    error = FileNotFoundError(2, "No such file", "a\udcff")
    assert fds.describe(error) == b"No such file: a\xff"
    assert fds.describe(OSError(9, "Bad")) == b"Bad"
    assert fds.describe(OSError("plain text")) == b"plain text"
