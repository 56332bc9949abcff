"""Fixtures of all tests; what they build on is in tests/helpers/."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import runtimes, session
from tests.helpers.drive import Drive
from tests.helpers.monitors import monitor

# The tests start the monitor from the checkout; its own settings must not reach it from outside.
for _name in [name for name in os.environ if name.startswith(("_OCI_", "PYCONMON_"))]:
    if _name != "PYCONMON_RECOVERY_ROUNDS":  # a setting of the tests
        del os.environ[_name]


def _ordinary_signals() -> None:
    """Undo what whoever started us has left: else all processes of the tests have it, containers too.

    A shell starts what runs in its background with INT and QUIT ignored, nohup ignores HUP. A starter
    that uses posix_spawn (make does) leaves 32 and 33 ignored: they are glibc's own, and it refuses to
    let anybody set them, so the kernel is asked.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for usual in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(usual) == signal.SIG_IGN:
            ours = signal.default_int_handler if usual == signal.SIGINT else signal.SIG_DFL
            signal.signal(usual, ours)
    number = {"x86_64": 13, "aarch64": 134}.get(platform.machine())  # rt_sigaction
    if number is not None:
        default = ctypes.create_string_buffer(64)
        for internal in (32, 33):
            ctypes.CDLL(None).syscall(number, internal, default, None, 8)


def pytest_configure(config: pytest.Config) -> None:
    """All temporary files below the directory of this run, see session.py."""
    _ordinary_signals()
    if config.option.basetemp is None:
        session.SESSION_DIR.mkdir(mode=0o755)
        config.option.basetemp = str(session.SESSION_DIR / "t")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing of ours stays in /tmp, however the run ended."""
    session.sweep()
    shutil.rmtree(session.SESSION_DIR, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """The run fails if a container, mount, cgroup or process that it started is still there."""
    yield
    session.check()


@pytest.fixture(params=["pyconmon", "conmon"])
def monitor_path(request: pytest.FixtureRequest) -> Path:
    """Both monitors in turn: what holds for the wire has to hold for the reference too."""
    return monitor(request.param)


@pytest.fixture
def pyconmon() -> Path:
    """The pyconmon command."""
    return monitor("pyconmon")


@pytest.fixture
def conmon() -> Path:
    """C conmon."""
    return monitor("conmon")


@pytest.fixture
def runtime_root(tmp_path: Path) -> Path:
    """The private state directory of this test's runtime."""
    root = tmp_path / "runtime-root"
    root.mkdir()
    return root


@pytest.fixture
def runc(runtime_root: Path) -> Iterator[Path]:
    """runc with that state directory; what containers are left go with the test."""
    wrapper = runtimes.runc(runtime_root)
    yield wrapper
    runtimes.delete_all(wrapper)


@pytest.fixture
def shim_runtime(runtime_root: Path) -> Iterator[Path]:
    """The runtime double that leaves a shim, as hypervisor-based runtimes do."""
    wrapper = runtimes.shim(runtime_root)
    yield wrapper
    runtimes.delete_all(wrapper)


@pytest.fixture
def drive(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Drive]]:
    """drive(args, monitor=..., runtime=..., **settings) -> Drive: container sessions of this test.

    monitor defaults to pyconmon and runtime to the runc fixture; see Drive for the settings.
    """
    with ExitStack() as stack:

        def make(args: Any, **settings: Any) -> Drive:
            if "monitor" not in settings:
                settings["monitor"] = monitor("pyconmon")
            if "runtime" not in settings:
                settings["runtime"] = request.getfixturevalue("runc")
            return stack.enter_context(Drive(args, tmp_path, **settings))

        yield make
