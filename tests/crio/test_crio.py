"""CRI-O's calls replayed: what it asks of a monitor, in its order and as strictly."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.crio.double import (
    Captured,
    Crio,
    CrioError,
    ExecResult,
    Watch,
    parse_log,
    strict_integer,
)
from tests.helpers import runtimes
from tests.helpers.bundles import make_bundle, process_spec
from tests.helpers.harness import target
from tests.helpers.need import need_program, need_root
from tests.helpers.spawning import spawn
from tests.helpers.waiting import gone, wait_until


@dataclass
class Pod:
    """One container of a daemon."""

    crio: Crio
    cid: str
    bundle: Path
    log: Path

    def create(self, **how: Any) -> int:
        return self.crio.create(self.bundle, self.cid, self.log, **how)

    def run(self, **how: Any) -> int:
        pid = self.create(**how)
        self.crio.start(self.cid)
        return pid

    def exec(self, *args: str, **how: Any) -> ExecResult:
        return self.crio.exec_sync(process_spec(args), self.cid, **how)

    def wait_exit(self) -> int:
        wait_until((self.crio.exits / self.cid).exists, 30, "the exit file")
        return self.crio.exit_code(self.cid)

    def attach(self) -> socket.socket:
        made = self.crio.attach(self.bundle, self.cid)
        made.settimeout(30)
        return made


@pytest.fixture
def crio(monitor_path: Path, tmp_path: Path, runtime_root: Path) -> Iterator[Crio]:
    need_root()
    made = Crio(tmp_path, monitor_path, Path(need_program("runc")), runtime_root)
    yield made
    runtimes.delete_all(runtimes.runc(runtime_root))
    for pidfile in tmp_path.rglob("conmon-pidfile"):
        pid = int(pidfile.read_text())
        wait_until(partial(gone, pid), 20, "the monitor's end")


@pytest.fixture
def pod(crio: Crio, tmp_path: Path) -> Callable[..., Pod]:
    counter = iter(range(100))

    def make(*args: str, terminal: bool = False) -> Pod:
        cid = f"{tmp_path.name[:20]}{next(counter)}".replace("_", "-") + os.urandom(4).hex()
        logs = tmp_path / "logs" / cid
        logs.mkdir(parents=True)
        bundle = make_bundle(tmp_path / cid, args, terminal)
        return Pod(crio, cid, bundle, logs / "0.log")

    return make


def received(client: socket.socket) -> dict[int, bytes]:
    """Everything up to the end, by stream; CRI-O's buffer has 8193 bytes."""
    streams: dict[int, bytes] = {2: b"", 3: b""}
    while True:
        try:
            packet = client.recv(8193)
        except ConnectionResetError:
            return streams
        if not packet:
            return streams
        streams[packet[0]] += packet[1:]


# --- create


@pytest.mark.parametrize("terminal", [False, True])
def test_a_whole_life(pod: Callable[..., Pod], terminal: bool) -> None:
    each = pod("sh", "-c", "echo out; echo err >&2; exit 3", terminal=terminal)
    pid = each.create(terminal=terminal)
    assert strict_integer((each.bundle / "pidfile").read_text()) == pid
    monitor = strict_integer((each.bundle / "conmon-pidfile").read_text())
    assert os.getpgid(monitor) != os.getpgid(0)
    each.crio.start(each.cid)
    assert each.wait_exit() == 3
    text = each.log.read_bytes()
    assert b" stdout F out" in text
    assert (b" stderr F err" in text) == (not terminal)


def test_the_persist_file_is_there_at_the_event_of_the_exit_file(pod: Callable[..., Pod]) -> None:
    for _ in range(5):
        each = pod("sh", "-c", "exit 7")
        watch = Watch(each.crio.exits)
        each.run()
        watch.wait_for(each.cid, created=True)
        assert (each.crio.persist_dir(each.cid) / "exit").read_text() == "7"
        assert (each.crio.exits / each.cid).read_text() == "7"
        watch.close()


def test_only_complete_files_get_their_name(pod: Callable[..., Pod]) -> None:
    """The watcher ignores other names in the directory, but not this one with half a text."""
    each = pod("sh", "-c", "exit 255")
    watch = Watch(each.crio.exits)
    each.run()
    watch.wait_for(each.cid)
    assert (each.crio.exits / each.cid).read_text() == "255"
    watch.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_create_that_fails_has_its_message(pod: Callable[..., Pod], terminal: bool) -> None:
    each = pod("/nope", terminal=terminal)
    with pytest.raises(CrioError, match="no such file or directory"):
        each.create(terminal=terminal)


def test_a_created_container_that_is_killed(pod: Callable[..., Pod]) -> None:
    each = pod("true")
    each.create()
    each.crio.run_runtime("kill", each.cid, "KILL")
    assert each.wait_exit() == 137


# --- exec sync


def test_exec_sync(pod: Callable[..., Pod]) -> None:
    each = pod("sleep", "1000")
    each.run()
    done = each.exec("sh", "-c", "echo out; echo err >&2; printf unfinished; exit 42")
    assert done == ExecResult(42, b"out\nunfinished", b"err\n")
    assert each.exec("true") == ExecResult(0, b"", b"")
    assert each.exec("sh", "-c", "kill -9 $$").exit_code == 137


def test_exec_sync_with_a_terminal(pod: Callable[..., Pod]) -> None:
    """The captured pipes have to end, although a terminal keeps no pipe."""
    each = pod("sleep", "1000")
    each.run()
    done = each.exec("sh", "-c", "echo out; exit 5", terminal=True)
    assert done == ExecResult(5, b"out\r\n", b"")


def test_exec_sync_of_a_failure_has_the_message(pod: Callable[..., Pod]) -> None:
    """The pid file is there before, and empty: that must not hide the failure."""
    each = pod("sleep", "1000")
    each.run()
    with pytest.raises(CrioError, match="no such file or directory"):
        each.exec("/nope")
    with pytest.raises(CrioError, match="permission denied"):
        each.exec("/etc")
    with pytest.raises(CrioError, match="no such file or directory"):
        each.exec("/nope", timeout=10)


def test_exec_sync_in_a_container_that_has_ended(pod: Callable[..., Pod]) -> None:
    each = pod("true")
    each.run()
    each.wait_exit()
    with pytest.raises(CrioError, match=r"stopped|not running"):
        each.exec("true")


@pytest.mark.parametrize("terminal", [False, True])
def test_exec_sync_that_times_out(pod: Callable[..., Pod], terminal: bool) -> None:
    each = pod("sleep", "1000")
    each.run()
    begun = time.monotonic()
    done = each.exec("sh", "-c", "echo a; exec sleep 777", timeout=1, terminal=terminal)
    assert done == ExecResult(-1, b"", b"command timed out")
    assert time.monotonic() - begun < 20
    wait_until(lambda: only_one(each), what="the death of the command")


def only_one(each: Pod) -> bool:
    return each.crio.run_runtime("ps", "--format", "json", each.cid).count(",") == 0


def test_exec_sync_output_is_complete(pod: Callable[..., Pod]) -> None:
    each = pod("sleep", "1000")
    each.run()
    expected = b"".join(b"%d\n" % n for n in range(1, 20001))
    for _ in range(5):
        done = each.exec("sh", "-c", "seq 1 20000; exit 3")
        assert done == ExecResult(3, expected, b"")


@pytest.mark.parametrize(("cap", "size"), [(16 * 1024 * 1024, 20_000_000), (4096, 100_000)])
def test_exec_sync_output_is_capped(pod: Callable[..., Pod], cap: int, size: int) -> None:
    """The command runs to its end all the same, with its own code."""
    each = pod("sleep", "1000")
    each.run()
    line = "x" * 99
    done = each.exec("sh", "-c", f"yes {line} | head -c {size}; exit 6", cap=cap)
    assert done.exit_code == 6
    # The log has 44 bytes before each line, and the last line may go beyond the cap.
    assert done.stdout
    assert len(done.stdout) // 100 * 144 <= cap + 144
    assert set(done.stdout.split()) == {line.encode()}


def test_exec_sync_leaves_nothing_running(pod: Callable[..., Pod]) -> None:
    each = pod("sleep", "1000")
    each.run()
    done = each.exec("sh", "-c", "sleep 888 & echo done")
    assert done == ExecResult(0, b"done\n", b"")


def test_exec_syncs_at_once(pod: Callable[..., Pod]) -> None:
    import concurrent.futures

    each = pod("sleep", "1000")
    each.run()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(each.exec, "sh", "-c", f"echo {n}; exit {n}") for n in range(12)]
        for number, job in enumerate(jobs):
            assert job.result(60) == ExecResult(number, b"%d\n" % number, b"")


# --- logs


def test_reopening_the_log(pod: Callable[..., Pod]) -> None:
    """The kubelet renames the file; CRI-O then waits for a new one, without a limit."""
    each = pod("sh", "-c", "echo one; read x; echo two; read x")
    each.run(stdin=True)
    client = each.attach()

    def logged(word: str) -> bool:
        return each.log.read_text().endswith(f" stdout F {word}\n")

    for word in ("one", "two"):
        wait_until(partial(logged, word), what="the line")
        each.log.rename(each.log.with_name(f"{word}.log"))
        each.crio.reopen_log(each.bundle, each.log)
        assert each.log.read_bytes() == b""
        client.send(b"x\n")
    client.close()
    for word in ("one", "two"):
        text = each.log.with_name(f"{word}.log").read_text()
        assert text.endswith(f" stdout F {word}\n")
        assert text.count("\n") == 1
    assert each.wait_exit() == 0


def test_reopening_under_fire_loses_nothing(pod: Callable[..., Pod]) -> None:
    count = 30_000
    each = pod("sh", "-c", f"seq 1 {count}; echo end >&2; read x")
    each.run(stdin=True)
    names = []
    for number in range(5):
        moved = each.log.with_name(f"moved-{number}.log")
        each.log.rename(moved)
        names.append(moved)
        each.crio.reopen_log(each.bundle, each.log)
    names.append(each.log)
    wait_until(lambda: b"stderr F end\n" in b"".join(p.read_bytes() for p in names), what="the end")
    stdout, stderr = parse_log(b"".join(path.read_bytes() for path in names))
    assert stdout == b"".join(b"%d\n" % n for n in range(1, count + 1))
    assert stderr == b"end\n"


# --- attach


def test_attach_with_half_close(pod: Callable[..., Pod]) -> None:
    each = pod("sh", "-c", "cat; echo err >&2; exit 5")
    each.run(stdin=True, stdin_once=True)
    client = each.attach()
    client.send(b"hello\n")
    client.shutdown(socket.SHUT_WR)
    assert received(client) == {2: b"hello\n", 3: b"err\n"}
    client.close()
    assert each.wait_exit() == 5


def test_attach_again_when_stdin_stays_open(pod: Callable[..., Pod]) -> None:
    each = pod("sh", "-c", "read a; read b; echo $a$b; exit 4")
    each.run(stdin=True)
    first = each.attach()
    first.send(b"one\n")
    first.close()
    second = each.attach()
    second.send(b"two\n")
    assert received(second)[2] == b"onetwo\n"
    second.close()
    assert each.wait_exit() == 4


def test_attach_with_a_terminal(pod: Callable[..., Pod]) -> None:
    each = pod("sh", "-c", "stty size; read x; stty size; exit 2", terminal=True)
    each.create(terminal=True)
    with open(each.bundle / "ctl", "wb", buffering=0) as control:
        control.write(b"1 24 80\n")
    client = each.attach()
    each.crio.start(each.cid)
    client.send(b"x\n")
    text = received(client)[2]
    client.close()
    assert text.endswith(b"24 80\r\n")
    assert each.wait_exit() == 2


@target("2.1.6 leaves the link behind")
def test_the_link_in_the_socket_directory_goes(pod: Callable[..., Pod]) -> None:
    each = pod("true")
    each.create()
    assert os.listdir(each.crio.sockets) == [each.cid]
    each.crio.start(each.cid)
    each.wait_exit()
    wait_until(lambda: os.listdir(each.crio.sockets) == [], what="the removal of the link")


# --- the daemon dies and comes again


def test_a_daemon_that_is_killed_finds_its_container_again(pod: Callable[..., Pod]) -> None:
    each = pod("sh", "-c", "read x; echo got $x; exit 9")
    ready = each.crio.directory / "ready"
    daemon = os.fork()
    if daemon == 0:  # a daemon of its own: it creates, and then hangs until it is killed
        try:
            each.create(stdin=True)
            ready.touch()
            signal.pause()
        finally:
            os._exit(1)
    try:
        wait_until(ready.exists, 30, "the create")
    finally:
        os.kill(daemon, signal.SIGKILL)
        os.waitpid(daemon, 0)
    monitor = strict_integer((each.bundle / "conmon-pidfile").read_text())
    assert not gone(monitor)
    again = Crio(each.crio.directory, each.crio.monitor, each.crio.runtime, each.crio.runtime_root)
    restored = Pod(again, each.cid, each.bundle, each.log)
    again.start(each.cid)
    assert restored.exec("sh", "-c", "echo hi; exit 3") == ExecResult(3, b"hi\n", b"")
    client = restored.attach()
    client.send(b"it\n")
    assert received(client)[2] == b"got it\n"
    client.close()
    assert restored.wait_exit() == 9


def test_a_daemon_killed_during_an_exec_leaves_no_trace(pod: Callable[..., Pod]) -> None:
    each = pod("sleep", "1000")
    each.run()
    daemon = os.fork()
    if daemon == 0:
        try:
            each.exec("sh", "-c", "echo begun >/tmp/begun; sleep 2; exit 3")
        finally:
            os._exit(1)
    try:
        begun = ("sh", "-c", "cat /tmp/begun 2>/dev/null")
        wait_until(lambda: each.exec(*begun).stdout == b"begun\n", 30, "the command")
    finally:
        os.kill(daemon, signal.SIGKILL)
        os.waitpid(daemon, 0)
    assert each.exec("sh", "-c", "exit 4").exit_code == 4
    wait_until(lambda: only_one(each), 30, "the command's end")


# --- what it asks first


def test_the_version_is_understood(crio: Crio) -> None:
    captured = Captured(1, 2)
    process = spawn([str(crio.monitor), "--version"], env={}, fds=captured.fds)
    captured.started()
    assert process.wait() == 0
    captured.finish()
    fields = (captured.output[1] + captured.output[2]).split()
    assert len(fields) >= 3
    numbers = tuple(strict_integer(word) for word in fields[2].decode().split("."))
    assert len(numbers) == 3
    assert numbers >= (2, 1, 2)
