"""Containers on an event loop: their lives, execs by the hundred, and nothing left of them."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pyconmon_client import (
    BundleError,
    Container,
    ContainerNotFound,
    CreateError,
    CreateTimeout,
    ExecExitError,
    ExecStartError,
    ExecTimeout,
    InvalidArgumentError,
    NotRunningError,
    PyconmonError,
    RunError,
    WaitTimeout,
    aio,
)
from tests.helpers.bundles import make_bundle
from tests.helpers.session import SESSION_DIR
from tests.helpers.waiting import gone, wait_until

CONCURRENT = int(os.environ.get("CONCURRENT_EXECS", "60"))

Make = Callable[..., Container]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def native(monitor_path: Path, runc: Path, tmp_path: Path) -> aio.Runtime:
    # C conmon leaves its console socket behind when a command with a terminal cannot be started.
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(SESSION_DIR)}
    return aio.Runtime(runc, tmp_path / "containers", monitor_path, environment)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a coroutine, and sees to it that nothing is left of it."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = descriptors()

    async def watched(work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        finally:
            # What was closed is closed by the loop in its next rounds.
            for _ in range(5):
                await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, f"tasks are left: {others}"
            threads = [each.name for each in threading.enumerate() if "asyncio" in each.name]
            assert not threads, "native means without threads"

    def go(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(watched(work))

    yield go
    children = [child.pid for child in psutil.Process().children(recursive=True)]
    wait_until(lambda: all(gone(pid) for pid in children), 20, "the end of what it has started")
    left = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in descriptors() - before}
    assert not left, "descriptors are left"
    assert not list(temporary.iterdir()), "temporary files are left"


def descriptors() -> set[str]:
    """Without the one that listing them needs."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


@asynccontextmanager
async def sleeping(native: aio.Runtime, make: Make) -> AsyncIterator[Container]:
    """A container that sleeps."""
    async with native.running(make("sleep", "600"), stdio=(-1, -1, -1)) as container:
        yield container


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_a_life(native: aio.Runtime, make: Make, run: Run) -> None:
    async def life() -> None:
        assert (await native.version())[0].isdigit()
        container = make(*sh("read line; echo got $line; exit 7"), log=True)
        await native.create_container(container, stdin=True)
        assert (await native.update_status(container)).status == "created"
        async with await native.attach(container) as attachment:
            await native.start_container(container)
            with pytest.raises(WaitTimeout):
                await native.wait(container, 0.05)
            await attachment.send(b"this\n")
            assert [piece.data async for piece in attachment] == [b"got this\n"]
        assert await native.wait(container, 30) == 7
        state = await native.update_status(container)
        assert (state.status, state.exit_code, state.exit_code_known) == ("stopped", 7, True)
        [found] = native.list()
        assert await native.wait(found) == 7
        assert [line.data async for line in native.logs(container)] == [b"got this\n"]
        await native.delete_container(container)
        assert native.list() == []
        with pytest.raises(ContainerNotFound):
            await native.update_status(container)

    run(life())


def test_what_cannot_be_created(
    native: aio.Runtime, make: Make, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyconmon_client.creation.FINISHING_SECONDS", 0.2)
    slow = tmp_path / "slow-runtime"
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *create*) sleep 600 ;; esac\n{native.blocking.path} "$@"\n'
    )
    slow.chmod(0o755)

    async def fail() -> None:
        container = make("/nope")
        with pytest.raises(CreateError, match="no such file"):
            await native.create_container(container, output="none")
        with pytest.raises(ContainerNotFound):
            await native.update_status(container)
        hangs = aio.Runtime(slow, "", native.blocking.conmon_path)
        with pytest.raises(CreateTimeout):
            await hangs.create_container(make("true"), output="none", timeout=0.5)
        with pytest.raises(CreateError, match="no bundle"):
            await native.create_container(Container("x", "x", "/no/bundle"))
        missing = aio.Runtime("/no/runtime", "", native.blocking.conmon_path)
        with pytest.raises(PyconmonError, match="/no/runtime"):
            await missing.version()

    run(fail())


def test_stop(native: aio.Runtime, make: Make, run: Run) -> None:
    async def stop() -> None:
        async with sleeping(native, make) as deaf:
            await native.stop_container(deaf, 0.2)
            assert await native.wait(deaf) == 137
            await native.stop_container(deaf)  # it has ended already
        script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"
        container = make(*sh(script), log=True)
        async with native.running(container):
            async with native.logs(container, follow=True) as lines:
                assert (await anext(lines)).data == b"ready\n"
            await native.stop_container(container, 30)
            assert await native.wait(container) == 3

    run(stop())


def test_exec_sync(native: aio.Runtime, make: Make, run: Run) -> None:
    async def execs() -> None:
        async with sleeping(native, make) as container:
            done = await native.exec_sync(
                container, sh("cat; echo err >&2; exit 3"), stdin=b"x" * 500_000, check=False
            )
            assert (done.stdout, done.stderr, done.exit_code) == (b"x" * 500_000, b"err\n", 3)
            script = 'echo "$A"; pwd; id -u'
            done = await native.exec_sync(
                container, sh(script), env=["A=b c"], cwd="/tmp", user="5:6"
            )
            assert done.stdout == b"b c\n/tmp\n5\n"
            done = await native.exec_sync(
                container, sh("head -c 3000000 /dev/zero"), max_output=1000
            )
            assert (len(done.stdout), done.truncated) == (1000, True)
            # A background process that holds the output does not hold us.
            done = await native.exec_sync(container, sh("echo done; sleep 601 & exit 0"))
            assert done.stdout == b"done\n"
            with pytest.raises(ExecExitError) as failed:
                await native.exec_sync(container, sh("echo out; exit 9"))
            assert (failed.value.exit_code, failed.value.stdout) == (9, b"out\n")
            for command, why in (("/nope", "no such file"), ("/etc", "permission denied")):
                with pytest.raises(ExecStartError, match=why):
                    await native.exec_sync(container, [command])
            with pytest.raises(ExecTimeout) as late:
                script = "trap '' TERM; echo begun; setsid sleep 602 & sleep 603"
                await native.exec_sync(container, sh(script), timeout=0.5)
            assert late.value.stdout == b"begun\n"
            assert "sleep 602" not in await processes(native, container)
            assert "sleep 603" not in await processes(native, container)
            with pytest.raises(InvalidArgumentError):
                await native.exec_sync(container, "one word")

    run(execs())


async def processes(native: aio.Runtime, container: Container) -> str:
    return (await native.exec_sync(container, ["ps"])).stdout.decode()


def test_many_execs_at_once(native: aio.Runtime, make: Make, run: Run) -> None:
    """CONCURRENT_EXECS says how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def execs() -> None:
        async with sleeping(native, make) as container:

            async def one(number: int) -> None:
                script = f"echo out {number}; echo err {number} >&2; exit {number % 256}"
                done = await native.exec_sync(container, sh(script), check=False)
                assert done.stdout == f"out {number}\n".encode()
                assert done.stderr == f"err {number}\n".encode()
                assert done.exit_code == number % 256

            await asyncio.gather(*(one(number) for number in range(CONCURRENT)))
            assert await processes(native, container) != ""

    run(execs())


def test_cancelling_an_exec(native: aio.Runtime, make: Make, run: Run) -> None:
    """In whatever it is just doing: all that it has started is gone when the cancellation is."""

    async def cancel() -> None:
        async with sleeping(native, make) as container:
            script = "trap '' TERM; touch /tmp/begun; (setsid sleep 604 &); sleep 605"
            task = asyncio.create_task(native.exec_sync(container, sh(script)))
            for _ in range(2000):
                done = await native.exec_sync(container, ["test", "-e", "/tmp/begun"], check=False)
                if done.exit_code == 0:
                    break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = await processes(native, container)
            assert "604" not in left
            assert "605" not in left
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await native.exec_sync(container, ["sleep", "606"])
            # While it starts, too.
            for pause in (0, 0.005, 0.02, 0.05):
                task = asyncio.create_task(native.exec_sync(container, ["sleep", "607"]))
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            left = await processes(native, container)
            assert "606" not in left
            assert "607" not in left

    run(cancel())


def test_cancelling_a_create_or_a_run(
    native: aio.Runtime, make: Make, tmp_path: Path, run: Run
) -> None:
    async def cancel() -> None:
        bundle = make_bundle(tmp_path / "bundle", ["sleep", "608"])
        for pause in (0, 0.02, 0.1, 0.5):
            task = asyncio.create_task(native.run(bundle, name=f"cancelled-{pause}"))
            await asyncio.sleep(pause)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ContainerNotFound):
                await native.update_status(Container("x", f"cancelled-{pause}", str(bundle)))
        container = make("sleep", "609")
        task = asyncio.create_task(native.create_container(container, output="none"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ContainerNotFound):
            await native.update_status(container)

    run(cancel())


def test_run(native: aio.Runtime, tmp_path: Path, run: Run) -> None:
    async def runs() -> None:
        bundle = make_bundle(tmp_path / "one", sh("cat; echo err >&2; exit 5"))
        done = await native.run(bundle, stdin=b"input")
        assert (done.exit_code, done.stdout, done.stderr) == (5, b"input", b"err\n")
        with pytest.raises(RunError):
            await native.run(bundle, check=True)
        late = await native.run(make_bundle(tmp_path / "two", ["sleep", "610"]), timeout=0.5)
        assert (late.exit_code, late.timed_out) == (137, True)
        flood = make_bundle(tmp_path / "three", ["yes"])
        done = await native.run(flood, max_output=10_000, kill_on_output=True)
        assert (len(done.stdout), done.output_exceeded, done.timed_out) == (10_000, True, False)
        # Several beside each other.
        bundles = [
            make_bundle(tmp_path / f"many{number}", sh(f"exit {number}")) for number in range(5)
        ]
        results = await asyncio.gather(*(native.run(each) for each in bundles))
        assert [result.exit_code for result in results] == [0, 1, 2, 3, 4]
        with pytest.raises(CreateError, match="no such file"):
            await native.run(make_bundle(tmp_path / "four", ["/nope"]))

    run(runs())


def test_numbers_and_events(native: aio.Runtime, make: Make, run: Run) -> None:
    async def look() -> None:
        async with native.events() as events:
            container = make(*sh("while :; do :; done"))
            async with native.running(container, stdio=(-1, -1, -1)):
                assert (await native.stats(container)).pids == 1
                percent = [each.cpu_percent async for each in first(native, container, 3)]
                assert percent[0] is None
                assert all(each is not None and each > 0 for each in percent[1:])
                await native.kill_container(container)
                event = await events.wait(30)
                assert (event.container_id, event.exit_code) == (container.name, 137)
                with pytest.raises(NotRunningError):
                    await native.wait(container)
                    await native.stats(container)
            with pytest.raises(WaitTimeout):
                await events.wait(0.05)

    async def first(native: aio.Runtime, container: Container, count: int) -> AsyncIterator[Any]:
        samples = native.samples(container, 0.3)
        for _ in range(count):
            yield await anext(samples)
        await samples.aclose()  # type: ignore[attr-defined]

    run(look())


def test_waiting_for_somebody_elses_container(native: aio.Runtime, make: Make, run: Run) -> None:
    """Started by this program's blocking half, known here only by its record."""
    container = make(*sh("sleep 0.5; exit 6"))
    native.blocking.create_container(container, stdio=(-1, -1, -1))
    native.blocking.start_container(container)

    async def wait() -> None:
        found = native.reload(container.name)
        codes = await asyncio.gather(*(native.wait(found, 60) for _ in range(3)))
        assert codes == [6, 6, 6]
        await native.delete_container(found)

    run(wait())


def test_recover(pyconmon: Path, runc: Path, tmp_path: Path, make: Make, run: Run) -> None:
    native = aio.Runtime(runc, tmp_path / "containers", pyconmon)

    async def lose_and_find() -> None:
        container = make("sleep", "600", log=True)
        async with native.running(container):
            assert await native.recover(container) is False
            monitor = container.monitor
            assert monitor is not None
            monitor.send_signal(9)
            await asyncio.to_thread(wait_until, lambda: gone(monitor.pid), 20, "its end")
            assert (await native.update_status(container)).monitored is False
            assert await native.recover(container) is True
            assert (await native.update_status(container)).monitored is True

    asyncio.run(lose_and_find())
    with pytest.raises(BundleError):
        asyncio.run(native.exec_sync(Container("x", "x", str(tmp_path)), ["true"]))
