"""Killed at any moment: after recovery every line is there once and in order, and the code is right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import recovering
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON
from tests.helpers.recovering import COUNT, FLOOD, box, counted, kill_monitor, recovered, wait_kept
from tests.helpers.waiting import wait_until

ROUNDS = int(os.environ.get("PYCONMON_RECOVERY_ROUNDS", "20"))

Make = Callable[..., Drive]


def counting(drive: Make, where: Path, code: int, count: str = COUNT, **settings: object) -> Drive:
    where.mkdir()
    container = drive(["sh", "-c", f"{count}exit {code}"], edit=box(where), **settings)
    return wait_kept(container.run())


def finish(container: Drive, where: Path, code: int) -> None:
    (where / "stop").touch()
    assert container.wait_exit() == code
    container.wait_monitor()
    assert counted(container) == counted(container, "err", "stderr")
    assert not (container.directory / recovering.STATE).exists()
    assert not (container.directory / recovering.JOURNAL).exists()


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_killed_at_random_moments(drive: Make, tmp_path: Path) -> None:
    dice = random.Random()
    lines = 0
    for number in range(ROUNDS):
        seed = dice.randrange(1 << 32)
        throw = random.Random(seed)
        code = throw.randrange(256)
        where = tmp_path / f"box{number}"
        container = counting(drive, where, code)
        for _ in range(throw.choice([1, 1, 1, 2, 3])):
            time.sleep(throw.uniform(0, 0.12))  # the moment is what is random, nothing waits for it
            kill_monitor(container, throw.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV]))
            time.sleep(throw.uniform(0, 0.03))
            recovered(container)
        try:
            finish(container, where, code)
            lines += counted(container)
        except AssertionError as error:
            raise AssertionError(f"round {number}, seed {seed}") from error
        container.delete()
    assert lines > 0


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV], ids=["KILL", "ABRT", "SEGV"]
)
def test_killed_by_whatever(drive: Make, tmp_path: Path, number: int) -> None:
    """Memory pressure ends a monitor by SIGKILL, a defect of the interpreter by the others."""
    container = counting(drive, tmp_path / "box", 7)
    kill_monitor(container, number)
    recovered(container)
    finish(container, tmp_path / "box", 7)


def test_killed_under_a_flood(drive: Make, tmp_path: Path) -> None:
    """The container is quicker than we are: it waits at a full pipe while nobody watches it."""
    container = counting(drive, tmp_path / "box", 9, count=FLOOD)
    for size in (100_000, 400_000, 800_000):
        wait_until(lambda size=size: container.log.stat().st_size > size, what="a flood")  # type: ignore[misc]
        kill_monitor(container)
        recovered(container)
    finish(container, tmp_path / "box", 9)


@pytest.mark.parametrize(
    "options",
    [
        ["--log-size-max", "20000", "--log-rotate", "--log-max-files", "2000"],
        ["--log-size-max", "100000", "--log-rotate", "--log-max-files", "500"],
    ],
    ids=["quickly", "slowly"],
)
def test_killed_while_logs_rotate(drive: Make, tmp_path: Path, options: list[str]) -> None:
    container = counting(drive, tmp_path / "box", 5, count=FLOOD, options=options)
    dice = random.Random()
    for _ in range(4):
        time.sleep(dice.uniform(0, 0.1))
        kill_monitor(container)
        recovered(container)
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 5
    container.wait_monitor()
    parts = sorted(container.log.parent.glob("ctr.log.*"), key=lambda part: -int(part.suffix[1:]))
    joined = b"".join(part.read_bytes() for part in [*parts, container.log])
    for part in [*parts, container.log]:
        assert part.stat().st_size <= int(options[1])
    container.log.write_bytes(joined)
    assert counted(container) == counted(container, "err", "stderr")


def test_two_recoveries_race(drive: Make, tmp_path: Path) -> None:
    """One of them gets the container, and the others know it."""
    container = counting(drive, tmp_path / "box", 3)
    for _ in range(3):
        kill_monitor(container)
        start = threading.Barrier(5)
        results: list[subprocess.CompletedProcess[str]] = []

        def race(start: threading.Barrier = start, results: list[object] = results) -> None:  # type: ignore[assignment]
            start.wait()
            results.append(recovering.recover(container.directory, "--log-level", "info"))

        racers = [threading.Thread(target=race) for _ in range(5)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert [done.returncode for done in results] == [0] * 5, results
        assert sum("has a monitor" in done.stderr for done in results) == 4, results
    finish(container, tmp_path / "box", 3)


def test_a_living_monitor_is_left_alone(drive: Make, tmp_path: Path) -> None:
    container = counting(drive, tmp_path / "box", 3)
    pid = container.monitor_pid
    done = recovering.recover(container.directory, "--log-level", "info")
    assert done.returncode == 0
    assert "has a monitor" in done.stderr
    os.kill(pid, signal.SIGSTOP)
    try:
        assert (
            "has a monitor" in recovering.recover(container.directory, "--log-level", "info").stderr
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    assert container.monitor_pid == pid
    finish(container, tmp_path / "box", 3)


def test_recovery_in_the_foreground(drive: Make, tmp_path: Path) -> None:
    """--sync: the command itself becomes the monitor, and exits as the container does."""
    container = counting(drive, tmp_path / "box", 33)
    kill_monitor(container)
    with subprocess.Popen(
        [PYCONMON, "--recover", container.directory, "--sync"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        wait_until(
            lambda: container.monitor_pidfile.read_text() == str(process.pid), what="its pid"
        )
        (tmp_path / "box/stop").touch()
        assert process.wait(30) == 33
    finish(container, tmp_path / "box", 33)


def test_all_below_a_folder(drive: Make, tmp_path: Path) -> None:
    """Some have lost their monitor, one has it still, one has ended; and there is other stuff."""
    containers = [counting(drive, tmp_path / f"box{number}", number) for number in range(4)]
    for container in containers[:3]:
        kill_monitor(container)
    kept = containers[3].monitor_pid
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / recovering.STATE).write_text("{")
    done = recovering.recover(tmp_path, under=True)
    assert done.returncode == 1
    assert "odd" in done.stderr
    for container in containers:
        assert recovering.watched(container)
    assert containers[3].monitor_pid == kept
    (tmp_path / "odd" / recovering.STATE).unlink()
    assert recovering.recover(tmp_path, under=True).returncode == 0
    for number, container in enumerate(containers):
        finish(container, tmp_path / f"box{number}", number)
    assert recovering.recover(tmp_path, under=True).returncode == 0


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    assert recovering.recover(tmp_path).returncode == 0
    assert recovering.recover(tmp_path, under=True).returncode == 0
