"""A busy program: few descriptors, long time limits, other programs' processes and monitors."""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pyconmon_client import (
    Container,
    ContainerNotFound,
    ExecStartError,
    ExecSyncError,
    PyconmonError,
    Runtime,
    WaitTimeout,
    aio,
)
from pyconmon_client.deadline import Deadline, milliseconds, readable
from pyconmon_client.monitor import stat_fields
from tests.client.test_aio import Make, Run, native, run, sh, sleeping
from tests.helpers.descriptors import descriptors
from tests.helpers.monitors import monitor
from tests.helpers.waiting import gone, wait_until

__all__ = ["native", "run"]

YEARS = 1e9


@pytest.mark.parametrize("seconds", [YEARS, math.inf])
def test_long_time_limits(runtime: Runtime, running: Container, seconds: float) -> None:
    assert runtime.exec_sync(running, ["true"], timeout=seconds).exit_code == 0
    with runtime.exec(running, ["true"]) as process:
        assert process.communicate(timeout=seconds).exit_code == 0
    threading.Timer(0.1, runtime.kill_container, [running]).start()
    assert runtime.wait(running, timeout=seconds) == 137
    runtime.stop_container(running, timeout=seconds)


def test_what_poll_takes() -> None:
    assert milliseconds(None) is None
    assert milliseconds(0.0001) == 1, "rounded down it would end before its time"
    assert milliseconds(-1) == 0
    assert milliseconds(math.inf) == 2**31 - 1
    assert Deadline(math.inf).left() == math.inf
    read, write = os.pipe()
    try:
        assert not readable(read, 0.001)
        os.write(write, b"x")
        assert readable(read, YEARS)
    finally:
        os.close(read)
        os.close(write)


@contextmanager
def only(count: int) -> Iterator[None]:
    """So many descriptors can be opened, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(number for number, _ in descriptors())
    with ExitStack() as fillers:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        with suppress(OSError):
            while True:
                fillers.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_no_answer_is_wrong(
    runtime: Runtime, native: aio.Runtime, make: Make
) -> None:
    """Whatever can't be done or found out is an error of ours, and leaves nothing open."""
    container, other = make("sleep", "600", log=True), make("sleep", "600")
    runtime.create_container(container)
    runtime.start_container(container)
    loop = asyncio.new_event_loop()

    def wait() -> None:
        with pytest.raises(WaitTimeout):
            runtime.wait(container, 0.01)

    def terminal() -> None:
        with runtime.exec(container, ["true"], terminal=True) as process:
            assert process.wait(60) == 0

    def life() -> None:
        with runtime.running(other, stdio=(-1, -1, -1)):
            pass

    async def native_life() -> None:
        async with native.running(other, stdio=(-1, -1, -1)):
            pass

    def recover() -> None:
        assert runtime.recover(container) is False

    attempts: list[Callable[[], Any]] = [
        wait,
        terminal,
        life,
        recover,
        lambda: runtime.exec_sync(container, ["true"]),
        lambda: runtime.stats(container),
        lambda: runtime.attach(container).close(),
        lambda: list(runtime.logs(container)),
        lambda: runtime.logs(container, follow=True).close(),
        lambda: runtime.events().close(),
        lambda: runtime.run(other.bundle_path, timeout=0.01),
        lambda: loop.run_until_complete(native_life()),
        lambda: loop.run_until_complete(native.exec_sync(container, ["true"])),
        lambda: loop.run_until_complete(native.run(other.bundle_path, timeout=0.01)),
    ]
    before = descriptors()
    refused = 0
    try:
        for count in (0, 1, 2, 3, 4, 6, 8, 11, 14, 40):
            for number, attempt in enumerate(attempts):
                with only(count):
                    try:
                        attempt()
                    except PyconmonError:
                        refused += 1
                        assert count < 40
                assert descriptors() == before, f"attempt {number} with {count}"
        assert refused > len(attempts)
        assert runtime.update_status(container).monitored is True
        with pytest.raises(ContainerNotFound):
            runtime.update_status(other)
    finally:
        loop.close()


def test_a_runtime_that_leaves_somebody_who_holds_its_output(tmp_path: Path, run: Run) -> None:
    """As runtimes with shims may do: their own end is the end of the call."""
    runtime = tmp_path / "runtime"
    held = tmp_path / "held"
    runtime.write_text(f'#!/bin/sh\nsleep 600 &\necho $! >>{held}\necho \'{{"status": "x"}}\'\n')
    runtime.chmod(0o755)
    container = Container("c", "c", tmp_path)
    try:
        pyconmon = monitor("pyconmon")
        blocking = Runtime(runtime, "", pyconmon, create_timeout=30)
        assert blocking.update_status(container).status == "x"
        blocking.start_container(container)
        native = aio.Runtime(runtime, "", pyconmon, create_timeout=30)
        assert run(native.update_status(container)).status == "x"
    finally:
        for pid in held.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def test_a_program_that_ignores_the_end_of_its_children(
    runc: Path, monitor_path: Path, make: Make, tmp_path: Path
) -> None:
    """Its children leave no status; what they said counts."""
    container = make("sh", "-c", "exit 5")
    program = f"""
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from pyconmon_client import Container, Runtime
runtime = Runtime({str(runc)!r}, {str(tmp_path / "containers")!r}, {str(monitor_path)!r},
                  dialect="modern")
container = Container("c0", "c0", {container.bundle_path!r})
runtime.create_container(container, stdio=(-1, -1, -1))
runtime.start_container(container)
print(runtime.wait(container, 60))
runtime.delete_container(container)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (said.stdout, said.stderr) == ("5\n", "")


@pytest.mark.parametrize("live", [False, True])
def test_a_monitor_that_is_lost_under_a_command(
    runtime: Runtime, running: Container, live: bool
) -> None:
    """The command ran, so it is no ExecStartError; nothing of it stays, and nobody makes up a code."""
    killed: list[int] = []

    def pair() -> tuple[int, int] | None:
        """The command and its monitor, which is our child: before that its parent is the runtime."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if Path(f"/proc/{name}/cmdline").read_bytes() == b"sleep\x00601\x00":
                    parent = int((stat_fields(int(name)) or [b"", b"0"])[1])
                    if (stat_fields(parent) or [b"", b"0"])[1] == b"%d" % os.getpid():
                        return int(name), parent
        return None

    def kill() -> None:
        found = wait_until(pair, what="the command")
        assert found is not None
        killed.append(found[0])
        os.kill(found[1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ExecSyncError, match=r"could not see 'sleep 601'.*signal 9") as caught:
        if live:
            with runtime.exec(running, ["sleep", "601"]) as process:
                process.wait(60)
        else:
            runtime.exec_sync(running, ["sleep", "601"])
    thread.join()
    assert not isinstance(caught.value, ExecStartError)
    assert gone(killed[0])


def test_logs_end_with_a_container_whose_monitor_has_died(
    runtime: Runtime, native: aio.Runtime, make: Make, run: Run
) -> None:
    container = make(*sh("echo here; sleep 600"), log=True)
    runtime.create_container(container)
    runtime.start_container(container)
    with runtime.logs(container, follow=True) as lines:
        assert next(lines).data == b"here\n"
        assert container.monitor is not None
        container.monitor.send_signal(signal.SIGKILL)
        assert container.monitor.wait(20)
        assert container.init is not None
        container.init.send_signal(signal.SIGKILL)
        assert list(lines) == []

    async def again() -> list[bytes]:
        return [line.data async for line in native.logs(container, follow=True)]

    # Also for who comes later, and who knows it from its record only.
    assert run(again()) == [b"here\n"]
    assert [line.data for line in runtime.logs(runtime.reload("c0"), follow=True)] == [b"here\n"]


def test_a_monitor_that_somebody_else_has_called(runc: Path, tmp_path: Path, make: Make) -> None:
    """Who knew the first one waits for the second one's exit file, and for its last lines."""
    runtime = Runtime(runc, tmp_path / "containers", monitor("pyconmon"))
    script = "trap 'i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exit 9' TERM; "
    container = make(*sh(script + "echo here; while :; do sleep 0.1; done"), log=True)
    runtime.create_container(container)
    runtime.start_container(container)
    with runtime.logs(container, follow=True) as lines, runtime.watch_exit(container) as watch:
        assert next(lines).data == b"here\n"
        assert container.monitor is not None
        container.monitor.send_signal(signal.SIGKILL)
        assert container.monitor.wait(20)
        assert watch.check() is None
        assert runtime.recover(runtime.reload("c0")) is True
        assert container.init is not None
        container.init.send_signal(signal.SIGTERM)
        assert [line.data for line in lines] == [b"%d\n" % number for number in range(3000)]
        ended = watch.wait(60)
        assert (ended.code, ended.finished is not None) == (9, True)
    assert runtime.update_status(container).exit_code == 9


@pytest.mark.parametrize("option", ["--recover", "--recover-under"])
@pytest.mark.parametrize("log", [False, True], ids=["classic", "modern"])
def test_a_later_monitor_that_takes_its_time(
    runc: Path, tmp_path: Path, make: Make, option: str, log: bool
) -> None:
    """The code is not unknown as long as somebody is about to report it."""
    program = monitor("pyconmon")
    runtime = Runtime(runc, tmp_path / "containers", program)
    container = make(*sh("trap 'exit 9' TERM; echo here; while :; do sleep 0.1; done"), log=log)
    runtime.create_container(container)
    runtime.start_container(container)
    bundle = Path(container.bundle_path)
    with runtime.watch_exit(container) as watch:
        assert container.monitor is not None and container.init is not None
        container.monitor.send_signal(signal.SIGKILL)
        assert container.monitor.wait(20)
        where = bundle if option == "--recover" else bundle.parent
        subprocess.run([program, option, where], check=True, stdin=subprocess.DEVNULL)
        later = json.loads((bundle / "pyconmon-state.json").read_text())["monitor_pid"]
        os.kill(later, signal.SIGSTOP)
        try:
            container.init.send_signal(signal.SIGTERM)
            assert container.init.wait(20)
            assert watch.check() is None
        finally:
            os.kill(later, signal.SIGCONT)
        assert watch.wait(60).code == 9


def test_many_waits_without_inotify(native: aio.Runtime, make: Make, run: Run) -> None:
    """The kernel has a limit for each user, which hundreds of waits reach; monitors tell as well."""

    async def wait_all() -> None:
        async with sleeping(native, make) as container:
            waits = [asyncio.create_task(native.wait(container)) for _ in range(150)]
            await asyncio.sleep(0)
            await native.kill_container(container)
            assert set(await asyncio.gather(*waits)) == {137}

    run(wait_all())
