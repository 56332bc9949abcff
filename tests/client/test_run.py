"""run(): a container's whole life in one call, and its outcomes told apart."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyconmon_client import Container, CreateError, RunError, Runtime
from tests.helpers.bundles import make_bundle
from tests.helpers.descriptors import descriptors

Make = Callable[..., Container]


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(*args: str, edit: Any = None) -> Path:
        return make_bundle(tmp_path / "bundle", args, edit=edit)

    return make


@pytest.fixture(autouse=True)
def nothing_left(runtime: Runtime, runtime_root: Path) -> Any:
    gc.collect()  # what earlier tests left to the collector does not count
    before = descriptors()
    yield
    assert descriptors() <= before
    assert os.listdir(runtime_root) == []
    assert runtime.list() == []


def test_output_input_and_code(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    result = runtime.run(bundle("sh", "-c", "cat; echo e >&2; exit 3"), stdin=b"x" * 300_000)
    assert (result.stdout, result.stderr, result.exit_code) == (b"x" * 300_000, b"e\n", 3)
    assert not (result.truncated or result.timed_out or result.output_exceeded or result.oom_killed)


def test_without_input_stdin_is_empty(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    assert runtime.run(bundle("cat"), timeout=60).exit_code == 0


def test_timeout(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    script = "trap '' TERM; echo begun; sleep 300 & while :; do sleep 1; done"
    result = runtime.run(bundle("sh", "-c", script), timeout=0.5)
    assert (result.stdout, result.exit_code, result.timed_out) == (b"begun\n", 137, True)
    assert result.seconds >= 0.5


def test_too_much_output(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    result = runtime.run(
        bundle("cat", "/dev/zero"), max_output=1000, kill_on_output=True, timeout=60
    )
    assert (result.stdout, result.exit_code) == (bytes(1000), 137)
    assert (result.output_exceeded, result.timed_out, result.truncated) == (True, False, True)
    script = "head -c 3000000 /dev/zero; exit 4"
    result = runtime.run(bundle("sh", "-c", script), max_output=1000)
    assert (result.stdout, result.exit_code) == (bytes(1000), 4)
    assert (result.output_exceeded, result.truncated) == (False, True)


def test_out_of_memory(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    def limited(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": 20_000_000, "swap": 20_000_000}

    script = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}"
    result = runtime.run(bundle("sh", "-c", script, edit=limited), timeout=60)
    assert result.oom_killed
    assert result.exit_code == 137


def test_check(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    assert runtime.run(bundle("true"), check=True).exit_code == 0
    with pytest.raises(RunError, match="exit code 5") as caught:
        runtime.run(bundle("sh", "-c", "echo o; exit 5"), check=True)
    assert caught.value.result.stdout == b"o\n"
    with pytest.raises(RunError, match="time limit"):
        runtime.run(bundle("sleep", "300"), check=True, timeout=0.3)


def test_cannot_be_created(runtime: Runtime, bundle: Callable[..., Path]) -> None:
    with pytest.raises(CreateError, match=r"/nope.*no such file"):
        runtime.run(bundle("/nope"))


def test_interrupted(
    runtime: Runtime, bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyconmon_client.run.Streams.serve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runtime.run(bundle("sh", "-c", "echo x; sleep 300"))
