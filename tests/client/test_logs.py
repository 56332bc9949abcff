"""The log reader: the format, the files over rotations, following, and both monitors' real logs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon_client.attach import attach
from pyconmon_client.errors import InvalidArgumentError, LogFormatError, PyconmonError
from pyconmon_client.logs import LogReader, logs
from pyconmon_client.records import Joiner, Line, parse_since, parse_timestamp
from tests.helpers.descriptors import descriptors
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON
from tests.helpers.waiting import wait_until

Drives = Callable[..., Drive]

STAMP = "2026-01-31T12:00:{:02d}.123456789+01:00"


def record(data: bytes, stream: str = "stdout", tag: str = "F", second: int = 0) -> bytes:
    return f"{STAMP.format(second)} {stream} {tag} ".encode() + data + b"\n"


def numbered(first: int, last: int) -> bytes:
    return b"".join(record(b"line %d" % number) for number in range(first, last))


def texts(lines: Iterator[Line]) -> list[bytes]:
    return [line.data for line in lines]


def stream(lines: Iterator[Line], name: str = "stdout") -> bytes:
    return b"".join(line.data for line in lines if line.stream == name)


# --- the format


def test_partial_records_are_joined_per_stream(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(
        record(b"a", tag="P", second=1)
        + record(b"E\r", "stderr", second=2)
        + record(b"b\x00\xff", tag="P", second=3)
        + record(b"", second=4)
        + record(b"tail", "stderr", tag="P", second=5)
    )
    lines = list(logs(path))
    assert [(line.stream, line.data, line.complete) for line in lines] == [
        ("stderr", b"E\r\n", True),
        ("stdout", b"ab\x00\xff\n", True),
        ("stderr", b"tail", False),
    ]
    assert lines[1].timestamp == STAMP.format(1)
    assert lines[1].time == datetime(2026, 1, 31, 11, 0, 1, 123456, UTC)
    assert lines[1].time_ns % 10**9 == 123456789


def test_data_is_split_at_no_blank_and_time_stamps_are_put_before_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(b"  a b  ") + record(b"x" * 10, tag="P") + record(b"end"))
    assert texts(logs(path)) == [b"  a b  \n", b"xxxxxxxxxxend\n"]
    stamp = STAMP.format(0).encode()
    pieces = texts(logs(path, timestamps=True, max_line=10))
    assert pieces == [stamp + b"   a b  \n", stamp + b" xxxxxxxxxx", b"end\n"]


def test_one_stream_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(b"out") + record(b"err", "stderr"))
    assert texts(logs(path, stderr=False)) == [b"out\n"]
    assert texts(logs(path, stdout=False)) == [b"err\n"]
    assert texts(logs(path, stdout=False, tail=5)) == [b"err\n"]


@pytest.mark.parametrize(
    "bad",
    [
        b"hello\n",
        b"\n",
        b'{"log":"docker"}\n',
        record(b"x").replace(b"stdout", b"stdin"),
        record(b"x").replace(b" F ", b" X "),
        record(b"x").replace(b"2026-", b"26-"),
    ],
)
def test_what_is_no_record(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(b"good") + bad + record(b"better"))
    lines = logs(path)
    assert next(lines).data == b"good\n"
    with pytest.raises(LogFormatError, match="not a log record") as caught:
        next(lines)
    assert str(path) in str(caught.value)
    assert texts(logs(path, skip_bad=True)) == [b"good\n", b"better\n"]


def test_what_a_torn_write_left_is_no_line_but_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(b"whole") + record(b"half of it")[:-5])
    assert texts(logs(path)) == [b"whole\n", b"half o"]
    path.write_bytes(record(b"whole") + record(b"half")[:20])
    assert texts(logs(path)) == [b"whole\n"]


def test_the_closing_record_of_conmon_2_2_0(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(b"text", tag="P") + f"{STAMP.format(0)} stdout F\n".encode())
    assert texts(logs(path)) == [b"text\n"]


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PyconmonError, match="no such file"):
        next(logs(tmp_path / "none"))
    with pytest.raises(InvalidArgumentError, match="tail: -1"):
        logs(tmp_path / "none", tail=-1)


# --- time


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("1969-12-31T23:59:59.5+00:00", -500_000_000),
        ("2026-01-31T12:00:00.123456789-05:30", 1769880600123456789),
    ],
)
def test_time_stamps(text: str, nanoseconds: int) -> None:
    assert parse_timestamp(text) == nanoseconds


@pytest.mark.parametrize(
    ("since", "nanoseconds"),
    [
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (datetime(2026, 1, 31, 12, 0, 0, 5, UTC), 1769860800000005000),
        (timedelta(seconds=10), 990 * 10**9),
        ("10s", 990 * 10**9),
        ("10m", 400 * 10**9),
        ("1970-01-01T00:00:07Z", 7 * 10**9),
        (5, 5 * 10**9),
        (0.5, 500_000_000),
        (None, None),
    ],
)
def test_since(since: Any, nanoseconds: int | None) -> None:
    assert parse_since(since, 1000.0) == nanoseconds


@pytest.mark.parametrize(
    "since",
    [datetime(2026, 1, 1), "yesterday", "2026-01-31T12:00:00", "2026-13-31T12:00:00Z", "", True],
)
def test_a_since_that_could_mean_anything(since: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        logs(tmp_path, since=since)


def test_lines_since(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(record(b"%d" % second, second=second) for second in range(60)))
    # 12:00 in the log's zone is 11:00 UTC.
    found = texts(logs(path, since="2026-01-31T11:00:57.123456789Z"))
    assert found == [b"57\n", b"58\n", b"59\n"]
    assert texts(logs(path, since="2026-01-31T11:00:57.123456790Z", tail=1)) == [b"59\n"]


# --- tail and rotated files


def series(path: Path) -> None:
    (path.parent / "log.2").write_bytes(numbered(0, 400) + record(b"cut ", tag="P"))
    (path.parent / "log.1").write_bytes(record(b"in two") + numbered(400, 800))
    path.write_bytes(numbered(800, 1000))
    for other in ("log.1x", "log.0", "log.tmp", "log.01"):
        (path.parent / other).write_bytes(b"not of it\n")


def test_rotated_files_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    series(path)
    lines = [b"line %d\n" % number for number in range(1000)]
    expected = lines[:400] + [b"cut in two\n"] + lines[400:]
    assert texts(logs(path)) == expected
    for tail in (0, 1, 199, 200, 201, 600, 601, 602, 1001, 5000):
        assert texts(logs(path, tail=tail)) == (expected[-tail:] if tail else []), tail


def test_the_tail_of_a_big_log_is_found_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole; read from its start it would be no log, and take all day
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + numbered(0, 60_000))
    assert texts(logs(path, tail=2)) == [b"line 59998\n", b"line 59999\n"]


def test_the_tail_keeps_the_start_of_a_line_between_others(tmp_path: Path) -> None:
    path = tmp_path / "log"
    middle = b"".join(record(b"e%d" % number, "stderr") for number in range(50))
    path.write_bytes(numbered(0, 9) + record(b"start ", tag="P") + middle + record(b"end"))
    assert texts(logs(path, tail=1)) == [b"start end\n"]
    assert texts(logs(path, tail=1, stdout=False)) == [b"e49\n"]


# --- following


class Follower:
    """Reads in a thread, so that a test can see what has come so far."""

    def __init__(self, path: Path, **arguments: Any) -> None:
        self.reader = LogReader(path, follow=True, **arguments)
        self.lines: list[Line] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for line in self.reader:
                self.lines.append(line)
        except BaseException as error:
            self.error = error

    def until(self, data: bytes) -> None:
        wait_until(lambda: any(line.data == data for line in list(self.lines)), what=repr(data))

    def end(self) -> list[bytes]:
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return [line.data for line in self.lines]


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_following_a_log_from_before_its_birth_to_the_exit_file(tmp_path: Path) -> None:
    path, exit_file = tmp_path / "log", tmp_path / "exits/c"
    exit_file.parent.mkdir()
    follower = Follower(path, exit_file=exit_file)
    append(path, numbered(0, 2))
    follower.until(b"line 1\n")
    append(path, record(b"half", tag="P") + record(b"torn")[:10])
    append(path, record(b"torn")[10:])
    follower.until(b"halftorn\n")
    append(path, record(b"last", tag="P"))
    exit_file.write_text("0")
    assert follower.end() == [b"line 0\n", b"line 1\n", b"halftorn\n", b"last"]


def rotate(path: Path, keep: int) -> None:
    for number in range(keep, 1, -1):
        older = path.with_name(f"log.{number - 1}")
        if older.exists():
            older.rename(path.with_name(f"log.{number}"))
    (path.with_name("log.new")).touch()
    path.rename(path.with_name("log.1"))
    path.with_name("log.new").rename(path)


def test_following_over_many_rotations_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path, exit_file = tmp_path / "log", tmp_path / "exit"
    path.write_bytes(numbered(0, 5))
    follower = Follower(path, exit_file=exit_file)
    # No more rotations than are kept between two points where the reader has caught up.
    for start in range(5, 300, 60):
        for number in range(start, start + 60, 20):
            append(path, numbered(number, number + 10))
            rotate(path, keep=4)
            append(path, numbered(number + 10, number + 20))
        follower.until(b"line %d\n" % (start + 59))
    exit_file.write_text("0")
    assert follower.end() == [b"line %d\n" % number for number in range(305)]


def test_following_a_log_that_begins_anew(tmp_path: Path) -> None:
    path, exit_file = tmp_path / "log", tmp_path / "exit"
    path.write_bytes(numbered(0, 3))
    follower = Follower(path, exit_file=exit_file)
    follower.until(b"line 2\n")
    for number in range(3, 9):
        path.with_name("log.tmp").write_bytes(numbered(number, number + 1))
        path.with_name("log.tmp").rename(path)
        follower.until(b"line %d\n" % number)
    exit_file.write_text("0")
    assert follower.end() == [b"line %d\n" % number for number in range(9)]


def test_following_from_the_tail(tmp_path: Path) -> None:
    path, exit_file = tmp_path / "log", tmp_path / "exit"
    path.write_bytes(numbered(0, 100))
    follower = Follower(path, exit_file=exit_file, tail=2)
    follower.until(b"line 99\n")
    append(path, numbered(100, 103))
    exit_file.write_text("0")
    assert follower.end() == [b"line %d\n" % number for number in range(98, 103)]


def test_close_from_another_thread_ends_it_and_frees_everything(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(numbered(0, 1))
    before = descriptors()
    follower = Follower(path)
    follower.until(b"line 0\n")
    follower.reader.close()
    assert follower.end() == [b"line 0\n"]
    follower.reader.close()
    assert list(follower.reader) == []
    with logs(path, follow=True) as reader:
        next(reader)
    assert descriptors() <= before


def test_following_ends_with_the_monitor(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(numbered(0, 2))
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    pidfd = os.pidfd_open(pid)
    try:
        follower = Follower(path, pidfd=pidfd)
        follower.until(b"line 1\n")
        append(path, numbered(2, 3))
        os.kill(pid, 9)
        assert follower.end() == [b"line 0\n", b"line 1\n", b"line 2\n"]
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)


def test_following_ends_with_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "d/log"
    path.parent.mkdir()
    path.write_bytes(numbered(0, 1))
    follower = Follower(path)
    follower.until(b"line 0\n")
    path.unlink()
    path.parent.rmdir()
    assert follower.end() == [b"line 0\n"]


# --- real logs


def test_real_logs_byte_for_byte(drives: Drives) -> None:
    script = r"printf 'out\r\n\0\377'; seq 3000 >&2; head -c 200000 /dev/zero; echo; printf end"
    container = drives("sh", "-c", script).run()
    assert container.wait_exit() == 0
    found = list(logs(container.log))
    assert stream(iter(found)) == b"out\r\n\0\377" + bytes(200000) + b"\nend"
    assert stream(iter(found), "stderr") == b"".join(b"%d\n" % n for n in range(1, 3001))
    assert texts(logs(container.log, stderr=False, tail=1)) == [b"end"]
    started = found[0].time
    assert abs((datetime.now(UTC) - started).total_seconds()) < 600


def test_following_a_real_container_to_its_end(drives: Drives) -> None:
    container = drives("sh", "-c", "echo begin; read x; seq 2000; printf tail", stdin=True).run()
    follower = Follower(container.log, exit_file=container.exit_file)
    follower.until(b"begin\n")
    client = container.attach()
    client.send(b"go\n")
    expected = [b"begin\n"] + [b"%d\n" % n for n in range(1, 2001)] + [b"tail"]
    assert follower.end() == expected
    assert container.wait_exit() == 0


def test_a_real_log_that_is_truncated_shows_its_last_lines(drives: Drives) -> None:
    container = drives("cat", stdin=True, options=["--log-size-max", "5000"]).run()
    follower = Follower(container.log, exit_file=container.exit_file)
    with attach(container.directory) as attachment:
        for number in range(1000):  # far more than fit
            attachment.send(b"%d\n" % number)
            follower.until(b"%d\n" % number)
            lines = texts(logs(container.log))
            if lines[0] != b"0\n" and len(lines) > 10:
                break
    assert follower.end() == [b"%d\n" % each for each in range(number + 1)]
    assert texts(logs(container.log)) == lines
    assert lines == [b"%d\n" % each for each in range(number + 1 - len(lines), number + 1)]
    assert 10 < len(lines) < number


@pytest.mark.parametrize("monitor_path", [PYCONMON], ids=["pyconmon"])
def test_following_a_monitor_that_rotates(drives: Drives) -> None:
    options = ["--log-rotate", "--log-size-max", "4000", "--log-max-files", "3"]
    container = drives("cat", stdin=True, options=options).run()
    follower = Follower(container.log, exit_file=container.exit_file)
    lines = [b"%d\n" % number for number in range(1000)]
    with attach(container.directory) as attachment:
        for start in range(0, 1000, 100):  # more than one file each, and less than are kept
            attachment.send(b"".join(lines[start : start + 100]))
            follower.until(lines[start + 99])
    assert follower.end() == lines
    assert container.log.with_name(container.log.name + ".3").exists()
    kept = texts(logs(container.log))
    assert kept == lines[-len(kept) :]


# --- fuzzing


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    writes=st.lists(
        st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=40)),
        max_size=30,
    )
)
def test_whatever_is_written_is_read(writes: list[tuple[str, bytes]]) -> None:
    written = {"stdout": b"", "stderr": b""}
    read = {"stdout": b"", "stderr": b""}
    joiner = Joiner(max_line=64)
    for name, data in writes:
        written[name] += data
        for piece in data.splitlines(keepends=True) if b"\r" not in data else [data]:
            for part in piece.split(b"\n")[:-1]:
                line = joiner.add(record(part, name)[:-1])
                assert line is not None
                read[name] += line.data
            rest = piece.rpartition(b"\n")[2]
            if rest:
                line = joiner.add(record(rest, name, tag="P")[:-1])
                read[name] += line.data if line else b""
    for line in joiner.rest():
        read[line.stream] += line.data
    assert read == written


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    junk=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.just(record(b"text")),
            st.just(record(b"p", "stderr", tag="P")),
        ),
        max_size=8,
    ).map(b"".join)
)
def test_no_file_makes_the_reader_fail_otherwise_than_it_says(
    junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz-{threading.get_ident()}"
    path.write_bytes(junk)
    skipped = list(logs(path, skip_bad=True))
    try:
        assert list(logs(path)) == skipped
    except LogFormatError:
        pass
    assert list(logs(path, skip_bad=True, tail=2)) == skipped[-2:]
