"""Log files under stress: enormous lines, limits over restarts, rotation, a full disk."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.harness import Container, Harness, target
from tests.helpers.need import need
from tests.helpers.waiting import wait_until
from tests.helpers.wire import Log

LOOP = "i=0; while [ $i -lt {} ]; do echo line $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done"


def peak(pid: int) -> int:
    """The most memory a process has had, in KiB."""
    found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_an_enormous_line_costs_no_memory(harness: Harness) -> None:
    size = 30_000_000
    script = f"read x; head -c {size} /dev/zero | tr '\\0' A; echo; read x; exit 3"
    container = harness.container(["sh", "-c", script])
    container.run("-i")
    client = container.attach()
    client.close()  # stdin ends with it: both reads return
    monitor = container.monitor_pid()
    before = peak(monitor)
    highest = before
    while not container.exit_file.exists():
        try:
            highest = max(highest, peak(monitor))
        except OSError:
            break
    assert container.wait_exit() == "3"
    assert highest - before < 4096
    assert container.log.stream("stdout") == b"A" * size + b"\n"


def test_a_limit_holds_and_the_newest_lines_stay(harness: Harness) -> None:
    container = harness.container(["sh", "-c", LOOP.format(500)])
    container.run("--log-size-max", "10000")
    assert container.wait_exit() == "0"
    assert container.log.path.stat().st_size <= 10000
    lines = container.log.text().splitlines()
    first = int(lines[0].split()[1])
    assert [int(line.split()[1]) for line in lines] == list(range(first, 500))


@target("2.1.6 does not count what is in the file already")
def test_a_limit_holds_over_restarts(harness: Harness) -> None:
    container = harness.container(["sh", "-c", LOOP.format(50)])
    for _ in range(3):
        container.exit_file.unlink(missing_ok=True)
        container.run("--log-size-max", "10000")
        assert container.wait_exit() == "0"
        container.wait_monitor_gone()
        assert container.log.path.stat().st_size <= 10000
        container.delete()
    assert container.log.text().endswith("line 49 xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n")


def test_both_streams_are_logged_in_the_order_of_writing(harness: Harness) -> None:
    script = "for i in $(seq 60); do echo o; usleep 10000; echo e >&2; usleep 10000; done"
    container = harness.container(["sh", "-c", script])
    container.run()
    assert container.wait_exit() == "0"
    order = [line.split()[3] for line in container.log.path.read_text().splitlines()]
    assert sorted(order) == ["e"] * 60 + ["o"] * 60
    wrong = sum(before == after for before, after in pairwise(order))
    assert wrong <= 12, "a monitor may be held up for two writes now and then"


def test_a_limit_inside_a_line_tears_no_record(harness: Harness) -> None:
    script = "for i in 0 1 2 3 4; do head -c 15000 /dev/zero | tr '\\0' $i; printf '|'; done; echo END; echo tail"
    container = harness.container(["sh", "-c", script])
    container.run("--log-size-max", "20000")
    assert container.wait_exit() == "0"
    assert container.log.path.stat().st_size <= 20000
    assert container.log.text().endswith("|END\ntail\n")


@target("2.1.6 has no rotation")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rotation_keeps_so_many_files(harness: Harness, count: int) -> None:
    container = harness.container(["sh", "-c", LOOP.format(800)])
    container.run("--log-size-max", "10000", "--log-rotate", "--log-max-files", str(count))
    assert container.wait_exit() == "0"
    names = sorted(path.name for path in container.directory.glob("ctr.log*"))
    assert names == ["ctr.log", *(f"ctr.log.{n}" for n in range(1, count + 1))]
    text = "".join(
        Log(container.directory / name).text() for name in [*reversed(names[1:]), names[0]]
    )
    lines = [int(line.split()[1]) for line in text.splitlines()]
    assert lines == list(range(lines[0], 800)), "no hole between the files"
    for name in names:
        assert (container.directory / name).stat().st_size <= 10000


@target("2.1.6 has no rotation; 2.2.1 writes on into the renamed file")
def test_rotation_survives_a_rename_from_outside(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo one; read x; echo two; read x"])
    container.run("-i", "--log-rotate", "--log-max-files", "2", "--log-size-max", "100000")
    wait_until(lambda: container.log.text() == "one\n", what="the first line")
    moved = container.log.path.rename(container.directory / "moved")
    container.ctl("2 0 0\n")
    wait_until(container.log.path.exists, what="the new log")
    container.attach().send(b"x\n")
    wait_until(lambda: container.log.text() == "two\n", what="the second line")
    assert Log(moved).text() == "one\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    need(os.geteuid() == 0, "root")
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    done = subprocess.run(mount, check=False, capture_output=True)
    need(done.returncode == 0, "the right to mount a tmpfs")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def on_small_disk(container: Container, disk: Path) -> None:
    container.log = Log(disk / "ctr.log")
    (disk / "ballast").write_bytes(b"b" * 200_000)


@target("2.1.6 leaves half a record, and the next one on the same line")
def test_a_full_disk_holds_nothing_up_and_tears_no_record(
    harness: Harness, small_disk: Path
) -> None:
    script = f"{LOOP.format(3000)}; echo full >&2; read x; echo AFTER; exit 6"
    container = harness.container(["sh", "-c", script])
    on_small_disk(container, small_disk)
    container.created("-i")
    client = container.attach()
    container.start()
    client.read_until(b"full\n", stream=3)
    (small_disk / "ballast").unlink()
    client.send(b"x\n")
    client.read_to_end()
    assert container.wait_exit() == "6"
    text = container.log.text()
    assert text.endswith("AFTER\n"), "logging goes on when there is room"
    for line in text.splitlines()[:-1]:
        assert re.fullmatch(r"line \d+ x{29}", line), line
    assert client.stream(2).count(b"\n") == 3001, "clients get all of it"


@target("conmon logs into a file that nobody can find")
def test_a_log_directory_that_went_and_came_again(harness: Harness) -> None:
    folder = harness.home / "logs"
    folder.mkdir()
    container = harness.container(["sh", "-c", "echo one; read x; echo two; exit 4"])
    container.log = Log(folder / "ctr.log")
    container.run("-i")
    wait_until(lambda: container.log.text() == "one\n", what="the first line")
    container.log.path.unlink()
    folder.rmdir()
    container.ctl("2 0 0\n")  # there is nowhere to open it: it must not be the end of anything
    client = container.attach()
    client.send(b"x\n")
    client.read_to_end()
    assert client.stream(2) == b"two\n"
    assert container.wait_exit() == "4"


@target("conmon spins, or ends, where descriptors run out")
def test_running_out_of_descriptors_costs_no_exit_code(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "read x; echo hi; exit 5"])
    argv = ["/bin/sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *container.create_argv("-i")]
    assert container.launch(argv).sync.value()["data"] > 0
    container.start()
    first = container.attach()
    for _ in range(60):
        try:
            container.attach(accepted=False)
        except OSError:
            break
    first.send(b"x\n")
    assert container.wait_exit() == "5"
    assert container.log.text() == "hi\n"
