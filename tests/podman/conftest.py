"""Each test runs a story with both engines, that of C conmon and that of pyconmon, and compares."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.helpers import bundles, session
from tests.helpers.monitors import monitor
from tests.helpers.need import need, need_program, need_root
from tests.helpers.podman import Podman, available

Story = Callable[[Podman], Any]


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, Podman]]:
    """One engine for each monitor, made once: every test cleans up behind itself."""
    need_root()
    need_program("runc")
    need(available(), "podman")
    root = session.SESSION_DIR / "podman"
    rootfs = bundles.rootfs(root)
    made = {}
    try:
        for name in ("conmon", "pyconmon"):
            made[name] = Podman(root / name, name, monitor(name), rootfs)
        probe = made["conmon"].start("true")
        need(probe.status == 0, f"a podman that can run a container: {probe.err!r}")
        yield made
    finally:
        for engine in made.values():
            engine.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def compare(engines: dict[str, Podman]) -> Iterator[Callable[[Story], Any]]:
    """compare(story): what story(podman) returns; the same with both monitors, or the test fails.

    Both stories run at the same time, each with its own engine.
    """

    def run(story: Story) -> Any:
        with ThreadPoolExecutor(2) as pool:
            futures = {name: pool.submit(story, engine) for name, engine in engines.items()}
        found = {name: future.result() for name, future in futures.items()}
        assert found["pyconmon"] == found["conmon"]
        return found["pyconmon"]

    yield run
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Podman.clean, engines.values()))
