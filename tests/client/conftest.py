"""A factory of containers through the monitor under test, for this folder's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

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
