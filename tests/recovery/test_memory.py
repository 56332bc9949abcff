"""The kernel kills the monitor for want of memory: its successor loses neither a line nor the code."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers import recovering
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON
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
