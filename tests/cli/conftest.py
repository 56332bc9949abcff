"""pyconmon-client as a user calls it, with a state directory and a runtime of the test's own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.bundles import rootfs
from tests.helpers.monitors import PYTHON
from tests.helpers.need import need
from tests.helpers.session import SESSION_DIR, TOKEN

# C conmon leaves its console socket behind when a command with a terminal cannot be started.
ENVIRONMENT = {**os.environ, "TMPDIR": str(SESSION_DIR)}
_numbers = itertools.count(1)


@dataclass
class Result:
    """An ended command."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass
class Cli:
    """cli("ps", "-a") runs the command and returns its Result."""

    state_dir: Path
    runtime: Path
    monitor: Path
    made: list[str] = field(default_factory=list)

    def argv(self, *words: str | Path) -> list[str]:
        options = ["--state-dir", self.state_dir, "--runtime", self.runtime]
        command = [PYTHON, "-I", "-m", "pyconmon_client.cli", *options, "--monitor", self.monitor]
        return [str(word) for word in (*command, *words)]

    def __call__(self, *words: str | Path, stdin: str = "", **more: Any) -> Result:
        more.setdefault("env", ENVIRONMENT)
        done = subprocess.run(
            self.argv(*words), input=stdin, capture_output=True, text=True, timeout=100, **more
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path, **more: Any) -> subprocess.Popen[str]:
        """The same, going on; its streams are pipes."""
        more.setdefault("env", ENVIRONMENT)
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")} | more
        return subprocess.Popen(self.argv(*words), text=True, **pipes)

    def name(self) -> str:
        """One that no other test of this machine uses: it names the container's cgroup as well."""
        self.made.append(f"{TOKEN}-{next(_numbers)}")
        return self.made[-1]

    def sleeper(self, *options: str) -> str:
        """The name of a container that runs."""
        name = self.name()
        done = self("run", "-d", "--name", name, *options, "--rootfs", rootfs(), "sleep", "600")
        assert (done.status, done.stdout) == (0, f"{name}\n"), done
        return name


def make(tmp_path: Path, runc: Path, monitor: Path) -> Iterator[Cli]:
    need(os.access(PYTHON, os.X_OK), "the environment that scripts/setup makes")
    command = Cli(tmp_path / "state", runc, monitor)
    yield command
    command("rm", "-f", "-a")


@pytest.fixture
def cli(tmp_path: Path, runc: Path, pyconmon: Path) -> Iterator[Cli]:
    """With pyconmon as its monitor."""
    yield from make(tmp_path, runc, pyconmon)


@pytest.fixture
def both(tmp_path: Path, runc: Path, monitor_path: Path) -> Iterator[Cli]:
    """With either monitor."""
    yield from make(tmp_path, runc, monitor_path)


@pytest.fixture
def root() -> str:
    """A root file system."""
    return str(rootfs())
