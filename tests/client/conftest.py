"""A factory of containers through the monitor under test, for this folder's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from pyconmon_client import Container, PyconmonError, Runtime
from tests.helpers.bundles import make_bundle
from tests.helpers.drive import Drive

Drives = Callable[..., Drive]


@pytest.fixture
def drives(monitor_path: Path, runc: Path, tmp_path: Path) -> Iterator[Drives]:
    """Drive with this test's monitor and runc, and put away at its end."""
    with ExitStack() as stack:

        def make(*args: str, **settings: Any) -> Drive:
            container = Drive(args, tmp_path, monitor=monitor_path, runtime=runc, **settings)
            return stack.enter_context(container)

        yield make


@pytest.fixture
def runtime(monitor_path: Path, runc: Path, tmp_path: Path) -> Runtime:
    """The client's runtime: this test's monitor and runc, records in a directory of the test."""
    return Runtime(runc, tmp_path / "containers", monitor_path)


@pytest.fixture
def make(tmp_path: Path, runtime: Runtime) -> Iterator[Callable[..., Container]]:
    """make(*args, log=False, edit=..., **of Container) -> Container with a bundle, put away later."""
    made: list[Container] = []

    def container(*args: str, log: bool = False, edit: Any = None, **more: Any) -> Container:
        name = f"c{len(made)}"
        terminal = bool(more.get("terminal", False))
        bundle = make_bundle(tmp_path / name, args, terminal=terminal, edit=edit)
        log_path = str(bundle / "ctr.log") if log else ""
        made.append(Container(name, name, str(bundle), log_path, **more))
        return made[-1]

    yield container
    for each in made:
        with suppress(PyconmonError):
            runtime.delete_container(each, force=True)


@pytest.fixture
def running(make: Callable[..., Container], runtime: Runtime) -> Container:
    """A container that sleeps."""
    container = make("sleep", "600")
    runtime.create_container(container, stdio=(-1, -1, -1))
    runtime.start_container(container)
    return container
