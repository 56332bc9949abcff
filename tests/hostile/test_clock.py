"""Somebody sets the clock, a day forward and a year back: only the times in the log change."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import recovering
from tests.helpers.clock import DAY, YEAR, WallClock
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON, ROOT
from tests.helpers.need import need_program
from tests.helpers.recovering import STATE, box, counted, kill_monitor, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]

# Numbers its lines, some thousand a second.
COUNT = """
i=0
while [ ! -e /box/stop ]; do
  echo "out $i"; echo "err $i" >&2; i=$((i+1))
  [ $((i % 20)) != 0 ] || sleep 0.01
done
echo "out last $i"; echo "err last $i" >&2
exit 6
"""
WAIT = "while [ ! -e /box/stop ]; do sleep 0.02; done; exit 6"


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def clock(shifted: WallClock) -> WallClock:
    shifted.set(timedelta())
    return shifted


@pytest.fixture
def living(drive: Make, runc: Path, tmp_path: Path, clock: WallClock) -> Make:
    """living(script, **settings) -> Drive: its monitor lives by the clock, its runtime does not."""
    runtime = tmp_path / "true-runtime"
    runtime.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {runc} "$@"\n')
    runtime.chmod(0o755)

    def make(script: str, **settings: Any) -> Drive:
        return drive(
            ["sh", "-c", script],
            runtime=runtime,
            environment=clock.environment,
            edit=box(tmp_path / "box"),
            **settings,
        )

    return make


def stop(container: Drive, tmp_path: Path) -> None:
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 6
    container.wait_monitor()
    assert not (container.directory / STATE).exists()


def recovered(container: Drive, clock: WallClock) -> None:
    done = recovering.recover(container.directory, env={**os.environ, **clock.environment})
    assert done.returncode == 0, done.stderr


def last_time(log: Path) -> datetime:
    """The time of the last whole record."""
    line = log.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
    if not line:
        raise FileNotFoundError("no record yet")
    return datetime.fromisoformat(line.split(b" ")[0].decode())


def wait_logged_by(clock: WallClock, log: Path) -> None:
    """Until records have the time that the clock shows."""
    near = timedelta(hours=1)
    wait_until(lambda: abs(last_time(log) - clock.now()) < near, what=f"records of {clock.now()}")


def jumps(clock: WallClock, then: Callable[[], object]) -> None:
    for jump in (DAY, -YEAR, YEAR):
        clock.jump(jump)
        then()


LIMITS = [
    [],
    ["--log-size-max", "20000", "--log-rotate", "--log-max-files", "2000"],
    ["--log-size-max", "20000"],
]


@pytest.mark.parametrize("options", LIMITS, ids=["plain", "rotating", "limited"])
def test_logging_goes_on(
    living: Make, tmp_path: Path, clock: WallClock, options: list[str]
) -> None:
    container = living(COUNT, options=options).run()
    wait_logged_by(clock, container.log)
    rotated = container.log.with_name("ctr.log.1")

    def logs() -> None:
        wait_logged_by(clock, container.log)
        if "--log-rotate" in options:
            before = rotated.stat().st_ino if rotated.exists() else 0
            wait_until(lambda: rotated.stat().st_ino != before, what="a rotation")
        elif options:
            before = container.log.stat().st_ino
            wait_until(lambda: container.log.stat().st_ino != before, what="a fresh log")
        container.ctl("2 0 0")  # a rotation that somebody asks for
        wait_logged_by(clock, container.log)

    if options:
        jumps(clock, logs)
    else:
        jumps(clock, lambda: wait_logged_by(clock, container.log))
    stop(container, tmp_path)
    parts = sorted(container.directory.glob("ctr.log.*"), key=lambda part: -int(part.suffix[1:]))
    for part in [*parts, container.log] if options else []:
        assert part.stat().st_size <= 20000
    if options and not parts:
        return
    joined = b"".join(part.read_bytes() for part in [*parts, container.log])
    container.log.write_bytes(joined)
    assert counted(container) == counted(container, "err", "stderr") > 0
    years = {line[:4] for line in joined.splitlines()}
    assert len(years) >= 2


@pytest.mark.parametrize("killed", [False, True], ids=["living", "killed"])
@pytest.mark.parametrize("jump", [DAY, -YEAR], ids=["forward", "back"])
def test_the_time_limit_is_what_it_was(
    living: Make, clock: WallClock, jump: timedelta, killed: bool
) -> None:
    """Also of a successor, which gets what is left of it."""
    begun = time.monotonic()
    container = wait_kept(living(COUNT, options=["--timeout", "1"]).create())
    clock.jump(jump)
    container.start()
    if killed:
        kill_monitor(container)
        recovered(container, clock)
    assert container.wait_exit() == -1
    assert 1 <= time.monotonic() - begun < 25
    container.wait_monitor()


@pytest.mark.parametrize("jump", [DAY, -YEAR], ids=["forward", "back"])
def test_the_time_limit_of_an_exec(living: Make, clock: WallClock, jump: timedelta) -> None:
    container = living("sleep 1000").run()
    begun = time.monotonic()
    command = container.exec(["sh", "-c", COUNT], timeout=1)
    command.answer()
    clock.jump(jump)
    assert command.answer() == {"data": -1, "message": "command timed out"}
    assert 1 <= time.monotonic() - begun < 25


def test_clients_stay_attached(living: Make, tmp_path: Path, clock: WallClock) -> None:
    container = living("cat; exit 6", stdin=True)
    container.create()
    client = container.attach()
    container.start()

    def talk() -> None:
        """The old client and one that comes now."""
        other = container.attach()
        word = str(clock.now().date()).encode()
        client.send(word + b"\n")
        client.until(word + b"\n")
        other.until(word + b"\n")

    talk()
    jumps(clock, talk)
    client.half_close()
    assert container.wait_exit() == 6
    assert len(client.all()[0].splitlines()) == 4
    assert client.stdout == container.logged()


def test_recoveries(living: Make, tmp_path: Path, clock: WallClock) -> None:
    """Whether a process is the container does not depend on the time of day."""
    runs = tmp_path / "runs"
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\necho ran >>{runs}\n")
    command.chmod(0o755)
    container = wait_kept(living(COUNT, options=["--exit-command", command]).run())

    def recover() -> None:
        kill_monitor(container)
        recovered(container, clock)
        assert recovering.watched(container)
        wait_logged_by(clock, container.log)

    jumps(clock, recover)
    stop(container, tmp_path)
    assert counted(container) == counted(container, "err", "stderr") > 0
    wait_until(lambda: runs.read_text() == "ran\n", what="the exit command")


@pytest.mark.parametrize("jump", [DAY, -YEAR], ids=["forward", "back"])
def test_a_report_that_was_made_is_not_made_again(
    living: Make, tmp_path: Path, clock: WallClock, jump: timedelta
) -> None:
    """Killed just after it has written the exit file, which strace counts: the fourth renaming."""
    strace = need_program("strace")
    assert living("exit 6").run().wait_exit() == 6  # bytecode is renamed too: now it is there
    clock.jump(jump)
    container = living("exit 6", options=["--exit-command", "/bin/true"])
    wrapper = tmp_path / "dying-monitor"
    wrapper.write_text(
        f"#!/bin/sh\nunset LD_PRELOAD\nexec {strace} -D -f -qq -o /dev/null -e trace=rename "
        f"-E LD_PRELOAD={clock.environment['LD_PRELOAD']} "
        f'-e inject=rename:signal=SIGKILL:when=4 {PYCONMON} "$@"\n'
    )
    wrapper.chmod(0o755)
    container.monitor = wrapper
    container.run()
    pid = container.monitor_pid
    wait_until(lambda: gone(pid), what="the monitor's death")
    assert container.wait_exit() == 6
    before = container.exit_file.stat()
    recovered(container, clock)
    container.wait_monitor()
    after = container.exit_file.stat()
    assert (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)


# --- the client

CLIENT = f"""
import asyncio, sys, time
sys.path.insert(0, {str(ROOT / "client")!r})
from pyconmon_client import Container, ExecTimeout, Runtime, WaitTimeout, aio

COMMAND = ["sh", "-c", "touch /box/running; sleep 1000"]
name, bundle, runtime, monitor, where, what = sys.argv[1:]
runtime = Runtime(runtime, where, monitor)
container = Container(name, name, bundle, "")
runtime.create_container(container, stdio=(-1, -1, -1))
runtime.start_container(container)
print("started", flush=True)
begun = time.monotonic()
try:
    if what == "wait":
        runtime.wait(container, timeout=1)
    elif what == "exec":
        runtime.exec_sync(container, COMMAND, timeout=1)
    else:
        native = aio.Runtime(sys.argv[3], where, monitor)
        asyncio.run(native.exec_sync(container, COMMAND, timeout=1))
except (WaitTimeout, ExecTimeout):
    print(time.monotonic() - begun)
finally:
    runtime.delete_container(container, force=True)
"""


@pytest.mark.parametrize("jump", [DAY, -YEAR], ids=["forward", "back"])
@pytest.mark.parametrize("what", ["wait", "exec", "aio"])
def test_time_limits_of_the_client(
    living: Make, tmp_path: Path, clock: WallClock, what: str, jump: timedelta
) -> None:
    container = living("sleep 1000")  # its bundle is what is used
    words = [
        container.ident,
        container.bundle,
        container.runtime,
        PYCONMON,
        tmp_path / "kept",
        what,
    ]
    with subprocess.Popen(
        [sys.executable, "-I", "-c", CLIENT, *map(str, words)],
        env={**os.environ, **clock.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            if what != "wait":
                wait_until((tmp_path / "box/running").exists, what="the command")
            clock.jump(jump)
            said, _ = process.communicate(timeout=40)
            assert 1 <= float(said) < 25
            assert process.wait(30) == 0
        finally:
            process.kill()
