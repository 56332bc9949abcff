"""What is done twice: a container that exists already, several threads that want the same at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyconmon_client import Container, CreateError, PyconmonError, Runtime, aio

Make = Callable[..., Container]

THREADS = 4


def at_once(work: Callable[[], object]) -> list[PyconmonError | None]:
    """What became of work() in each of the threads; other exceptions are ours."""
    start = threading.Barrier(THREADS)

    def attempt(_: int) -> PyconmonError | None:
        start.wait()
        try:
            work()
        except PyconmonError as error:
            return error
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(attempt, range(THREADS)))


def test_a_life_that_all_of_them_want(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done")
    created = at_once(lambda: runtime.create_container(container, stdio=(-1, -1, -1)))
    assert created.count(None) == 1, created
    assert runtime.update_status(container).status == "created", "no failure has undone it"
    assert all("exists already" in str(error) for error in created if error), created
    init = container.init
    assert init is not None and init.alive()

    started = at_once(lambda: runtime.start_container(container))
    assert started.count(None) == 1, started
    assert at_once(lambda: runtime.update_status(container)) == [None] * THREADS
    assert at_once(lambda: runtime.exec_sync(container, ["true"])) == [None] * THREADS
    assert runtime.update_status(container).status == "running"

    assert at_once(lambda: runtime.stop_container(container, timeout=30)) == [None] * THREADS
    assert runtime.wait(container, timeout=30) == 9
    assert not init.alive()
    deleted = at_once(lambda: runtime.delete_container(container))
    assert deleted.count(None) == 1, deleted
    assert runtime.list() == []


both = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


def create(kind: str, runtime: Runtime, container: Container) -> None:
    """Create it with output into nothing."""
    if kind == "blocking":
        runtime.create_container(container, output="none")
    else:
        native = aio.Runtime(runtime.path, runtime.container_dir, runtime.conmon_path)
        asyncio.run(native.create_container(container, output="none"))


@both
@pytest.mark.parametrize("known", [True, False], ids=["known", "found"])
def test_a_container_that_lives_is_not_touched(
    kind: str, known: bool, runtime: Runtime, make: Make
) -> None:
    container = make("cat")
    runtime.create_container(container, output="none", stdin=True)
    runtime.start_container(container)
    bundle = Path(container.bundle_path)
    files = {path: os.stat(path, follow_symlinks=False).st_ino for path in bundle.iterdir()}
    again = container if known else Container("other", container.name, bundle)
    with pytest.raises(CreateError, match="exists already"):
        create(kind, runtime, again)
    assert {path: os.stat(path, follow_symlinks=False).st_ino for path in bundle.iterdir()} == files
    with runtime.attach(container) as client:
        client.send(b"still there\n")
        assert client.recv().data == b"still there\n"
    assert runtime.wait(container, timeout=30) == 0, "its input has ended with the client"
    runtime.delete_container(container)
    create(kind, runtime, again)  # now there is room for it


@both
def test_a_container_without_a_monitor_is_not_ended(
    kind: str, runtime: Runtime, make: Make
) -> None:
    """Somebody has made one of this name, in this bundle, by hand: it is not what was left half made."""
    container = make("sleep", "600")
    subprocess.run(
        [runtime.path, "create", "--bundle", container.bundle_path, container.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    with pytest.raises(CreateError, match="already exists"):
        create(kind, runtime, container)
    assert runtime.update_status(container).status == "created"
