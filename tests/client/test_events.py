"""Events of an exit directory: what is an exit file and what is not, and real containers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pyconmon_client.errors import PyconmonError, WaitTimeout
from pyconmon_client.events import ExitEvent, ExitEvents, parse_exit_file
from tests.helpers.descriptors import descriptors
from tests.helpers.drive import Drive
from tests.helpers.need import need

Drives = Callable[..., Drive]


def write(directory: Path, name: str, text: str = "0") -> None:
    """As monitors do: a scratch file in the same directory, renamed into place."""
    scratch = directory / f".{name}.ABC123"
    scratch.write_text(text)
    scratch.rename(directory / name)


def take(events: ExitEvents) -> list[tuple[str, int]]:
    return [(event.container_id, event.exit_code) for event in events.take()]


def test_new_exit_files_are_reported_once_and_in_order(tmp_path: Path) -> None:
    write(tmp_path, "old", "9")
    with ExitEvents(tmp_path) as events:
        assert take(events) == []
        for number in range(20):
            write(tmp_path, f"c{number}", str(number))
        assert take(events) == [(f"c{number}", number) for number in range(20)]
        assert take(events) == []
        (tmp_path / "c1").unlink()
        write(tmp_path, "c1", "-1")
        write(tmp_path, "old", "7")
        assert take(events) == [("c1", -1), ("old", 7)]


def test_existing_files_come_first_by_age(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "c", "a"]):
        write(tmp_path, name, str(number))
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    with ExitEvents(tmp_path, existing=True) as events:
        write(tmp_path, "d", "3")
        assert take(events) == [("b", 0), ("c", 1), ("a", 2), ("d", 3)]


def test_what_is_no_exit_file_is_passed_over(tmp_path: Path) -> None:
    with ExitEvents(tmp_path) as events:
        (tmp_path / "half").write_text("1")  # not renamed into place
        for name, text in [("a", ""), ("b", "12 "), ("c", "1_0"), ("d", "٣"), ("e", "9" * 50)]:
            write(tmp_path, name, text)
        (tmp_path / "secret").write_text("5")
        os.symlink(tmp_path / "secret", tmp_path / "link.tmp")
        (tmp_path / "link.tmp").rename(tmp_path / "link")
        os.mkfifo(tmp_path / "fifo.tmp")
        (tmp_path / "fifo.tmp").rename(tmp_path / "fifo")
        (tmp_path / "dir.tmp").mkdir()
        (tmp_path / "dir.tmp").rename(tmp_path / "dir")
        write(tmp_path, "good", "137")
        assert take(events) == [("good", 137)]


def test_lost_events_are_made_up_for(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    need(limit <= 50_000, "an inotify queue that is short enough to overflow")
    with ExitEvents(tmp_path) as events:
        write(tmp_path, "first", "1")
        # Two names in turn: the kernel merges only events that are the same as the one before.
        for _ in range(limit // 2 + 10):
            os.rename(tmp_path / "first", tmp_path / "other")
            os.rename(tmp_path / "other", tmp_path / "first")
        write(tmp_path, "last", "2")
        assert ("last", 2) in take(events)
        assert take(events) == []


def test_wait(tmp_path: Path) -> None:
    with ExitEvents(tmp_path) as events:
        with pytest.raises(WaitTimeout, match="no container ended"):
            events.wait(timeout=0.01)
        timer = threading.Timer(0.05, write, (tmp_path, "c", "3"))
        timer.start()
        event = events.wait(timeout=30)
        timer.join()
    assert event is not None
    assert (event.container_id, event.exit_code) == ("c", 3)
    assert event.finished_at.tzinfo is UTC


def test_close_from_another_thread_ends_the_iteration(tmp_path: Path) -> None:
    before = descriptors()
    events = ExitEvents(tmp_path)
    timer = threading.Timer(0.05, events.close)
    timer.start()
    assert list(events) == []
    timer.join()
    events.close()
    assert descriptors() <= before


def test_a_directory_that_is_not_there_or_goes(tmp_path: Path) -> None:
    with pytest.raises(PyconmonError, match="could not watch"):
        ExitEvents(tmp_path / "none")
    (tmp_path / "d").mkdir()
    with ExitEvents(tmp_path / "d") as events:
        (tmp_path / "d").rmdir()
        with pytest.raises(PyconmonError, match="it is gone"):
            events.wait(timeout=30)


def test_times_are_exact_to_the_microsecond() -> None:
    event = parse_exit_file("c", b"255", 1769880600_123456789)
    moment = datetime(2026, 1, 31, 17, 30, 0, 123456, UTC)
    assert event == ExitEvent("c", 255, moment)


def test_real_containers(drives: Drives) -> None:
    container = drives("sh", "-c", "exit 42")
    begun = datetime.now(UTC).timestamp()
    with ExitEvents(container.exit_dir) as events:
        container.run()
        event = events.wait(timeout=30)
    assert event is not None
    assert (event.container_id, event.exit_code) == (container.ident, 42)
    assert begun - 1 <= event.finished_at.timestamp() <= datetime.now(UTC).timestamp() + 1
