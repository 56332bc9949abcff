"""The lines to the caller: escaping byte by byte, and a pipe whose other end does as it likes."""

from __future__ import annotations

import json
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyconmon.sync_pipe import LONGEST_MESSAGE, SyncPipe, encode, shorten

SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 47: "\\/", 92: "\\\\"}


def text_of(line: bytes) -> str:
    assert line.startswith(b'{"data": -1, "message": "')
    assert line.endswith(b'"}\n')
    return line[25:-3].decode()


@pytest.mark.parametrize("code", range(1, 128))
def test_each_character(code: int) -> None:
    plain = chr(code)
    expected = SHORT.get(code, f"\\u{code:04x}" if code < 32 or code == 127 else plain)
    line = encode("data", -1, bytes([code]))
    assert text_of(line) == expected
    assert json.loads(line) == {"data": -1, "message": plain}


@pytest.mark.parametrize(
    ("key", "value", "message", "line"),
    [
        ("pid", 42, b"", b'{"pid": 42}\n'),
        ("exit_code", 0, b"", b'{"exit_code": 0}\n'),
        ("exit_code", -1, b"command timed out",
         b'{"exit_code": -1, "message": "command timed out"}\n'),
        ("data", -1, b'boom "x" a/b\ttab\n',
         b'{"data": -1, "message": "boom \\"x\\" a\\/b\\ttab\\n"}\n'),
        ("data", -1, b"cut\0off", b'{"data": -1, "message": "cut"}\n'),
        ("data", -1, b"\0all", b'{"data": -1}\n'),
        ("data", 3, "ü\u20ac\U0001f980".encode(),
         b'{"data": 3, "message": "\xc3\xbc\xe2\x82\xac\xf0\x9f\xa6\x80"}\n'),
        ("data", 3, b"\xff\xc3", b'{"data": 3, "message": "\xef\xbf\xbd\xef\xbf\xbd"}\n'),
    ],
)  # fmt: skip
def test_lines(key: str, value: int, message: bytes, line: bytes) -> None:
    assert encode(key, value, message) == line


@given(st.binary(max_size=300) | st.binary(min_size=8000, max_size=9000))
def test_any_bytes_give_one_line_of_json(message: bytes) -> None:
    line = encode("data", -1, message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    decoded = json.loads(line.decode("utf-8"))
    kept = shorten(message)
    assert decoded == (
        {"data": -1, "message": kept.decode("utf-8", "replace")} if kept else {"data": -1}
    )


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    message = text.partition("\0")[0]
    assert json.loads(encode("pid", 1, text.encode())).get("message", "") == message


@given(st.binary(), st.integers(min_value=20, max_value=100))
def test_shortened_to_the_limit(message: bytes, limit: int) -> None:
    short = shorten(message, limit)
    whole = message.partition(b"\0")[0]
    assert len(short) <= limit
    assert (short == whole) if len(whole) <= limit else (len(short) == limit)


def test_the_end_of_a_long_message_is_kept() -> None:
    message = b"first " + b"x" * 20_000 + b" last"
    short = shorten(message)
    assert len(short) == LONGEST_MESSAGE
    assert short.startswith(b"first xxx")
    assert short.endswith(b"xxx last")
    assert b"\n[...]\n" in short


# --- the pipe


def test_one_write_a_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pipe = SyncPipe(theirs.detach())
    pipe.send("data", 5)
    pipe.send("data", -1, b"\x01" * 10_000)
    pipe.close()
    pipe.close()
    with ours:
        assert ours.recv(1 << 20) == b'{"data": 5}\n'
        assert len(json.loads(ours.recv(1 << 20))["message"]) == LONGEST_MESSAGE
        assert ours.recv(1 << 20) == b""
    assert pipe.fd == -1


def test_nobody_listens() -> None:
    pipe = SyncPipe(-1)
    pipe.send("pid", 1)
    pipe.close()
    assert pipe.fd == -1


@pytest.mark.parametrize("kind", ["pipe", "stream", "packets"])
def test_a_caller_that_is_gone(kind: str) -> None:
    if kind == "pipe":
        read_end, write_end = os.pipe()
    else:
        type_ = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_SEQPACKET
        read_end, write_end = (end.detach() for end in socket.socketpair(socket.AF_UNIX, type_))
    os.close(read_end)
    pipe = SyncPipe(write_end)
    pipe.send("pid", 1)
    assert pipe.fd == -1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(write_end)
    pipe.send("pid", 2)


def test_a_caller_that_never_reads() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)
    pipe = SyncPipe(write_end)
    pipe.send("pid", 1)  # returns
    assert pipe.fd == -1
    os.close(read_end)
