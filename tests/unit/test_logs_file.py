"""The k8s-file driver on real files: opening, limits, rotation, trouble."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyconmon.logs import Logs, k8s_file, open_logs
from tests.helpers.logs import Heard, in_child, log_options, logged, pieces, records
from tests.helpers.need import need, need_program, need_root

NOW = 1795561491896392598


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ctr.log"


def opened(path: Path, heard: Heard | None = None, **changes: Any) -> Logs:
    options = log_options(path, **changes)
    logs = open_logs(options, heard or Heard())  # type: ignore[arg-type]
    logs.load()
    logs.timestamp = lambda: NOW
    return logs


def head_of(logs: Logs, stream: int = 1) -> bytes:
    assert logs.file is not None
    return logs.file._stamp.head(stream, NOW)[:-2]


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}


def test_streams_in_the_order_of_the_writes(path: Path) -> None:
    logs = opened(path)
    buffer = bytearray(b"out\npart")
    logs.write(1, memoryview(buffer))
    buffer[:] = b"gone"  # the caller may use its buffer again
    logs.write(2, b"err\n")
    logs.write(1, memoryview(b"xial\ny")[1:5])
    logs.write(1, b"")
    out, err = head_of(logs), head_of(logs, 2)
    expected = out + b"F out\n" + out + b"P part\n" + err + b"F err\n" + out + b"F ial\n"
    assert path.read_bytes() == expected
    logs.finish(True, True)
    logs.close()
    logs.close()
    logs.write(1, b"after the end\n")
    assert path.read_bytes() == expected


def test_the_file_is_there_when_opened_and_private(path: Path) -> None:
    old = os.umask(0o022)
    try:
        logs = opened(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o7777 == 0o640 and path.stat().st_size == 0
    assert logs.file is not None and not os.get_inheritable(logs.file._fd)
    logs.close()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        opened(tmp_path / "no" / "log")
    assert caught.value.filename == str(tmp_path / "no" / "log")
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)


def test_nothing_asked_for_is_nothing_done() -> None:
    heard = Heard()
    logs = open_logs(log_options(), heard)  # type: ignore[arg-type]
    logs.write(1, b"x\n")
    logs.reopen()
    logs.finish(True, True)
    logs.close()
    assert not heard.texts and not logs.passthrough


def test_passthrough_with_a_file(path: Path) -> None:
    options = log_options(log_drivers=(("passthrough", None), ("k8s-file", str(path))))
    logs = open_logs(options, Heard())  # type: ignore[arg-type]
    assert logs.passthrough and path.exists()
    logs.close()


def test_a_large_write_goes_out_whole(path: Path) -> None:
    rng = random.Random(5)
    data = bytearray()
    while len(data) < 1 << 20:
        data += b"z" * rng.choice([0, 1, 80, 4000, 8191, 8192, 30000]) + b"\n"
    logs = opened(path)
    logs.write(1, bytes(data))
    logs.write(2, b"\n" * 200000)
    logs.close()
    content = path.read_bytes()
    assert logged(content) == data
    assert content[: -200000 * 46] == b"".join(records(bytes(data), head_of_text(content)))
    assert logged(content, b"stderr") == b"\n" * 200000


def head_of_text(content: bytes) -> bytes:
    return content[:43]


# -- limits ----------------------------------------------------------------------------------------


class Model:
    """The files after each record is written on its own, as conmon does it; newest first."""

    def __init__(self, size_max: int, global_max: int, keep: int) -> None:
        self.files = [b""]
        self.size_max, self.global_max, self.keep = size_max, global_max, keep
        self.total = 0

    def write(self, data: bytes, head: bytes) -> None:
        for text in records(data, head):
            if self.global_max > 0 and self.total >= self.global_max:
                return
            if self.files[0] and 0 < self.size_max < len(self.files[0]) + len(text):
                self.files.insert(0, b"")
                del self.files[self.keep + 1 :]
            self.files[0] += text
            self.total += len(text)


def some_writes(rng: random.Random) -> list[bytes]:
    result = []
    for _ in range(rng.randrange(1, 7)):
        lines = [
            b"abcdefghij"[: rng.randrange(10)] * rng.choice([1, 1, 1, 7, 400, 3000]) + b"\n"
            for _ in range(rng.choice([1, 1, 3, 60]))
        ]
        result.append(b"".join(lines)[: -1 if rng.random() < 0.3 else None])
    return result


def test_limits_match_the_plain_model(tmp_path: Path) -> None:
    rng = random.Random(11)
    for number in range(250):
        size_max = rng.choice([-1, 10, 46, 51, 100, 1000, 5000, 20000, 200000])
        global_max = rng.choice([-1, -1, -1, 60, 1000, 30000])
        keep = rng.choice([0, 0, 1, 2, 5])
        path = tmp_path / str(number) / "ctr.log"
        path.parent.mkdir()
        logs = opened(
            path,
            log_size_max=size_max,
            log_global_size_max=global_max,
            log_rotate=keep > 0,
            log_max_files=max(keep, 1),
        )
        model = Model(size_max, global_max, keep)
        for data in some_writes(rng):
            logs.write(1, data)
            model.write(data, head_of(logs))
        logs.close()
        names = ["ctr.log"] + [f"ctr.log.{k}" for k in range(1, keep + 1)]
        expected = dict(zip(names, model.files, strict=False))
        assert contents(path) == expected, (number, size_max, global_max, keep)


def test_the_limit_itself_is_within_it(path: Path) -> None:
    logs = opened(path, log_size_max=2 * 51)
    for text in (b"1", b"2", b"3"):
        logs.write(1, b"line" + text + b"\n")
        if text == b"2":
            assert path.stat().st_size == 2 * 51
    assert logged(path.read_bytes()) == b"line3\n"
    logs.close()


def test_the_global_limit_lets_one_record_over_it(path: Path) -> None:
    logs = opened(path, log_global_size_max=60)
    for _ in range(4):
        logs.write(1, b"line1\n")
    logs.close()
    assert path.stat().st_size == 2 * 51


def test_what_is_in_the_file_counts(path: Path) -> None:
    for run in range(3):
        logs = opened(path, log_size_max=10000)
        logs.write(1, b"".join(b"line %d %d\n" % (run, i) for i in range(80)))
        logs.close()
        assert path.stat().st_size <= 10000
        assert path.read_bytes().endswith(b" line %d 79\n" % run)
    logs = opened(path, log_global_size_max=100)
    before = path.read_bytes()
    logs.write(1, b"more\n")
    logs.close()
    assert path.read_bytes() == before


def test_one_long_line_over_the_limit(path: Path) -> None:
    logs = opened(path, log_size_max=20000)
    for digit in b"01234":
        logs.write(1, bytes([digit]) * 15000 + b"|")
    logs.write(1, b"END\ntail\n")
    logs.close()
    content = path.read_bytes()
    assert len(content) <= 20000 and logged(content).endswith(b"4|END\ntail\n")


# -- rotation and reopening ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3, 7])
def test_exactly_the_number_of_old_files_asked_for(path: Path, keep: int) -> None:
    logs = opened(path, log_size_max=60, log_rotate=True, log_max_files=keep)
    for number in range(10):
        logs.write(1, b"line%d\n" % number)
    logs.close()
    found = {name: logged(content) for name, content in contents(path).items()}
    expected = {"ctr.log": b"line9\n"}
    expected |= {f"ctr.log.{k}": b"line%d\n" % (9 - k) for k in range(1, keep + 1)}
    assert found == expected
    assert path.with_name("ctr.log.1").stat().st_mode & 0o777 == 0o640


def test_rotation_without_a_limit_only_when_asked(path: Path) -> None:
    logs = opened(path, log_rotate=True)
    logs.write(1, b"before\n")
    logs.reopen()
    assert logged(path.with_name("ctr.log.1").read_bytes()) == b"before\n"
    assert path.read_bytes() == b""
    logs.write(1, b"after\n")
    logs.close()
    assert logged(path.read_bytes()) == b"after\n"
    assert sorted(contents(path)) == ["ctr.log", "ctr.log.1"]


@pytest.mark.parametrize("rotate", [False, True])
def test_a_file_that_was_moved_away(path: Path, rotate: bool) -> None:
    """The kubelet's way: rename, then ask for a new file."""
    logs = opened(path, log_rotate=rotate)
    logs.write(1, b"one\n")
    path.rename(path.with_name("moved"))
    logs.write(1, b"two\n")
    logs.reopen()
    assert path.exists()
    logs.write(1, b"three\n")
    logs.close()
    found = {name: logged(content) for name, content in contents(path).items()}
    assert found == {"moved": b"one\ntwo\n", "ctr.log": b"three\n"}


def test_reopening_without_moving_empties_the_log(path: Path) -> None:
    logs = opened(path)
    logs.write(1, b"one\n")
    logs.reopen()
    assert contents(path) == {"ctr.log": b""}
    logs.write(1, b"two\n")
    logs.close()
    assert logged(path.read_bytes()) == b"two\n"


@pytest.mark.parametrize(("rotate", "suffix"), [(False, ".tmp"), (True, ".new")])
def test_leftovers_and_links_in_the_way_of_a_new_file(
    path: Path, rotate: bool, suffix: str
) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    in_the_way = Path(str(path) + suffix)
    for make in (lambda: in_the_way.write_bytes(b"stale"), lambda: in_the_way.symlink_to(victim)):
        make()
        logs = opened(path, log_rotate=rotate)
        logs.write(1, b"one\n")
        logs.reopen()
        logs.write(1, b"two\n")
        logs.close()
        assert logged(path.read_bytes()) == b"two\n"
        assert not path.is_symlink() and not os.path.lexists(in_the_way)
        assert victim.read_bytes() == b"precious"
        path.unlink()


def test_a_log_behind_a_link_stays_behind_it(path: Path) -> None:
    target = path.with_name("target")
    path.symlink_to(target)
    heard = Heard()
    logs = opened(path, heard, log_size_max=60)
    for number in range(3):
        logs.write(1, b"line%d\n" % number)
    assert path.is_symlink() and logged(target.read_bytes()) == b"line2\n"
    logs.close()
    logs = opened(path, heard, log_size_max=60, log_rotate=True)
    for number in range(3, 6):
        logs.write(1, b"line%d\n" % number)
    logs.close()
    assert path.is_symlink() and logged(target.read_bytes()) == b"line2\nline3\nline4\nline5\n"
    assert sorted(contents(path)) == ["ctr.log", "target"]
    assert len(heard.of("warn")) == 1 and "cannot be replaced" in heard.of("warn")[0]


def test_rotation_that_fails_loses_nothing(path: Path) -> None:
    heard = Heard()
    logs = opened(path, heard, log_size_max=60, log_rotate=True)
    path.with_name("ctr.log.new").mkdir()
    for number in range(4):
        logs.write(1, b"line%d\n" % number)
    assert logged(path.read_bytes()) == b"line0\nline1\nline2\nline3\n"
    assert len(heard.of("warn")) == 1
    path.with_name("ctr.log.new").rmdir()
    logs.write(1, b"line4\n")
    logs.close()
    assert logged(path.read_bytes()) == b"line4\n"
    assert len(logged(path.with_name("ctr.log.1").read_bytes())) == 4 * 6


def test_no_room_for_a_new_file_still_keeps_the_limit(path: Path) -> None:
    logs = opened(path, log_size_max=60)
    path.with_name("ctr.log.tmp").mkdir()
    inode = path.stat().st_ino
    for number in range(4):
        logs.write(1, b"line%d\n" % number)
    logs.close()
    assert logged(path.read_bytes()) == b"line3\n" and path.stat().st_ino == inode


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "ctr.log"
    path.parent.mkdir()
    heard = Heard()
    logs = opened(path, heard, log_size_max=60)
    path.unlink()
    path.parent.rmdir()
    for number in range(4):
        logs.write(1, b"line%d\n" % number)
    logs.reopen()
    assert len(heard.of("warn")) == 1
    path.parent.mkdir()
    logs.reopen()
    logs.write(1, b"line4\n")
    logs.close()
    assert logged(path.read_bytes()) == b"line4\n"


# -- trouble ---------------------------------------------------------------------------------------


def test_a_torn_end_of_an_earlier_run_is_closed(path: Path) -> None:
    path.write_bytes(b"2026-11-24T23:04:51.896392598+00:00 stdout F cut of")
    logs = opened(path)
    logs.write(1, b"next\n")
    logs.close()
    assert logged(path.read_bytes()) == b"cut of\nnext\n"


def test_a_file_that_takes_no_more_is_cut_at_a_record(path: Path) -> None:
    """RLIMIT_FSIZE makes write(2) short and then fail, as a full disk does."""

    def child() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        heard = Heard()
        logs = opened(path, heard)
        full = records(b"line0\n", head_of(logs))[0]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in range(len(full) * 3):
            os.truncate(path, 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            logs.write(1, b"line0\nline1\n")
            logs.write(1, b"line2\nline3\nlast")
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            logs.write(1, b"AFTER\n")
            found = logged(path.read_bytes())
            assert found.endswith(b"AFTER\n"), (room, found)
            # As many whole records as fit, whichever they are, and no piece of another.
            lines = found.split(b"\n")[:-2]
            assert len(lines) == room // len(full), (room, found)
            assert set(lines) <= {b"line0", b"line1", b"line2", b"line3"}
        assert len(heard.of("warn")) == 1, heard.texts
        assert os.strerror(errno.EFBIG) in heard.of("warn")[0]

    assert in_child(child) == 0


FULL_DISK = """
import os, sys
from tests.unit.test_logs_file import opened, logged
from tests.helpers.logs import Heard
from pathlib import Path
directory = Path(sys.argv[1])
(directory / "ballast").write_bytes(b"x" * 200000)
heard = Heard()
logs = opened(directory / "c.log", heard)
sent = [b"n %d\\n" % number for number in range(6000)]
for start in range(0, 6000, 7):
    logs.write(1, b"".join(sent[start : start + 7]))
assert len(heard.of("warn")) == 1 and "No space left" in heard.of("warn")[0], heard.texts
os.unlink(directory / "ballast")
logs.write(1, b"AFTER\\n")
logs.finish(True, True)
lines = logged((directory / "c.log").read_bytes()).splitlines(True)
assert lines[-1] == b"AFTER\\n" and 100 < len(lines) < 6000, len(lines)
assert set(lines[:-1]) <= set(sent), "a torn record"
assert len(heard.of("info")) >= 1
"""


def test_a_full_disk_that_is_freed(tmp_path: Path) -> None:
    need_root()
    unshare = need_program("unshare")
    run = [unshare, "-m", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=256k tmpfs "$0"'
    tried = subprocess.run([*run, mount, str(tmp_path)], capture_output=True, check=False)
    need(tried.returncode == 0, "the right to mount a tmpfs")
    script = mount + ' && exec "$1" -c "$2" "$0"'
    done = subprocess.run(
        [*run, script, str(tmp_path), sys.executable, FULL_DISK],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_fifo_never_blocks(path: Path) -> None:
    os.mkfifo(path)
    heard = Heard()
    logs = opened(path, heard, log_size_max=100)
    for _ in range(300):
        logs.write(1, b"z" * 999 + b"\n")
    assert len(heard.of("warn")) == 1
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    content = os.read(reader, 1 << 20)
    logs.write(1, b"again\n")
    logs.reopen()
    logs.write(1, b"and again\n")
    logs.finish(True, True)
    content += os.read(reader, 1 << 20)
    logs.close()
    os.close(reader)
    lines = logged(content).split(b"\n")
    assert lines[-3:] == [b"again", b"and again", b""]
    assert all(set(line) <= set(b"z") for line in lines[:-3])
    assert sum(len(line) < 999 for line in lines[:-3]) <= 1  # cut off, but a record of its own


def test_devices(tmp_path: Path) -> None:
    heard = Heard()
    logs = opened(Path("/dev/null"), heard, log_size_max=10, log_rotate=True)
    logs.write(1, b"x\n" * 100)
    logs.reopen()
    logs.write(1, b"x\n" * 100)
    logs.finish(True, True)
    logs.close()
    assert Path("/dev/null").is_char_device() and not heard.of("error")
    full = opened(Path("/dev/full"), heard)
    full.write(1, b"x\n")
    full.write(1, b"x\n")
    full.close()
    assert len(heard.of("warn")) == 1 and "No space left" in heard.of("warn")[0]


def test_no_exception_gets_out(path: Path) -> None:
    heard = Heard()
    logs = opened(path, heard)

    def broken() -> int:
        raise MemoryError

    logs.timestamp = broken
    logs.write(1, b"x\n")
    logs.write(1, b"x\n")
    assert len(heard.of("error")) == 1
    logs.close()


# -- a monitor that dies in a write ----------------------------------------------------------------


class Death:
    """Makes the process die in the n-th write to the log, after `cut` bytes of it."""

    def __init__(self, nth: int, cut: int) -> None:
        self.left, self.cut = nth, cut
        self.writev = os.writev

    def __call__(self, fd: int, buffers: list[bytes]) -> int:
        if self.left:
            self.left -= 1
            return self.writev(fd, buffers)
        text = b"".join(buffers)
        if self.cut:
            os.write(fd, text[: min(self.cut, len(text))])
        os._exit(42 if self.cut < len(text) else 43)


def lines_of(*lengths: int) -> bytes:
    return b"".join(b"%d" % (i % 10) * length + b"\n" for i, length in enumerate(lengths))


RESUMED: list[tuple[str, bytes, dict[str, Any]]] = [
    ("one write", lines_of(1, 0, 7)[:-1], {}),
    ("many writes", lines_of(*[30, 0, 5] * 10), {}),
    ("a long line", lines_of(5, 20000, 3) + b"tail", {}),
    ("truncating", lines_of(*[30, 0, 5] * 10), {"log_size_max": 300}),
    ("tiny limit", lines_of(*[30, 0, 5] * 2), {"log_size_max": 20}),
    (
        "rotating",
        lines_of(*[30, 0, 5] * 10),
        {"log_size_max": 300, "log_rotate": True, "log_max_files": 2},
    ),
    ("global limit", lines_of(*[30, 0, 5] * 10), {"log_global_size_max": 900}),
    ("global limit soon", lines_of(*[30, 0, 5] * 10), {"log_global_size_max": 1800}),
    ("moved meanwhile", lines_of(*[30, 0, 5] * 4), {}),
]


AFTER = (b"more\n", b"more still\n", b"enough\n")


@pytest.mark.parametrize(("name", "data", "changes"), RESUMED, ids=[row[0] for row in RESUMED])
def test_resuming_a_write_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(k8s_file, "FLUSH", 200)
    before = b"old\n"
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "ctr.log"
    logs = opened(whole, **changes)
    logs.write(2, before)
    for each in (data, *AFTER):
        logs.write(1, each)
    logs.close()
    expected = contents(whole)

    mark = tmp_path / "mark"

    def note(*values: int) -> None:
        mark.write_text(" ".join(map(str, values)))

    path = tmp_path / "cut" / "ctr.log"
    nth, cuts, died = 0, [0, 1, 44, 46, 47, 90, 200, 8237, 8238, 10**6], 0
    while True:
        reached = False
        for cut in cuts:
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir()
            logs = opened(path, **changes)
            logs.write(2, before)
            logs.checkpoint = note

            def child(logs: Logs = logs, death: Death | None = None) -> None:
                death = Death(nth, cut)  # noqa: B023
                os.writev = death  # type: ignore[assignment]
                logs.write(1, data)

            status = in_child(child)
            logs.close()
            if status == 0:
                break
            assert status in (42, 43)
            reached = True
            died += 1
            if name == "moved meanwhile":
                path.rename(path.with_name("moved"))
            logs = opened(path, **changes)
            consumed, inode, offset = map(int, mark.read_text().split())
            logs.resume(1, data, NOW, consumed, inode, offset)
            for each in AFTER:
                logs.write(1, each)
            logs.close()
            found = contents(path)
            if name == "moved meanwhile":
                found = {"ctr.log": found["moved"] + found["ctr.log"]}
            assert found == expected, (nth, cut, status)
            if status == 43:
                break  # the cut lies behind the text: larger ones are the same
        if not reached:
            break
        nth += 1
    assert died >= 5


@pytest.mark.parametrize("whose", ["many names", "another owner"])
def test_resuming_in_a_file_that_may_be_a_strangers(tmp_path: Path, path: Path, whose: str) -> None:
    """Its number is the log's, but numbers are used again, and a second name is easily made."""
    opened(path).close()
    inode = path.stat().st_ino
    planted = path.with_name("planted")
    path.rename(planted)
    if whose == "many names":
        os.link(planted, tmp_path / "precious")
    else:
        need_root()
        os.chown(planted, 1234, -1)
    logs = opened(path)
    logs.resume(1, b"one\ntwo\n", NOW, 0, inode, 0)
    logs.close()
    assert planted.stat().st_size == 0
    assert path.read_bytes().count(b"\n") == 2


def test_a_checkpoint_says_what_is_in_the_file(path: Path) -> None:
    logs = opened(path)
    seen: list[int] = []

    def checkpoint(consumed: int, inode: int, offset: int) -> None:
        assert inode == path.stat().st_ino and offset == path.stat().st_size
        assert logged(path.read_bytes()) == data[:consumed]
        seen.append(consumed)

    logs.checkpoint = checkpoint
    data = lines_of(*[99] * 10000)
    logs.write(1, data)
    logs.close()
    assert seen[0] == 0 and len(seen) > 1 and sorted(seen) == seen
    assert all(data[:end].endswith(b"\n") for end in seen[1:])
    assert len(pieces(data)) == 10000
