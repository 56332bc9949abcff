"""The OOM watch: every layout of cgroups as files, and the kernel's own where they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon.loop import Loop
from pyconmon.oom import V1, V2, OomWatch, count_ooms, find_memory_cgroup, make_empty
from tests.helpers.need import need
from tests.helpers.serving import Messages, open_descriptors, serve_until, wake_ups

CGROUP_ROOT = Path("/sys/fs/cgroup")

HYBRID = b"""\
9:name=systemd:/c
8:net_cls,net_prio:/
4:cpu,memory:/box/c
1:cpuset:/
0::/unified/c
"""


@pytest.mark.parametrize(
    ("text", "unified", "found"),
    [
        (b"0::/box/c\n", ".", (V2, "/box/c")),
        (b"0::/\n", ".", (V2, "")),
        (b"8:net_cls:/\n7:devices:/x\n0::/box/c\n", ".", (V2, "/box/c")),
        (b"0::/box:odd/c\n", ".", (V2, "/box:odd/c")),
        (b"0::/box/\xff\n", ".", (V2, "/box/\udcff")),
        (HYBRID, "unified", (V1, "/memory/box/c")),
        (b"4:memory:/\n", None, (V1, "/memory")),
        (b"8:net_cls:/\n4:memory:/c\n", None, (V1, "/memory/c")),
        (b"1:cpuset:/\n0::/c\n", "unified", (V2, "/unified/c")),
        (b"1:cpuset:/\n0::/c\n", None, None),
        (b"9:name=memory:/c\n", None, None),
        (b"0::/../c\n", ".", None),
        (b"0::/c (deleted)\n", ".", (V2, "/c (deleted)")),
        (b"", ".", None),
        (b"rubbish\n::\n0:\n:::\n", ".", None),
    ],
)
def test_the_memory_controller_decides(
    tmp_path: Path, text: bytes, unified: str | None, found: tuple[int, str] | None
) -> None:
    if unified is not None:
        (tmp_path / unified).mkdir(exist_ok=True)
        (tmp_path / unified / "cgroup.controllers").touch()
    got = find_memory_cgroup(text, str(tmp_path))
    assert got == (None if found is None else (found[0], f"{tmp_path}{found[1]}"))


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"0::/a", b"4:memory:/b", b"1:cpu,memory:/b", b"8:net_cls:/", b"0::/../a"]
        ),
        st.binary(max_size=20),
    )
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(LINES)
def test_whatever_the_kernel_says_the_directory_is_below_the_root(lines: list[bytes]) -> None:
    found = find_memory_cgroup(b"\n".join(lines), "/proc/self/nowhere")
    if found is not None:
        assert found[0] == V1
        assert os.path.normpath(found[1]).startswith("/proc/self/nowhere/memory")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_counters_of_any_text(text: bytes) -> None:
    assert count_ooms(text + b"\noom 2\noom_kill 3\noom_group_kill 7") - count_ooms(text) == 5


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"low 0\nhigh 5\nmax 9\noom 0\noom_kill 0\noom_group_kill 0\n", 0),
        (b"low 0\noom 1\noom_kill 1\n", 2),
        (b"oom_kill_disable 0\nunder_oom 1\noom_kill 4\n", 4),
        (b"oom many\noom_kill -1\noom\n", 0),
        (b"", 0),
    ],
)
def test_counters(text: bytes, count: int) -> None:
    assert count_ooms(text) == count


class Box:
    """A made-up machine with one process, 7, in the cgroup /c, and places for the files."""

    def __init__(self, root: Path, cgroup: bytes = b"0::/c\n") -> None:
        self.loop = Loop()
        self.diag = Messages()
        self.cgroup_root = root / "cgroup"
        self.cgroup = self.cgroup_root / "c"
        self.cgroup.mkdir(parents=True)
        (self.cgroup_root / "cgroup.controllers").touch()
        self.proc = root / "proc"
        (self.proc / "7").mkdir(parents=True)
        (self.proc / "7" / "cgroup").write_bytes(cgroup)
        self.directories = [root / "persist", root / "bundle"]
        for directory in self.directories:
            directory.mkdir()
        self.events = self.cgroup / "memory.events"

    def watch(self, fresh: bool = True) -> OomWatch:
        watch = OomWatch(
            self.loop,
            self.diag,
            7,
            [str(directory) for directory in self.directories],
            str(self.cgroup_root),
            str(self.proc),
            fresh=fresh,
        )
        watch.start()
        return watch

    def told(self) -> list[bool]:
        return [(directory / "oom").exists() for directory in self.directories]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    before = open_descriptors()
    yield Box(tmp_path)
    assert open_descriptors() == before


def test_the_last_look_finds_a_kill(box: Box) -> None:
    box.events.write_bytes(b"oom 0\noom_kill 0\n")
    old_umask = os.umask(0)
    try:
        watch = box.watch()
        assert wake_ups(box.loop) == 0
        watch.check_now()
        assert box.told() == [False, False]
        box.events.write_bytes(b"oom 1\noom_kill 1\n")
        watch.check_now()
    finally:
        os.umask(old_umask)
    assert box.told() == [True, True]
    status = (box.directories[0] / "oom").stat()
    assert (status.st_size, status.st_mode & 0o7777) == (0, 0o644)
    watch.close()
    watch.close()


@pytest.mark.parametrize("fresh", [True, False])
def test_an_old_kill_counts_only_in_a_cgroup_of_the_containers_own(box: Box, fresh: bool) -> None:
    box.events.write_bytes(b"oom_kill 1\n")
    watch = box.watch(fresh)
    watch.check_now()
    assert box.told() == [fresh, fresh]
    box.events.write_bytes(b"oom_kill 2\n")
    watch.check_now()
    assert box.told() == [True, True]
    watch.close()


def test_a_planted_link_is_not_followed_and_does_not_matter_to_the_other(box: Box) -> None:
    box.events.write_bytes(b"oom_kill 1\n")
    target = box.directories[0] / "target"
    (box.directories[0] / "oom").symlink_to(target)
    watch = box.watch()
    watch.check_now()
    watch.close()
    assert not target.exists()
    assert (box.directories[1] / "oom").exists()


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "oom").write_bytes(b"older")
    make_empty(str(tmp_path / "oom"))
    assert (tmp_path / "oom").read_bytes() == b"older"


@pytest.mark.parametrize(
    "surprise",
    ["no events", "no cgroup", "no process", "no controller", "directory", "v1 only half"],
)
def test_a_surprise_is_one_debug_message(box: Box, surprise: str) -> None:
    cgroup = box.proc / "7" / "cgroup"
    if surprise == "no cgroup":
        box.cgroup.rmdir()
    elif surprise == "no process":
        cgroup.unlink()
    elif surprise == "no controller":
        cgroup.write_bytes(b"1:cpu:/c\n")
    elif surprise == "directory":
        box.events.mkdir()
    elif surprise == "v1 only half":
        cgroup.write_bytes(b"4:memory:/c\n")
        memory = box.cgroup_root / "memory" / "c"
        memory.mkdir(parents=True)
        (memory / "memory.oom_control").write_bytes(b"oom_kill 0\n")
    watch = box.watch()
    watch.check_now()
    assert wake_ups(box.loop) == 0
    watch.check_now()
    watch.close()
    assert len(box.diag.said) == 1
    assert box.diag.said[0][0] == 3
    assert box.told() == [False, False]


def test_v1_events_and_the_removal_of_the_cgroup(box: Box) -> None:
    (box.proc / "7" / "cgroup").write_bytes(b"8:net_cls:/\n4:memory:/c\n")
    memory = box.cgroup_root / "memory" / "c"
    memory.mkdir(parents=True)
    (memory / "memory.oom_control").write_bytes(b"oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    (memory / "cgroup.event_control").touch()
    watch = box.watch()
    event_fd, control_fd = map(int, (memory / "cgroup.event_control").read_bytes().split())
    assert os.readlink(f"/proc/self/fd/{control_fd}") == str(memory / "memory.oom_control")
    assert wake_ups(box.loop) == 0
    os.eventfd_write(event_fd, 1)
    serve_until(box.loop, lambda: box.told() == [True, True])
    for directory in box.directories:
        (directory / "oom").unlink()
    (memory / "cgroup.event_control").unlink()
    os.eventfd_write(event_fd, 1)
    serve_until(box.loop, lambda: watch._event_fd < 0)
    assert box.told() == [False, False]
    assert wake_ups(box.loop) == 0
    watch.check_now()


# The kernel's own


def memory_parent() -> Path:
    """A cgroup in which a cgroup with a memory limit can be made."""
    found = find_memory_cgroup(Path("/proc/self/cgroup").read_bytes(), str(CGROUP_ROOT))
    if found is not None and found[0] == V1:
        return Path(found[1])
    return (
        CGROUP_ROOT  # not our own: in v2 a cgroup with processes has no children with controllers
    )


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    cgroup = memory_parent() / f"pyconmon-test-oom-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        need(False, f"a place for a cgroup ({error})")
    try:
        limits = [cgroup / "memory.limit_in_bytes", cgroup / "memory.max"]
        limit = next((path for path in limits if path.exists()), None)
        need(limit is not None, "cgroups with a memory limit")
        assert limit is not None
        limit.write_text(str(24 << 20))
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            try:
                (cgroup / name).write_text("0" if name == "memory.swap.max" else str(24 << 20))
            except OSError:  # not every kernel counts swap
                continue
        yield cgroup
    finally:
        if cgroup.exists():
            cgroup.rmdir()


def in_cgroup(cgroup: Path, *command: str) -> subprocess.Popen[bytes]:
    script = f'echo $$ >{cgroup}/cgroup.procs && exec "$@"'
    return subprocess.Popen(["/bin/sh", "-c", script, "sh", *command], stdout=subprocess.PIPE)


def test_a_real_kill_is_told_while_the_main_process_lives_on(
    memory_cgroup: Path, tmp_path: Path
) -> None:
    loop, diag = Loop(), Messages()
    main = in_cgroup(memory_cgroup, "sh", "-c", "echo here; exec sleep 1000")
    try:
        assert main.stdout is not None
        assert main.stdout.readline() == b"here\n"
        watch = OomWatch(loop, diag, main.pid, [str(tmp_path)])
        watch.start()
        assert diag.said == []
        assert wake_ups(loop) == 0
        hog = in_cgroup(memory_cgroup, sys.executable, "-c", "bytearray(b'x') * (200 << 20)")
        assert hog.wait(60) == -signal.SIGKILL
        serve_until(loop, lambda: (tmp_path / "oom").exists())
        assert main.poll() is None
        assert wake_ups(loop) == 0
    finally:
        main.kill()
        main.wait()
        if main.stdout is not None:
            main.stdout.close()
    serve_until(loop, lambda: _removed(memory_cgroup))
    # Without a cgroup there is nothing to wait for any more, and nothing wakes us.
    wake_ups(loop)
    assert wake_ups(loop) == 0
    watch.check_now()
    watch.close()


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:  # the kernel is a moment late with the last process
        return False
    return True


def test_a_change_of_a_v2_file_is_noticed_and_its_removal_ends_the_watch(box: Box) -> None:
    """With v2's cgroup.events for memory.events: the kernel reports both the same way."""
    roots = [CGROUP_ROOT, CGROUP_ROOT / "unified"]
    root = next((path for path in roots if (path / "cgroup.controllers").exists()), None)
    need(root is not None, "cgroup v2")
    assert root is not None
    cgroup = root / f"pyconmon-test-events-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        need(False, f"a place for a cgroup ({error})")
    looks: list[bytes] = []
    process = None
    try:
        box.events.symlink_to(cgroup / "cgroup.events")
        watch = box.watch()
        compare = watch._compare

        def look() -> None:
            looks.append(os.pread(watch._counters_fd, 100, 0) if cgroup.exists() else b"")
            compare()

        watch._compare = look  # type: ignore[method-assign]
        assert wake_ups(box.loop) == 0
        process = in_cgroup(cgroup, "sleep", "1000")
        serve_until(box.loop, lambda: any(b"populated 1" in text for text in looks))
        assert wake_ups(box.loop) == 0
    finally:
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        serve_until(box.loop, lambda: _removed(cgroup))
    serve_until(box.loop, lambda: watch._counters_fd < 0)
    assert wake_ups(box.loop) == 0
    assert box.told() == [False, False]
