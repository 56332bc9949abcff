"""Containers in the classic dialect, with runc and with the runtime that leaves a shim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.classic.sessions import Containers


@pytest.fixture(params=["runc", "shim_runtime"])
def runtime(request: pytest.FixtureRequest) -> Path:
    """Both kinds of runtime in turn."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def containers(runtime: Path, tmp_path: Path) -> Iterator[Containers]:
    """Containers with either runtime."""
    made = Containers(tmp_path, runtime)
    yield made
    made.close()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Containers]:
    """Calls whose runtime the test brings along."""
    made = Containers(tmp_path, Path("/none"))
    yield made
    made.close()
