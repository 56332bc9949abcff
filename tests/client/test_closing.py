"""Closing what another thread or task waits for, and asking after the end of a block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyconmon_client import Container, ExecStartError, ExitEvents, Runtime, aio
from tests.client.test_aio import Make, Run, native, run, sh, sleeping
from tests.helpers.descriptors import descriptors
from tests.helpers.waiting import wait_until

__all__ = ["native", "run"]


@pytest.fixture
def talking(make: Make, runtime: Runtime) -> Container:
    """A container that can be attached to, and says nothing."""
    container = make("sleep", "600", log=True)
    runtime.create_container(container, stdin=True, leave_stdin_open=True)
    runtime.start_container(container)
    return container


def sleeps(thread: threading.Thread) -> bool:
    status = Path(f"/proc/self/task/{thread.native_id}/stat").read_bytes()
    return status.rpartition(b")")[2].split()[0] == b"S"


def what_it_gets(wait: Callable[[], Any], close: Callable[[], Any]) -> Any:
    """The result of waiting in a thread while this one closes."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(wait()), daemon=True)
    thread.start()
    wait_until(lambda: sleeps(thread), what="a thread that waits")
    close()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
    return got[0]


def test_an_attachment_that_a_thread_reads(runtime: Runtime, talking: Container) -> None:
    before = descriptors()
    attachment = runtime.attach(talking)
    assert what_it_gets(attachment.recv, attachment.close) is None
    assert attachment.recv() is None
    assert list(attachment) == []
    attachment.close()
    assert descriptors() == before
    with runtime.attach(talking) as other:
        runtime.kill_container(talking)
        assert other.recv(timeout=60) is None


def test_leaving_a_block_of_events_that_a_thread_waits_for(tmp_path: Path) -> None:
    before = descriptors()
    with ExitEvents(tmp_path) as events:
        leave = events.__exit__
        assert what_it_gets(events.wait, lambda: leave(None, None, None)) is None
    assert events.wait() is None
    assert descriptors() == before


@pytest.mark.parametrize("what", ["attachment", "logs", "events"])
def test_what_another_task_waits_for(
    native: aio.Runtime, talking: Container, run: Run, what: str
) -> None:
    async def closed() -> None:
        if what == "attachment":
            opened: Any = await native.attach(talking)
        else:
            opened = native.logs(talking, follow=True) if what == "logs" else native.events()

        async def consume() -> list[Any]:
            return [each async for each in opened]

        async with opened:
            task = asyncio.create_task(consume())
            # It has come to waiting when there is nothing else to do.
            for _ in range(20):
                await asyncio.sleep(0)
            assert not task.done()
            opened.close()
            assert await asyncio.wait_for(task, 20) == []

    run(closed())


def test_two_tasks_that_wait_for_the_same(
    native: aio.Runtime, talking: Container, run: Run
) -> None:
    """One would never be woken; one that reads and one that writes are fine."""

    async def both() -> None:
        async with await native.attach(talking) as attachment:
            reader = asyncio.create_task(attachment.recv())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task waits already"):
                await attachment.recv()
            writer = asyncio.create_task(attachment.send(b"x" * (1 << 22)))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not reader.done()
            writer.cancel()
            await asyncio.wait([writer])
            attachment.close()
            assert await reader is None

    run(both())


def test_a_command_tells_its_end_after_the_block(runtime: Runtime, talking: Container) -> None:
    with runtime.exec(talking, sh("exit 3")) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert (process.returncode, process.wait()) == (3, 3)
    with runtime.exec(talking, sh("echo here; sleep 600")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
    assert (process.returncode, process.poll()) == (137, 137)
    process.send_signal(9)
    process.kill()


def test_a_refusal_is_told_again(runtime: Runtime, talking: Container) -> None:
    with runtime.exec(talking, ["/nope"]) as process:
        for _ in range(2):
            with pytest.raises(ExecStartError, match="no such file"):
                process.wait(60)
    with pytest.raises(ExecStartError, match="no such file"):
        process.poll()


def test_a_task_may_ask_after_the_block(native: aio.Runtime, make: Make, run: Run) -> None:
    async def after() -> None:
        async with sleeping(native, make) as container:
            async with await native.exec(container, ["sleep", "600"]) as process:
                asker = asyncio.create_task(process.wait())
                await asyncio.sleep(0)
            assert (process.returncode, await process.wait(), await asker) == (137, 137, 137)
            async with await native.exec(container, sh("exit 3")) as process:
                assert process.stdout is not None
                assert await process.stdout.read() == b""
            assert (process.returncode, await process.wait()) == (3, 3)

    run(after())


def test_one_event_loop_after_the_other(
    monitor_path: Path, runc: Path, tmp_path: Path, make: Make, run: Run
) -> None:
    native = aio.Runtime(runc, tmp_path / "containers", monitor_path, starting=1)
    container = make("sleep", "600")

    async def much() -> None:
        async with native.running(container, stdio=(-1, -1, -1)):
            await asyncio.gather(*(native.exec_sync(container, ["true"]) for _ in range(3)))
            await asyncio.gather(*(native.update_status(container) for _ in range(3)))

    for _ in range(2):
        run(much())


def test_a_loop_that_ends_ends_what_it_waits_for(
    native: aio.Runtime, talking: Container, run: Run
) -> None:
    """Tasks that nobody awaits are cancelled with the loop; nothing may stay of them."""

    async def abandon() -> None:
        tasks = [asyncio.create_task(native.exec_sync(talking, ["sleep", "600"])) for _ in range(2)]
        while not any(task.done() for task in tasks) and len(asyncio.all_tasks()) < 3:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    run(abandon())
