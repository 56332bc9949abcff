"""Live execs, attaching and logs on an event loop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from pyconmon_client import (
    ContainerStateError,
    ExecStartError,
    InvalidArgumentError,
    NotRunningError,
    PyconmonError,
    WaitTimeout,
    aio,
)
from tests.client.test_aio import Make, Run, native, processes, run, sh, sleeping

__all__ = ["native", "run"]


def test_a_conversation(native: aio.Runtime, make: Make, run: Run) -> None:
    async def talk() -> None:
        async with sleeping(native, make) as container:
            script = 'while read line; do echo "got $line"; echo err >&2; done; exit 4'
            async with await native.exec(container, sh(script)) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stderr is not None
                for text in (b"one", b"two"):
                    process.stdin.write(text + b"\n")
                    assert await process.stdout.readline() == b"got " + text + b"\n"
                assert process.returncode is None
                assert process.pid > 0
                with pytest.raises(WaitTimeout):
                    await process.wait(0.05)
                with pytest.raises(ContainerStateError):
                    await process.resize(10, 10)
                process.stdin.close()
                assert await process.wait(30) == 4
                assert process.returncode == 4
                assert await process.stdout.read() == b""
                assert await process.stderr.read() == b"err\n" * 2

    run(talk())


def test_much_both_ways(native: aio.Runtime, make: Make, run: Run) -> None:
    async def exchange() -> None:
        async with sleeping(native, make) as container:
            async with await native.exec(container, ["cat"]) as process:
                done = await process.communicate(b"x" * 3_000_000, 60)
            assert (len(done.stdout), done.exit_code) == (3_000_000, 0)
            script = "head -c 2000000 /dev/zero; exit 3"
            async with await native.exec(container, sh(script)) as process:
                done = await process.communicate(max_output=1000)
            assert (len(done.stdout), done.truncated, done.exit_code) == (1000, True, 3)
            # A reader that is slow gets all of it, after the command's end as well.
            async with await native.exec(container, sh("head -c 60000 /dev/zero")) as process:
                assert process.stdout is not None
                assert await process.wait(30) == 0
                assert len(await process.stdout.read()) == 60_000

    run(exchange())


def test_background_process_holding_the_output(native: aio.Runtime, make: Make, run: Run) -> None:
    async def exchange() -> None:
        async with sleeping(native, make) as container:
            async with await native.exec(container, sh("echo out; sleep 611 & exit 0")) as process:
                done = await process.communicate(timeout=60)
            assert (done.stdout, done.exit_code) == (b"out\n", 0)
            assert "sleep 611" in await processes(native, container)

    run(exchange())


def test_ends_of_a_process(native: aio.Runtime, make: Make, run: Run) -> None:
    async def end() -> None:
        async with sleeping(native, make) as container:
            async with await native.exec(container, sh("sleep 612 & sleep 613")) as process:
                process.terminate()
                assert await process.wait(30) == 143
            async with await native.exec(container, sh("trap '' TERM; sleep 614")) as process:
                await process.kill()
                assert await process.wait(30) == 137
                await process.kill()
            # Leaving the block is enough, by whatever way.
            with pytest.raises(ZeroDivisionError):
                async with await native.exec(container, ["sleep", "615"]):
                    raise ZeroDivisionError
            task = asyncio.create_task(_hold(native, container))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = await processes(native, container)
            for number in ("613", "614", "615", "616"):
                assert f"sleep {number}" not in left

    async def _hold(native: aio.Runtime, container: object) -> None:
        async with await native.exec(container, ["sleep", "616"]) as process:  # type: ignore[arg-type]
            await process.wait()

    run(end())


@pytest.mark.parametrize("terminal", [False, True])
def test_what_cannot_be_started(native: aio.Runtime, make: Make, run: Run, terminal: bool) -> None:
    async def fail() -> None:
        async with sleeping(native, make) as container:
            for command, why in (("/nope", "no such file"), ("/etc", "permission denied")):
                with pytest.raises(ExecStartError, match=why):
                    await native.exec(container, [command], terminal=terminal)
        with pytest.raises(ExecStartError):
            await native.exec(container, ["true"], terminal=terminal)

    run(fail())


def test_leaving_the_output_and_coming_back(native: aio.Runtime, make: Make, run: Run) -> None:
    """Nothing of it is lost, and nothing keeps reading behind the caller's back."""
    lines = range(500)

    async def come_and_go() -> None:
        async with sleeping(native, make) as container:
            script = "i=0; while [ $i -lt 500 ]; do echo $i; echo $i >&2; i=$((i+1)); done"
            async with await native.exec(container, sh(script)) as process:
                got = {"stdout": b"", "stderr": b""}
                before = None
                while got != before:
                    before = dict(got)
                    async for piece in process.output():
                        got[piece.stream] += piece.data
                        break
                expected = b"".join(b"%d\n" % number for number in lines)
                assert got == {"stdout": expected, "stderr": expected}
                assert process.stdout is not None
                assert await process.stdout.read() == b""

    run(come_and_go())


@pytest.mark.parametrize("terminal", [False, True])
def test_output_has_a_time_limit(native: aio.Runtime, make: Make, run: Run, terminal: bool) -> None:
    async def late() -> None:
        async with sleeping(native, make) as container:
            command = sh("echo here; sleep 600")
            async with await native.exec(container, command, terminal=terminal) as process:
                async for piece in process.output(timeout=60):
                    assert piece.data.strip() == b"here"
                    break
                with pytest.raises(WaitTimeout):
                    async for piece in process.output(timeout=0.05):
                        raise AssertionError(piece)
                assert process.returncode is None

    run(late())


def test_a_terminal(native: aio.Runtime, make: Make, run: Run) -> None:
    async def talk() -> None:
        async with sleeping(native, make) as container:
            script = "stty -echo; echo ready; read x; stty size; echo got $x; exit 6"
            started = native.exec(container, sh(script), terminal=True, size=(20, 70))
            async with await started as process:
                attachment = process.attachment
                assert attachment is not None
                assert process.stdin is process.stdout is process.stderr is None
                seen = b""
                while b"ready\r\n" not in seen:
                    piece = await attachment.recv(30)
                    assert piece is not None
                    seen += piece.data
                with pytest.raises(InvalidArgumentError):
                    await process.resize(-1, 5)
                await attachment.send(b"this\n")
                rest = b"".join([piece.data async for piece in process.output()])
                assert rest == b"20 70\r\ngot this\r\n"
                assert await process.wait(30) == 6

    run(talk())


def test_resizing(native: aio.Runtime, make: Make, run: Run) -> None:
    async def resize() -> None:
        script = "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.1; done"
        container = make(*sh(script), terminal=True, log=True)
        await native.create_container(container)
        async with await native.attach(container) as attachment:
            await native.start_container(container)
            piece = await attachment.recv(30)
            assert piece is not None
            assert piece.data == b"ready\r\n"
            await attachment.resize(33, 99)
            assert b"".join([piece.data async for piece in attachment]) == b"33 99\r\n"
        assert await native.wait(container, 30) == 5
        with pytest.raises(NotRunningError):
            await native.resize(container, 1, 1)
        with pytest.raises(NotRunningError):
            await native.attach(container)
        await native.delete_container(container)

    run(resize())


def test_attached_conversation(native: aio.Runtime, make: Make, run: Run) -> None:
    async def talk() -> None:
        container = make(*sh("cat; echo err >&2; exit 2"), log=True)
        await native.create_container(container, stdin=True)
        async with await native.attach(container) as attachment:
            await native.start_container(container)
            with pytest.raises(WaitTimeout):
                await attachment.recv(0.05)
            data = bytes(range(256)) * 2000
            streams = await attachment.communicate(data, timeout=60)
            assert (streams.stdout, streams.stderr) == (data, b"err\n")
        assert await native.wait(container, 30) == 2
        await native.delete_container(container)

    run(talk())


def test_logs(native: aio.Runtime, make: Make, run: Run) -> None:
    async def read() -> None:
        script = "echo 1; echo 2; read x; echo 3; read x; echo 4; exit 0"
        container = make(*sh(script), log=True)
        await native.create_container(container, stdin=True)
        async with await native.attach(container) as attachment:
            await native.start_container(container)
            async with native.logs(container, follow=True, tail=100) as lines:
                assert [(await anext(lines)).data for _ in range(2)] == [b"1\n", b"2\n"]
                # A rotation in between loses nothing.
                os.rename(container.log_path, container.log_path + ".1")
                await native.reopen_logs(container)
                await attachment.send(b"\n")
                assert (await anext(lines)).data == b"3\n"
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await anext(lines)
                await attachment.send(b"\n")
                assert [line.data async for line in lines] == [b"4\n"]
        assert await native.wait(container, 30) == 0
        everything = [line.data async for line in native.logs(container)]
        assert everything == [b"1\n", b"2\n", b"3\n", b"4\n"]
        last = [line async for line in native.logs(container, tail=1, timestamps=True)]
        assert [line.data for line in last] == [f"{last[0].timestamp} 4\n".encode()]
        followed = [line.data async for line in native.logs(container, follow=True, tail=2)]
        assert followed == [b"3\n", b"4\n"]
        await native.delete_container(container)

    run(read())


def test_logs_that_are_not_there(native: aio.Runtime, make: Make, run: Run, tmp_path: Path) -> None:
    async def read() -> None:
        with pytest.raises(PyconmonError, match="no log"):
            native.logs(make("true"))
        with pytest.raises(PyconmonError, match="no such file"):
            async for _ in native.logs(make("true", log=True)):
                pass
        with pytest.raises(InvalidArgumentError):
            native.logs(make("true", log=True), tail=-1)

    run(read())
