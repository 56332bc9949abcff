"""Disks that are full, folders that go away, limits that are reached: the exit code arrives all the same."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import recovering
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON, ROOT
from tests.helpers.need import need, need_root
from tests.helpers.recovering import STATE, box, kill_monitor, recovered, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB."""
    need_root()
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", where], capture_output=True
    )
    need(mounted.returncode == 0, "the right to mount a tmpfs")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def records(log: Path) -> list[bytes]:
    """The texts of a log; each record has to be whole."""
    texts = []
    for line in log.read_bytes().split(b"\n")[:-1]:
        stamp, stream, tag, text = line.split(b" ", 3)
        assert len(stamp) == 35 and stream in (b"stdout", b"stderr") and tag in (b"F", b"P"), line
        texts.append(text)
    return texts


def test_a_full_log_disk_that_is_freed(drive: Make, tmp_path: Path, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    script = (
        "seq 1 20000; while [ ! -e /box/freed ]; do sleep 0.05; done; echo AFTER; "
        "while [ ! -e /box/stop ]; do sleep 0.05; done; exit 4"
    )
    log = small_disk / "ctr.log"
    container = drive(["sh", "-c", script], edit=box(tmp_path / "box"), log=[f"k8s-file:{log}"])
    container.create()
    client = container.attach()
    container.start()
    client.until(b"\n20000\n")
    assert client.stdout == b"".join(b"%d\n" % n for n in range(1, 20001)), "clients get everything"
    ballast.unlink()
    (tmp_path / "box/freed").touch()
    wait_until(lambda: b"AFTER" in records(log), what="logging to go on")
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 4
    texts = records(log)
    assert texts[0] == b"1"
    # A read may end just before a newline (one does where a line ends the pipe's first 8 KiB): what
    # is left of that line is a record without text.
    bad = [text for text in texts if text not in (b"", b"AFTER") and not text.isdigit()]
    assert bad == [], "no record is torn"


def test_a_full_disk_below_everything(
    pyconmon: Path, runc: Path, tmp_path: Path, small_disk: Path
) -> None:
    """Bundle, log and state are on it, and it fills up once the container runs."""
    script = ["sh", "-c", "sleep 0.2; seq 1 20000; exit 4"]
    with Drive(script, small_disk, monitor=pyconmon, runtime=runc) as container:
        container.exit_dir = tmp_path / "exits"
        container.exit_dir.mkdir()
        container.create()
        with open(small_disk / "ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(b"x" * 4096)
            except OSError:
                pass
        container.start()
        assert container.wait_exit() == 4
        container.wait_monitor()
        assert not (container.directory / STATE).exists()


@pytest.mark.parametrize("rotate", [[], ["--log-size-max", "20000"]], ids=["plain", "limited"])
def test_the_log_directory_goes_away(drive: Make, tmp_path: Path, rotate: list[str]) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    script = "while [ ! -e /box/go ]; do sleep 0.05; done; seq 1 20000; exit 4"
    container = drive(
        ["sh", "-c", script],
        edit=box(tmp_path / "box"),
        log=[f"k8s-file:{logs}/ctr.log"],
        options=rotate,
    ).run()
    (logs / "ctr.log").unlink()
    logs.rmdir()
    container.ctl("2 0 0")
    (tmp_path / "box/go").touch()
    assert container.wait_exit() == 4
    container.wait_monitor()
    assert not logs.exists()


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """The folder takes no more names; files that are open already can be written on."""
    need_root()
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (directory / "new").touch()
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


LIMIT = ["--log-size-max", "20000"]


@pytest.mark.parametrize(
    "options", [[], LIMIT, [*LIMIT, "--log-rotate"]], ids=["plain", "limited", "rotating"]
)
def test_the_log_directory_becomes_read_only(
    drive: Make, tmp_path: Path, options: list[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    script = "while [ ! -e /box/go ]; do sleep 0.05; done; seq 1 20000; exit 4"
    container = drive(
        ["sh", "-c", script],
        edit=box(tmp_path / "box"),
        log=[f"k8s-file:{logs}/ctr.log"],
        options=options,
    ).run()
    with read_only(logs):
        if options:
            container.ctl("2 0 0")
        (tmp_path / "box/go").touch()
        assert container.wait_exit() == 4
        container.wait_monitor()
    container.log = logs / "ctr.log"
    logged = container.logged()
    assert logged.endswith(b"\n19999\n20000\n"), "the file that was open goes on"
    if not options:
        assert logged == b"".join(b"%d\n" % n for n in range(1, 20001))
    assert os.listdir(logs) == ["ctr.log"]


def test_a_log_directory_that_was_always_read_only(drive: Make, tmp_path: Path) -> None:
    """Told while the caller still listens; there is no container then."""
    logs = tmp_path / "logs"
    logs.mkdir()
    container = drive(["true"], log=[f"k8s-file:{logs}/ctr.log"])
    with read_only(logs):
        container.launch()
    assert container.process is not None and container.process.returncode == 1
    assert container.sync.rest() == b""
    assert f"{logs}/ctr.log: Read-only" in container.stderr
    assert not container.pidfile.exists()


@pytest.mark.parametrize("planted", ["link", "fifo", "directory"])
def test_the_log_is_replaced_by_something_else(drive: Make, tmp_path: Path, planted: str) -> None:
    """Whoever can write there: our new log neither goes through it nor hangs on it."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    script = "while [ ! -e /box/go ]; do sleep 0.05; done; seq 1 3000; exit 4"
    container = drive(
        ["sh", "-c", script], edit=box(tmp_path / "box"), options=["--log-size-max", "30000"]
    ).run()
    container.log.unlink()
    if planted == "link":
        container.log.symlink_to(victim)
    elif planted == "fifo":
        os.mkfifo(container.log)
    else:
        container.log.mkdir()
    container.ctl("2 0 0")
    (tmp_path / "box/go").touch()
    assert container.wait_exit() == 4
    container.wait_monitor()
    assert victim.read_text() == "precious"
    if planted != "directory":
        assert container.log.is_file() and not container.log.is_symlink()
        assert b"F 3000\n" in container.log.read_bytes()


def test_the_bundle_is_removed_under_us(drive: Make, tmp_path: Path) -> None:
    container = wait_kept(drive(["sh", "-c", "sleep 1000"]).run())
    pid = container.monitor_pid
    exits = tmp_path / "exits"
    container.exit_dir.rename(exits)
    exits.rename(container.exit_dir)
    for path in sorted(container.directory.iterdir()):
        if path != container.exit_dir:
            path.unlink()
    os.kill(container.pid, 9)
    assert container.wait_exit() == 137
    wait_until(lambda: gone(pid), what="its end")
    assert os.listdir(container.directory) == ["exits"]


def test_exit_files_that_cannot_be_written_are_owed(drive: Make, tmp_path: Path) -> None:
    """`--recover` writes them as soon as that works; the exit command has run long since."""
    exits = tmp_path / "exits"
    exits.mkdir()
    runs = tmp_path / "runs"
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\necho ran >>{runs}\n")
    command.chmod(0o755)
    container = drive(["sh", "-c", "sleep 1000"], options=["--exit-command", command])
    container.exit_dir.rmdir()
    container.exit_dir = exits
    wait_kept(container.run())
    exits.rmdir()
    container.kill()
    container.wait_monitor()
    assert runs.read_text() == "ran\n"
    assert "exits" in recovering.state(container.directory)["reason"]
    recovered(container)
    assert (container.directory / STATE).exists()
    exits.mkdir()
    recovered(container)
    assert container.wait_exit() == 137
    assert runs.read_text() == "ran\n"
    wait_until(lambda: not (container.directory / STATE).exists(), what="nothing owed")


def used(pid: int) -> int:
    """Clock ticks of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_few_descriptors_and_many_clients(drive: Make, tmp_path: Path) -> None:
    limit = tmp_path / "limited"
    container = drive(["sh", "-c", "sleep 1000"])
    limit.write_text(f'#!/bin/sh\nulimit -n 25\nexec {container.monitor} "$@"\n')
    limit.chmod(0o755)
    container.monitor = limit
    plain, runtime = container.runtime, tmp_path / "unlimited"
    runtime.write_text(f'#!/bin/sh\nexec {plain} "$@"\n')
    runtime.chmod(0o755)
    container.run()
    clients = []
    for _ in range(30):
        try:
            clients.append(container.attach())
        except (AssertionError, OSError):
            break
    pid = container.monitor_pid
    before = used(pid)
    time.sleep(0.3)  # time in which a busy loop would show
    assert used(pid) - before < 10
    container.kill()
    assert container.wait_exit() == 137
    for client in clients:
        client.all()
    container.wait_monitor()


def test_twenty_thousand_inherited_descriptors(drive: Make) -> None:
    """Or as many as may be open at once, but for those that tests, monitor and runtime need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 20_500 if hard == resource.RLIM_INFINITY else min(hard, 20_500)
    need(limit >= 15_000, "a limit of 15000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    taken: list[int] = []
    try:
        container = drive(["sh", "-c", "sleep 1000"])
        read_end, write_end = os.pipe()
        spare = len(os.listdir("/proc/self/fd")) + 100
        taken = [os.dup(write_end) for _ in range(min(20_000, limit - spare))]
        container.create(pass_fds=taken)
    finally:
        for fd in [*taken, write_end]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir(f"/proc/{container.monitor_pid}/fd")) > len(taken)
    os.set_blocking(read_end, False)
    with pytest.raises(BlockingIOError):
        os.read(read_end, 1)
    container.start()
    container.kill()
    assert container.wait_exit() == 137
    wait_until(lambda: os.read(read_end, 1) == b"", what="the closing of all of them")
    os.close(read_end)


def test_words_and_environment_near_the_limit(drive: Make, tmp_path: Path) -> None:
    """Whoever calls us with them may: runtime, successor and exit command get all of them."""
    told = tmp_path / "told"
    command = tmp_path / "command"
    command.write_text(
        '#!/bin/sh\nsum=0; for word in "$@"; do sum=$((sum + ${#word})); done\n'
        f"echo $# $sum ${{#BIG0}} ${{#BIG11}} >{told}.new; mv {told}.new {told}\n"
    )
    command.chmod(0o755)
    # What the kernel lets one word have is 128 KiB; all of them together, a fourth of the stack.
    room = os.sysconf("SC_ARG_MAX")
    need(room >= 2 << 20, "2 MiB of words and environment")
    big = {f"BIG{number}": "v" * 131_000 for number in range(12)}
    length = (2 << 20) - 40_000 - 12 * 131_020 - 131_000
    words = ["x" * 300] * (length // 340) + ["y" * 131_000]
    container = drive(
        ["sh", "-c", "sleep 1000"],
        options=["--exit-command", command, *(f"--exit-command-arg={word}" for word in words)],
        environment=big,
        log=["k8s-file:/dev/null"],
    )
    wait_kept(container.run())
    assert (container.directory / STATE).stat().st_size > 2_000_000
    kill_monitor(container)
    recovered(container)
    container.kill()
    assert container.wait_exit() == 137
    total = sum(len(word) for word in words)
    wait_until(
        lambda: told.read_text() == f"{len(words)} {total} 131000 131000\n", what="the exit command"
    )
    container.wait_monitor()


@pytest.mark.parametrize("options", [[], ["-T", "3"]], ids=["ends", "is-ended"])
def test_its_program_is_taken_away(drive: Make, tmp_path: Path, options: list[str]) -> None:
    """Someone removes or replaces the package while containers run: what they need is in memory."""
    text = PYCONMON.read_text()
    need(f'"{ROOT}"' in text, "a pyconmon command that starts the checkout's")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "pyconmon", copy / "pyconmon")
    command = tmp_path / "pyconmon"
    command.write_text(text.replace(f'"{ROOT}"', f'"{copy}"'))
    command.chmod(0o755)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/hooked\n")
    hook.chmod(0o755)
    container = drive(
        ["sh", "-c", "echo begun; while [ ! -e /box/go ]; do sleep 0.1; done; exit 3"],
        monitor=command,
        edit=box(tmp_path / "box"),
        options=["--exit-command", str(hook), *options],
    )
    container.run()
    wait_until(lambda: b"begun\n" in container.log.read_bytes(), what="output")
    shutil.rmtree(copy)
    if not options:
        (tmp_path / "box" / "go").touch()
    assert container.wait_exit() == (-1 if options else 3)
    container.wait_monitor()
    assert (tmp_path / "hooked").read_text() == "ran\n"
    assert not (container.directory / STATE).exists()
    wait_until(lambda: gone(container.pid), what="the container's end")
