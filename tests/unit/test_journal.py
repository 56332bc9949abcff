"""The journal: whatever store or system call a monitor died at, its successor logs every byte once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyconmon.journal import CAPACITY, MARK_SIZE, MOST_CAPACITY, Journal
from pyconmon.logs import Logs, open_logs
from pyconmon.logs.journald import Fields, Journald
from pyconmon.logs.opening import open_first
from pyconmon.logs.reopening import opener
from tests.helpers.logs import Heard, log_options, logged


class Cut(BaseException):
    """The monitor dies here."""


class Deaths:
    """Counts the steps at which a death would leave something behind, and dies at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for name in ("readv", "splice", "writev", "pread", "ftruncate"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        put = Journal._put

        def dying_put(journal: Journal, place: int, value: int) -> None:
            self.step()
            put(journal, place, value)
            self.step()

        monkeypatch.setattr(Journal, "_put", dying_put)

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*words: Any, **more: Any) -> Any:
            self.step()
            result = call(*words, **more)
            self.step()
            return result

        return dying

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Cut

    def at(self, step: int) -> None:
        """Die at that step, counted from now."""
        self.left = step

    def never(self) -> None:
        self.left = -1


SIZES = [1, MARK_SIZE - 1, MARK_SIZE, MARK_SIZE + 1, 300, 5000]
CHUNKS = [
    (stream, b"".join(b"%d.%d %s\n" % (number, at, b"-" * 60) for at in range(size))[:size])
    for number, size in enumerate(SIZES)
    for stream in (1, 2)
]
WRITTEN = {stream: b"".join(data for other, data in CHUNKS if other == stream) for stream in (1, 2)}


def relay(journal: Journal, logs: Logs, pipes: dict[int, tuple[int, int]], left: list[Any]) -> None:
    """What the pumps do: read all, and more chunks until there are none left."""
    while True:
        for stream, (read_end, _) in pipes.items():
            while (view := journal.read(read_end, stream)) is not None and len(view):
                logs.write(stream, view)
                view.release()
                journal.done()
        if not left:
            return
        stream, data = left.pop(0)
        os.write(pipes[stream][1], data)


def use(journal: Journal, logs: Logs) -> None:
    logs.checkpoint, logs.timestamp, logs.keep = journal.checkpoint, journal.timestamp, journal


def one_life(
    path: Path,
    make_logs: Callable[[Journal | None], Logs],
    deaths: Deaths,
    step: int,
    between: Callable[[], None] = lambda: None,
) -> bool:
    """Relay, die at that step, and have a successor relay the rest; False if no such step was met.

    `make_logs` gets the dead monitor's journal; `between` is what happens while nobody watches.
    """
    pipes = {stream: os.pipe() for stream in (1, 2)}
    for read_end, _ in pipes.values():
        os.set_blocking(read_end, False)
    left = list(CHUNKS)
    journal, logs = Journal(str(path), create=True), make_logs(None)
    use(journal, logs)
    logs.tell(journal)
    deaths.at(step)
    died = False
    try:
        relay(journal, logs, pipes, left)
    except Cut:
        died = True
    deaths.never()
    logs.close()
    journal.close(remove=False)
    del journal  # a view of it may still have been exported
    journal = Journal(str(path), create=False)
    between()
    logs = make_logs(journal)
    use(journal, logs)
    logs.restore(journal.held())
    unlogged = journal.unlogged()
    if unlogged is not None:
        logs.resume(*unlogged)
        journal.clear()
    logs.tell(journal)
    relay(journal, logs, pipes, left)
    logs.finish(True, False)
    logs.close()
    journal.close(remove=True)
    for ends in pipes.values():
        os.close(ends[0])
        os.close(ends[1])
    return died


@pytest.mark.parametrize(
    "changes",
    [{}, {"log_size_max": 3000, "log_rotate": True, "log_max_files": 50}],
    ids=["plain", "rotating"],
)
@pytest.mark.parametrize("deed", ["nothing", "moved", "deleted"])
def test_every_cut_point_with_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], deed: str
) -> None:
    """Also if others put a link in the place of the log while nobody watches."""
    deaths = Deaths(monkeypatch)
    precious = tmp_path / "precious"
    precious.touch()
    step = 0
    while True:
        step += 1 if deed == "nothing" else 3
        home = tmp_path / str(step)
        home.mkdir()
        log = home / "ctr.log"
        options = log_options(log, **changes)
        older: list[int] = []
        gone = b""

        def make_logs(journal: Journal | None) -> Logs:
            open_it = open_first if journal is None else opener(journal.known_log(), Heard())  # type: ignore[arg-type]
            logs = open_logs(options, Heard(), open_it)  # type: ignore[arg-type]  # noqa: B023
            logs.load()
            return logs

        def between() -> None:
            nonlocal gone
            older.extend(part.stat().st_ino for part in home.glob("ctr.log.[0-9]*"))  # noqa: B023
            if deed == "nothing":
                return
            if deed == "deleted":
                gone = log.read_bytes()  # noqa: B023
                log.unlink()  # noqa: B023
            else:
                log.rename(home / "moved")  # noqa: B023
            log.symlink_to(precious)  # noqa: B023

        died = one_life(home / "journal", make_logs, deaths, step, between)
        parts = sorted(home.glob("ctr.log.[0-9]*"), key=lambda part: -int(part.suffix[1:]))
        before = [part for part in parts if part.stat().st_ino in older]
        after = [*(part for part in parts if part not in before), log]
        if deed == "moved":
            before.append(home / "moved")
        for stream, name in ((1, b"stdout"), (2, b"stderr")):
            first, last = (
                logged(b"".join(part.read_bytes() for part in some), name)
                for some in (before, after)
            )
            if deed == "deleted":
                # What was being written may be in the deleted file and in the new one, or in both.
                assert WRITTEN[stream].endswith(last), f"death at step {step}"
                there = len(WRITTEN[stream]) - len(last)
                assert len(first) <= there <= len(first + logged(gone, name)), f"step {step}"
            else:
                assert first + last == WRITTEN[stream], f"death at step {step}"
        assert precious.stat().st_size == 0
        if not died:
            break
    assert step > 300


def test_which_file_is_the_log(tmp_path: Path) -> None:
    """It is kept; one that a rotation was about to put there only until that is done."""
    journal = Journal(str(tmp_path / "journal"), create=True)
    assert journal.known_log() is None
    file = tmp_path.stat()
    described = file.st_dev, file.st_ino, 0o040000, file.st_uid, file.st_nlink
    journal.note_log((1, 2, 3), file)
    assert journal.known_log() == ((1, 2, 3), described, 0)
    journal.announce_log(77)
    assert journal.known_log() == ((1, 2, 3), described, 77)
    journal.note_log(None, file)
    assert journal.known_log() == (None, described, 0)
    journal.close(remove=True)


def test_every_cut_point_with_the_systems_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one message that was being sent may come twice; none is lost, torn or out of order."""
    deaths = Deaths(monkeypatch)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "socket"))
    server.setblocking(False)

    def received() -> dict[bytes, list[bytes]]:
        found: dict[bytes, list[bytes]] = {b"6": [], b"3": []}
        while True:
            try:
                entry = server.recv(1 << 17)
            except BlockingIOError:
                return found
            size = int.from_bytes(entry[8:16], "little")
            message = entry[16 : 16 + size]
            if not entry.startswith(b"MESSAGE\n"):
                message = entry.partition(b"\n")[0].removeprefix(b"MESSAGE=")
            for priority, messages in found.items():
                if b"\nPRIORITY=%b\n" % priority in entry:
                    messages.append(message)

    def make_logs(journal: Journal | None) -> Logs:
        logs = Logs(Heard())  # type: ignore[arg-type]
        logs.journal = Journald(
            Fields(b"0123456789abcdef", None, None),
            Heard(),  # type: ignore[arg-type]
            str(tmp_path / "socket"),
        )
        return logs

    # Sent in the middle of everything, so that the server's queue does not fill up.
    got: dict[bytes, list[bytes]] = {}
    plain = Journald._deliver

    def deliver(driver: Journald, messages: list[tuple[bytes, bytes, bool]]) -> None:
        for message in messages:
            plain(driver, [message])
            for priority, more in received().items():
                got.setdefault(priority, []).extend(more)

    monkeypatch.setattr(Journald, "_deliver", deliver)
    step = 0
    while True:
        step += 5  # there are many, and they are alike
        got.clear()
        died = one_life(tmp_path / f"journal-{step}", make_logs, deaths, step)
        for priority, more in received().items():
            got.setdefault(priority, []).extend(more)
        twice = 0
        for stream, priority in ((1, b"6"), (2, b"3")):
            messages = got[priority]
            expected = WRITTEN[stream].splitlines(keepends=True)
            if len(messages) > len(expected):
                twice += 1
                at = next(
                    at for at, (a, b) in enumerate(zip(messages, expected, strict=False)) if a != b
                )
                del messages[at]
            assert messages == expected, f"death at step {step}"
        assert twice <= 1
        if not died:
            break
    server.close()


def test_only_one_has_it(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    first = Journal(path, create=True)
    for create in (True, False):
        with pytest.raises(BlockingIOError):
            Journal(path, create=create)
    first.close(remove=False)
    second = Journal(path, create=False)
    second.close(remove=True)
    assert not os.path.exists(path)
    with pytest.raises(FileNotFoundError):
        Journal(path, create=False)


def test_a_lock_on_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who meet: one opens the file, the other removes it and lets go before the first locks it."""
    import fcntl

    path = str(tmp_path / "journal")
    Journal(path, create=True).close(remove=False)
    flock = fcntl.flock

    def slow(fd: int, how: int) -> None:
        if os.path.exists(path):
            os.unlink(path)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(FileNotFoundError):
        Journal(path, create=False)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"\0" * 500000, b"pyconmon journal 2\n" * 30000]
)
def test_garbage_is_no_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(OSError, match="no journal"):
        Journal(str(path), create=False)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "journal").symlink_to(victim)
    for create in (True, False):
        with pytest.raises(OSError):
            Journal(str(tmp_path / "journal"), create=create)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("place", [48, 56, 64, 72, 80, 88, 104, 128])
def test_garbage_in_a_field_is_survived(tmp_path: Path, place: int) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path), create=True)
    read_end, write_end = os.pipe()
    os.write(write_end, b"z" * 100)
    view = journal.read(read_end, 1)
    assert view is not None
    view.release()
    journal.close(remove=False)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 8)
    journal = Journal(str(path), create=False)
    journal.unlogged()
    journal.held()
    journal.clear()
    assert journal.unlogged() is None
    journal.close(remove=True)
    os.close(read_end)
    os.close(write_end)


def test_it_grows_for_a_quick_container(tmp_path: Path) -> None:
    import fcntl

    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(write_end, False)
    written = os.write(write_end, b"q" * (1 << 20))
    journal = Journal(str(tmp_path / "journal"), create=True)
    view = journal.read(read_end, 1)
    assert view is not None
    assert len(view) == min(written, MOST_CAPACITY) or len(view) == CAPACITY
    size = len(view)
    view.release()
    journal.close(remove=False)
    journal = Journal(str(tmp_path / "journal"), create=False)
    unlogged = journal.unlogged()
    assert unlogged is not None
    assert unlogged[1] == b"q" * size
    journal.close(remove=True)
    os.close(read_end)
    os.close(write_end)


def test_a_full_disk_costs_protection_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path / "journal"), create=True)
    read_end, write_end = os.pipe()

    def full(*words: object, **more: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "splice", full)
    monkeypatch.setattr(os, "posix_fallocate", full)
    os.write(write_end, b"ab")
    view = journal.read(read_end, 1)
    assert view is not None and bytes(view) == b"ab"
    journal.done()
    os.write(write_end, b"c" * 60000)
    view = journal.read(read_end, 1)
    assert view is not None and bytes(view) == b"c" * 60000
    view.release()
    journal.done()
    journal.close(remove=True)
    os.close(read_end)
    os.close(write_end)
