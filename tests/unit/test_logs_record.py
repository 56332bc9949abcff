"""The bytes of k8s-file records."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon.logs import limits, parse_log_path, record
from tests.helpers.logs import in_child, logged, pieces, records

HEAD = b"2026-11-24T23:04:51.896392598+00:00 stdout "


@pytest.fixture
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    old = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield
    if old is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = old
    time.tzset()


def text_of(block: bytes, head: bytes = HEAD + b"F ", start: int = 0) -> bytes:
    buffers: list[bytes | memoryview] = []
    size = 0
    for left, right, partial in record.runs(block, start, len(block)):
        size += record.add_run(buffers, head, block, left, right, partial)
    text = b"".join(buffers)
    assert len(text) == size == record.text_size(block, start, len(block))
    return text


TABLE = [
    (b"hi\n", [b"F hi\n"]),
    (b"\n", [b"F \n"]),
    (b"tail", [b"P tail\n"]),
    (b"a\nb\n", [b"F a\n", b"F b\n"]),
    (b"a\n\nb", [b"F a\n", b"F \n", b"P b\n"]),
    (b"cr\r\nnul\0\xff\n", [b"F cr\r\n", b"F nul\0\xff\n"]),
    (b"x" * 8191 + b"\n", [b"F " + b"x" * 8191 + b"\n"]),
    (b"x" * 8192, [b"P " + b"x" * 8192 + b"\n"]),
    (b"x" * 8192 + b"\n", [b"P " + b"x" * 8192 + b"\n", b"F \n"]),
    (
        b"a\n" + b"x" * 16400 + b"\nb",
        [b"F a\n"] + [b"P " + b"x" * 8192 + b"\n"] * 2 + [b"F " + b"x" * 16 + b"\n"] + [b"P b\n"],
    ),
]


@pytest.mark.parametrize(("data", "expected"), TABLE)
def test_records(data: bytes, expected: list[bytes]) -> None:
    assert text_of(data) == b"".join(HEAD + text for text in expected)


def some_bytes(rng: random.Random) -> bytes:
    lengths = rng.choice(
        [(0, 3), (0, 200), (8000, 8400), (0, 30000), (8191, 8193), (40000, 70000), (0, 300000)]
    )
    data = bytearray()
    for _ in range(rng.randrange(1, 12)):
        data += bytes([rng.randrange(65, 90)]) * rng.randint(*lengths) + b"\n"
    return bytes(data[: -1 if rng.random() < 0.5 else None])


def test_random_blocks_match_the_plain_model() -> None:
    rng = random.Random(7)
    for _ in range(300):
        data = some_bytes(rng)
        text = text_of(data)
        assert text == b"".join(records(data, HEAD))
        assert logged(text) == data


def test_cutting_again_from_any_boundary_gives_the_same_records() -> None:
    rng = random.Random(8)
    for _ in range(40):
        data = some_bytes(rng)
        whole = text_of(data)
        start = 0
        for _tag, piece in pieces(data):
            assert whole.endswith(text_of(data, start=start))
            assert record.first_record(data, start, len(data)) == start + len(piece)
            start += len(piece)


ZONES = [
    ("UTC", 1795561491, "2026-11-24T23:04:51", "+00:00"),
    ("Asia/Kolkata", 1795561491, "2026-11-25T04:34:51", "+05:30"),
    ("America/St_Johns", 1795561491, "2026-11-24T19:34:51", "-03:30"),
    ("XXX0:30:15", 0, "1969-12-31T23:29:45", "-00:30"),  # seconds of an offset are dropped
    ("Europe/Berlin", 1774745999, "2026-03-29T01:59:59", "+01:00"),
    ("Europe/Berlin", 1774746000, "2026-03-29T03:00:00", "+02:00"),
    ("UTC", -1, "1969-12-31T23:59:59", "+00:00"),
]


@pytest.mark.parametrize(("zone", "second", "clock", "offset"), ZONES, indirect=["zone"])
def test_head(zone: None, second: int, clock: str, offset: str) -> None:
    stamp = record.Stamp()
    for fraction in (0, 7, 999999999):
        for stream, name in ((1, "stdout"), (2, "stderr")):
            head = stamp.head(stream, second * 10**9 + fraction)
            assert head.decode() == f"{clock}.{fraction:09}{offset} {name} F "
            assert len(head) == record.HEAD


@pytest.mark.parametrize("zone", ["Europe/Berlin"], indirect=True)
def test_a_clock_that_jumps(zone: None) -> None:
    stamp = record.Stamp()
    seen = [stamp.head(1, second * 10**9) for second in (1774746000, 1774745999, 1774746000)]
    assert seen[0] == seen[2] == b"2026-03-29T03:00:00.000000000+02:00 stdout F "
    assert seen[1] == b"2026-03-29T01:59:59.000000000+01:00 stdout F "


def test_fit_matches_the_plain_model() -> None:
    rng = random.Random(9)
    for _ in range(200):
        data = some_bytes(rng)
        sizes = [len(text) for text in records(data, HEAD)]
        total = sum(sizes)
        for _ in range(8):
            room = rng.choice([0, -5, 46, total, total - 1, rng.randrange(total + 100)])
            end = used = 0
            for size, (_tag, piece) in zip(sizes, pieces(data), strict=True):
                if used + size > room:
                    break
                used += size
                end += len(piece)
            assert limits.fit(data, 0, len(data), room) == end


def test_fit_does_not_look_at_all_records() -> None:
    """A limit of a few bytes must not cost a pass over a mebibyte for each of its lines."""

    def child() -> None:
        data = b"x\n" * 524288
        limits.portions(data, 0, len(data), 0, 100, 1)

    begin = os.times()
    assert in_child(child) == 0
    end = os.times()
    used = end.children_user - begin.children_user
    assert used < 30, "a pass over the rest for each record would take minutes"


PATHS = [
    ("/x", ("k8s-file", "/x")),
    ("relative", ("k8s-file", "relative")),
    (":/x", ("k8s-file", "/x")),
    ("::/x", ("k8s-file", "/x")),
    (":none", ("k8s-file", "none")),
    (":journald", ("k8s-file", "journald")),
    ("k8s-file:/x", ("k8s-file", "/x")),
    ("k8s-file:/x/a:b", ("k8s-file", "/x/a")),
    ("k8s-file::/x", ("k8s-file", "/x")),
    ("NONE", ("k8s-file", "NONE")),
    ("none", None),
    ("off:", None),
    ("null:/x", None),
    ("journald", ("journald", None)),
    ("journald:", ("journald", None)),
    ("journald:x", ("journald", None)),
    ("passthrough", ("passthrough", None)),
    ("passthrough:x", ("passthrough", None)),
]


@pytest.mark.parametrize(("spec", "expected"), PATHS)
def test_log_path(spec: str, expected: object) -> None:
    assert parse_log_path(spec) == expected


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "log-path must not be empty"),
        (":", "log-path must not be empty"),
        ("::", "log-path must not be empty"),
        ("k8s-file", "k8s-file requires a filename"),
        ("k8s-file:", "k8s-file requires a filename"),
        ("/a:b", "No such log driver /a"),
        ("fluentd:x", "No such log driver fluentd"),
        ("Journald:", "No such log driver Journald"),
    ],
)
def test_log_path_errors(spec: str, text: str) -> None:
    with pytest.raises(ValueError, match="^" + text + "$"):
        parse_log_path(spec)


PARTS = st.sampled_from(["k8s-file", "journald", "none", "off", "null", "passthrough", ":", "/x"])


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.text(max_size=20) | st.lists(PARTS | st.text(max_size=3), max_size=6).map("".join))
def test_log_path_of_any_text(spec: str) -> None:
    """It names one of the drivers, a file only where there is one, or it is an error of one line."""
    try:
        found = parse_log_path(spec)
    except ValueError as error:
        assert str(error).startswith(("log-path must", "k8s-file requires", "No such log driver "))
        return
    if found is None:
        assert spec.partition(":")[0] in ("none", "off", "null")
        return
    driver, path = found
    assert driver in ("k8s-file", "journald", "passthrough")
    if driver == "k8s-file":
        assert path and path in spec
    else:
        assert path is None
