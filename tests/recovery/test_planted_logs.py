"""What others put at the log's path while nobody watches: it is not written to, and the code arrives."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import recovering
from tests.helpers.drive import Drive
from tests.helpers.recovering import JOURNAL, box, kill_monitor, recovered, wait_kept
from tests.helpers.waiting import wait_until

Make = Callable[..., Drive]

SCRIPT = """
i=0
while [ ! -e /box/stop ]; do echo $i; i=$((i+1)); [ $((i % 50)) != 0 ] || sleep 0.01; done
exit 6
"""


def counting(drive: Make, where: Path, **settings: object) -> Drive:
    """A container that numbers its lines, some of which are in the log."""
    container = wait_kept(drive(["sh", "-c", SCRIPT], edit=box(where / "box"), **settings).run())
    wait_until(lambda: container.log.stat().st_size > 5000, what="a log")
    return container


def finish(container: Drive, where: Path) -> None:
    """Some more lines after the recovery, then the end; the code has to arrive."""
    (where / "box/stop").touch()
    assert container.wait_exit() == 6
    container.wait_monitor()
    assert not (container.directory / recovering.STATE).exists()


def numbers(*logs: Path) -> list[int]:
    """The numbers in these logs, all of whose records have to be whole."""
    text = b"".join(log.read_bytes() for log in logs)
    lines = text.split(b"\n")
    assert lines.pop() == b""
    for line in lines:
        assert re.fullmatch(rb"[\d-]{10}T[\d:.]{18}[+-]\d\d:\d\d stdout F \d+", line), line
    return [int(line.rpartition(b" ")[2]) for line in lines]


def complete(found: list[int], first: int = 0) -> None:
    """Each line once and in order; some, because the container went on for a while."""
    assert len(found) > 10
    assert found == list(range(first, first + len(found)))


def plant(path: Path, what: str, precious: Path) -> None:
    if what == "link":
        path.symlink_to(precious)
    elif what == "dangling link":
        path.symlink_to(precious.parent / "nothing")
    elif what == "hard link":
        path.hardlink_to(precious)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "strange file":
        path.write_text("strange")
        os.chown(path, 12345, 12345)
        path.chmod(0o666)
    elif what == "directory":
        (path / "full").mkdir(parents=True)
    else:
        assert what == "nothing"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


def untouched(precious: Path) -> None:
    assert precious.read_text() == "precious"
    assert not (precious.parent / "nothing").exists()


PLANTS = ["link", "dangling link", "hard link", "fifo", "strange file", "nothing"]


@pytest.mark.parametrize("kept", [True, False], ids=["moved", "deleted"])
@pytest.mark.parametrize("what", PLANTS)
def test_a_new_log_replaces_what_was_planted(
    drive: Make, tmp_path: Path, precious: Path, what: str, kept: bool
) -> None:
    container = counting(drive, tmp_path)
    kill_monitor(container)
    before = len(container.log.read_bytes().splitlines())
    moved = container.log.with_name("moved")
    if kept:
        container.log.rename(moved)
    else:
        container.log.unlink()
    plant(container.log, what, precious)
    recovered(container)
    wait_until(lambda: container.log.stat().st_size > 2000, what="the log to go on")
    finish(container, tmp_path)
    untouched(precious)
    assert container.log.is_file() and not container.log.is_symlink()
    assert container.log.stat().st_mode & 0o777 == 0o640
    if kept:
        complete(numbers(moved, container.log))
    else:
        # What the dead monitor had in hand may be in the deleted file as well.
        found = numbers(container.log)
        assert found[0] <= before
        complete(found, found[0])
    # Nor has anything been left beside it.
    names = {name for name in os.listdir(container.log.parent) if name.startswith(("ctr", "moved"))}
    assert names == {"ctr.log", "moved"} if kept else {"ctr.log"}


def test_a_directory_is_in_the_way(drive: Make, tmp_path: Path, precious: Path) -> None:
    """Nothing can be logged, which is said; the code arrives."""
    container = counting(drive, tmp_path)
    kill_monitor(container)
    container.log.unlink()
    plant(container.log, "directory", precious)
    done = recovering.recover(container.directory)
    assert done.returncode == 0
    assert "Failed to open log file" in done.stderr
    assert recovering.watched(container)
    finish(container, tmp_path)
    assert os.listdir(container.log) == ["full"]
    untouched(precious)


def test_what_was_planted_is_said(drive: Make, tmp_path: Path, precious: Path) -> None:
    container = counting(drive, tmp_path)
    kill_monitor(container)
    container.log.unlink()
    container.log.symlink_to(precious)
    done = recovering.recover(container.directory)
    assert done.returncode == 0
    assert f"{container.log} is not the log any more" in done.stderr
    finish(container, tmp_path)


def test_a_rotation_by_others_is_respected(drive: Make, tmp_path: Path) -> None:
    """Renamed, and a new file made by somebody with our own rights: that one is the log."""
    container = counting(drive, tmp_path)
    kill_monitor(container)
    moved = container.log.with_name("moved")
    container.log.rename(moved)
    container.log.touch()
    fresh = container.log.stat().st_ino
    recovered(container)
    wait_until(lambda: container.log.stat().st_size > 2000, what="the log to go on")
    finish(container, tmp_path)
    assert container.log.stat().st_ino == fresh
    complete(numbers(moved, container.log))


@pytest.mark.parametrize("early", [True, False], ids=["from the start", "meanwhile"])
def test_a_log_with_a_second_name(drive: Make, tmp_path: Path, early: bool) -> None:
    """One that came while nobody watched could be anything; nothing is lost with a new file."""
    second = tmp_path / "second"
    container = drive(["sh", "-c", SCRIPT], edit=box(tmp_path / "box"))
    if early:
        second.touch()
        container.log.hardlink_to(second)
    wait_kept(container.run())
    wait_until(lambda: container.log.stat().st_size > 5000, what="a log")
    kill_monitor(container)
    if not early:
        second = container.log.with_name("second")
        second.hardlink_to(container.log)
    recovered(container)
    finish(container, tmp_path)
    assert second.samefile(container.log) == early
    complete(numbers(second) if early else numbers(second, container.log))


def test_planted_after_rotations(drive: Make, tmp_path: Path, precious: Path) -> None:
    """Which file is the log changes in its life."""
    options = ["--log-size-max", "4000", "--log-rotate", "--log-max-files", "2000"]
    container = wait_kept(
        drive(["sh", "-c", SCRIPT], edit=box(tmp_path / "box"), options=options).run()
    )
    first = container.log.with_name("ctr.log.1")
    wait_until(first.exists, what="a rotation")
    kill_monitor(container)
    recovered(container)
    size = len(list(container.directory.glob("ctr.log.*")))
    wait_until(lambda: len(list(container.directory.glob("ctr.log.*"))) > size, what="another")
    kill_monitor(container)
    moved = container.log.with_name("moved")
    container.log.rename(moved)
    container.log.hardlink_to(precious)
    older = sorted(container.directory.glob("ctr.log.*"), key=lambda part: -int(part.suffix[1:]))
    kept = [path.open("rb") for path in older]
    recovered(container)
    finish(container, tmp_path)
    for file in kept:
        file.close()
    untouched(precious)
    rotated = sorted(container.directory.glob("ctr.log.*"), key=lambda part: -int(part.suffix[1:]))
    parts = [*rotated[: len(older)], moved, *rotated[len(older) :], container.log]
    complete(numbers(*parts))


# --- links of the caller's


@pytest.fixture
def linked(drive: Make, tmp_path: Path) -> Drive:
    """A container whose log path was a link from the beginning."""
    container = drive(["sh", "-c", SCRIPT], edit=box(tmp_path / "box"))
    (tmp_path / "logs").mkdir()
    container.log.symlink_to("../logs/target")
    wait_kept(container.run())
    wait_until(lambda: container.log.stat().st_size > 5000, what="a log")
    return container


def test_a_link_of_the_callers_goes_on(linked: Drive, tmp_path: Path) -> None:
    kill_monitor(linked)
    recovered(linked)
    finish(linked, tmp_path)
    assert linked.log.is_symlink()
    complete(numbers(tmp_path / "logs/target"))


@pytest.mark.parametrize("fresh", [True, False], ids=["created", "missing"])
def test_a_rotation_behind_a_link_of_the_callers(
    linked: Drive, tmp_path: Path, fresh: bool
) -> None:
    kill_monitor(linked)
    target, moved = tmp_path / "logs/target", tmp_path / "logs/moved"
    target.rename(moved)
    if fresh:
        target.touch()
    recovered(linked)
    wait_until(lambda: target.stat().st_size > 2000, what="the log to go on")
    finish(linked, tmp_path)
    assert linked.log.is_symlink()
    first = numbers(moved)
    complete(first)
    second = numbers(target)
    # The end of what the dead monitor had in hand is in either of them.
    complete(second, second[0])
    assert second[0] <= first[-1] + 1


@pytest.mark.parametrize("what", ["link", "hard link", "fifo"])
def test_another_link_than_the_callers_is_not_followed(
    linked: Drive, tmp_path: Path, precious: Path, what: str
) -> None:
    kill_monitor(linked)
    linked.log.unlink()
    plant(linked.log, what, precious)
    recovered(linked)
    wait_until(lambda: linked.log.stat().st_size > 2000, what="the log to go on")
    finish(linked, tmp_path)
    untouched(precious)
    assert linked.log.is_file() and not linked.log.is_symlink()
    complete(found := numbers(linked.log), found[0])


@pytest.mark.parametrize("what", ["link", "dangling link", "hard link", "fifo"])
def test_planted_behind_a_link_of_the_callers(
    linked: Drive, tmp_path: Path, precious: Path, what: str
) -> None:
    """What a link of the caller's leads to is not replaced: then there is no log."""
    kill_monitor(linked)
    target = tmp_path / "logs/target"
    target.unlink()
    plant(target, what, precious)
    done = recovering.recover(linked.directory)
    assert done.returncode == 0
    assert "Failed to open log file" in done.stderr
    finish(linked, tmp_path)
    untouched(precious)


def test_a_living_monitor_does_not_follow_another_link(
    linked: Drive, tmp_path: Path, precious: Path
) -> None:
    linked.log.unlink()
    linked.log.symlink_to(precious)
    linked.ctl("2 0 0")
    wait_until(lambda: not linked.log.is_symlink(), what="a fresh log")
    finish(linked, tmp_path)
    untouched(precious)


# --- logs that are no files


def test_a_fifo_of_the_callers_goes_on(drive: Make, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    script = "echo 1; while [ ! -e /box/stop ]; do sleep 0.05; done; echo 2; exit 6"
    container = drive(["sh", "-c", script], edit=box(tmp_path / "box"), log=[f"k8s-file:{fifo}"])
    wait_kept(container.run())
    try:
        wait_until(lambda: os.read(reader, 1000).endswith(b" F 1\n"), what="the first line")
        kill_monitor(container)
        recovered(container)
        finish(container, tmp_path)
        assert os.read(reader, 1000).endswith(b" F 2\n")
    finally:
        os.close(reader)


def test_a_device_is_not_replaced(drive: Make, tmp_path: Path, precious: Path) -> None:
    """It was not a file that we wrote: what is there instead may be a part of the machine."""
    null = tmp_path / "null"
    os.mknod(null, 0o020666, os.makedev(1, 3))
    script = "echo 1; while [ ! -e /box/stop ]; do sleep 0.05; done; echo 2; exit 6"
    container = drive(["sh", "-c", script], edit=box(tmp_path / "box"), log=[f"k8s-file:{null}"])
    wait_kept(container.run())
    kill_monitor(container)
    recovered(container)
    kill_monitor(container)
    null.unlink()
    null.symlink_to(precious)
    assert "Failed to open log file" in recovering.recover(container.directory).stderr
    finish(container, tmp_path)
    assert null.readlink() == precious
    untouched(precious)


# --- when it is not known which file was the log


def test_without_its_journal_a_file_goes_on(drive: Make, tmp_path: Path) -> None:
    container = counting(drive, tmp_path)
    kill_monitor(container)
    (container.directory / JOURNAL).unlink()
    inode = container.log.stat().st_ino
    recovered(container)
    finish(container, tmp_path)
    assert container.log.stat().st_ino == inode
    numbers(container.log)


@pytest.mark.parametrize("what", ["link", "hard link", "fifo"])
def test_without_its_journal_nothing_is_followed(
    drive: Make, tmp_path: Path, precious: Path, what: str
) -> None:
    container = counting(drive, tmp_path)
    kill_monitor(container)
    (container.directory / JOURNAL).unlink()
    container.log.unlink()
    plant(container.log, what, precious)
    recovered(container)
    finish(container, tmp_path)
    untouched(precious)
