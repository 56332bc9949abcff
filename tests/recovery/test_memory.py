"""The kernel kills the monitor for want of memory: its successor loses neither a line nor the code."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyconmon.journal import Journal
from tests.helpers import recovering
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON, ROOT
from tests.helpers.need import need_root
from tests.helpers.pressure import MemoryCgroup
from tests.helpers.recovering import FLOOD, box, counted, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]

KILLS = 10
LIMIT = 32 << 20  # some times what a monitor has


@pytest.fixture
def cgroups() -> Iterator[tuple[MemoryCgroup, MemoryCgroup]]:
    """A small one for the monitor, and one without a limit for its runtime."""
    need_root()
    with ExitStack() as stack:
        small = stack.enter_context(MemoryCgroup("small", LIMIT))
        yield small, stack.enter_context(MemoryCgroup("large"))


def inside(cgroup: MemoryCgroup, script: Path, program: Path) -> Path:
    """The program, but in that cgroup from its first breath."""
    script.write_text(f'#!/bin/sh\necho $$ >{cgroup.procs} && exec {program} "$@"\n')
    script.chmod(0o755)
    return script


def press(cgroup: MemoryCgroup, monitor: int) -> None:
    """Want memory until the kernel kills the monitor."""
    assert monitor in cgroup.members()
    # By itself it is the last that is killed; the unprivileged cannot have that.
    Path(f"/proc/{monitor}/oom_score_adj").write_text("1000")
    assert cgroup.press() == 1
    wait_until(lambda: gone(monitor), what="the monitor's death")


def test_killed_for_want_of_memory(
    drive: Make, runc: Path, tmp_path: Path, cgroups: tuple[MemoryCgroup, MemoryCgroup]
) -> None:
    small, large = cgroups
    monitor = inside(small, tmp_path / "monitor", PYCONMON)
    runtime = inside(large, tmp_path / "runtime", runc)
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    kills = lines = 0
    while kills < KILLS:
        code = dice.randrange(256)
        where = tmp_path / f"box{kills}"
        container = drive(
            ["sh", "-c", f"{FLOOD}exit {code}"], edit=box(where), monitor=monitor, runtime=runtime
        )
        wait_kept(container.run())
        assert container.pid not in small.members() | large.members()
        for _ in range(dice.choice([1, 2, 3])):
            time.sleep(dice.uniform(0, 0.05))  # the moment is what is random, nothing waits for it
            press(small, container.monitor_pid)
            done = recovering.recover(container.directory, program=monitor)
            assert done.returncode == 0, done.stderr
            kills += 1
        (where / "stop").touch()
        try:
            assert container.wait_exit() == code
            container.wait_monitor()
            assert counted(container) == counted(container, "err", "stderr")
            lines += counted(container)
            assert not (container.directory / recovering.STATE).exists()
        except AssertionError as error:
            raise AssertionError(f"after {kills} kills, seed {seed}") from error
        container.delete()
    assert lines > 0


# What a monitor does with its journal: read, log (here: count), and say so.
READER = f"""
import mmap, os, select, sys
sys.path.append({str(ROOT)!r})
from pyconmon.journal import Journal

pipe, path, count = int(sys.argv[1]), sys.argv[2], os.open(sys.argv[3], os.O_RDWR)
with open("/proc/self/oom_score_adj", "w") as score:
    score.write("1000")
journal, counted = Journal(path, create=True), mmap.mmap(count, 8)
poller = select.poll()
poller.register(pipe, select.POLLIN)
print("ready", flush=True)
total = 0
while poller.poll():
    total += len(journal.read(pipe, 1))
    counted[:] = total.to_bytes(8, "little")
    journal.done()
"""


class Writer(threading.Thread):
    """Writes as much as it can, in pieces of many sizes, until it is to stop; `written` bytes."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.written = 0
        self.stopped = threading.Event()
        self._pipe = pipe

    def run(self) -> None:
        pieces = [b"x" * size for size in (11, 11, 200, 3000, 5000)]
        while not self.stopped.is_set():
            try:
                self.written += os.write(self._pipe, random.choice(pieces))
            except BlockingIOError:
                time.sleep(0.0005)


def drained(pipe: int) -> int:
    """How many bytes are in it; then there are none."""
    total = 0
    try:
        while True:
            total += len(os.read(pipe, 1 << 20))
    except BlockingIOError:
        return total


@pytest.mark.parametrize("attempt", range(10))
def test_no_read_is_cut_short(
    tmp_path: Path, cgroups: tuple[MemoryCgroup, MemoryCgroup], attempt: int
) -> None:
    """A kill at a page of the journal that is not in memory would be in the middle of a read."""
    journal, count = tmp_path / "journal", tmp_path / "count"
    count.write_bytes(bytes(8))
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    script = f'echo $$ >{cgroups[0].procs} && exec "$@"'
    words = [sys.executable, "-I", "-c", READER, str(read_end), journal, count]
    writer = Writer(write_end)
    with subprocess.Popen(
        ["/bin/sh", "-c", script, "reader", *words], pass_fds=[read_end], stdout=subprocess.PIPE
    ) as reader:
        try:
            assert reader.stdout is not None and reader.stdout.readline() == b"ready\n"
            writer.start()
            assert cgroups[0].press() == 1
            assert reader.wait(30) == -signal.SIGKILL
        finally:
            reader.kill()
            writer.stopped.set()
    writer.join()
    left = Journal(str(journal), create=False)
    unlogged = left.unlogged()
    left.close(remove=True)
    kept = len(unlogged[1]) if unlogged is not None else 0
    there = int.from_bytes(count.read_bytes(), "little") + kept + drained(read_end)
    os.close(read_end)
    os.close(write_end)
    # Killed between counting and saying so, it has counted what is in the journal.
    assert there - writer.written in (0, kept)
