"""Values that can't be right, records of somebody else, and errors that travel between processes."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from pyconmon_client import (
    Container,
    ContainerNotFound,
    CreateTimeout,
    ExecExitError,
    ExitFileError,
    InvalidArgumentError,
    MonitorError,
    PyconmonError,
    RecordError,
    RunError,
    RunResult,
    Runtime,
    RuntimeCommandError,
    WaitTimeout,
)
from pyconmon_client.attach import SendTimeout
from tests.client.test_aio import Make


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"user": "root"}, "user: 'root'"),
        ({"user": "1:2:3"}, "user: '1:2:3'"),
        ({"env": ["A"]}, "env: 'A'"),
        ({"env": {"A=": "1"}}, "env: 'A='"),
        ({"env": "A=1"}, "env: 'A=1'"),
        ({"cwd": "tmp"}, "cwd: 'tmp'"),
    ],
)
def test_settings_of_a_command(
    runtime: Runtime, running: Container, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        runtime.exec_sync(running, ["true"], **settings)
    with pytest.raises(InvalidArgumentError, match=what):
        runtime.exec(running, ["true"], **settings)


@pytest.mark.parametrize("command", [["a\0b"], ["sleep", 1], [""]])
@pytest.mark.parametrize("dialect", ["auto", "modern"])
def test_words_of_a_command(
    runc: Path, pyconmon: Path, make: Make, command: Any, dialect: Any
) -> None:
    runtime = Runtime(runc, "", pyconmon, dialect=dialect)
    with pytest.raises(InvalidArgumentError, match="command: "):
        runtime.exec_sync(make("true"), command)


def test_a_mapping_as_environment(runtime: Runtime, running: Container) -> None:
    result = runtime.exec_sync(running, ["sh", "-c", "echo $A$B"], env={"A": "1", "B": "x=y"})
    assert result.stdout == b"1x=y\n"


@pytest.mark.parametrize("name", ["-x", "--help", "a\0b", "a\n", "\x7f"])
def test_names_that_would_be_options_or_no_file(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name: "):
        Container("id", name, "/bundle")


def test_words_for_the_runtime(runtime: Runtime, running: Container) -> None:
    with pytest.raises(RuntimeCommandError, match="NUL"):
        runtime.kill_container(running, "TE\0RM")


def test_a_name_that_begins_with_a_dot_is_listed(runtime: Runtime, make: Make) -> None:
    bundle = make("true").bundle_path
    with runtime.running(Container(".x", ".x", bundle), stdio=(-1, -1, -1)):
        assert [container.name for container in runtime.list()] == [".x"]
    assert runtime.list() == []


def test_a_relative_container_dir(
    runc: Path, monitor_path: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It means the caller's directory, not the bundle that the monitor starts in."""
    monkeypatch.chdir(tmp_path)
    runtime = Runtime(runc, "here", monitor_path, dialect="modern")
    container = make("true")
    with runtime.events() as events, runtime.running(container, stdio=(-1, -1, -1)):
        event = events.wait(60)
        assert event is not None
        assert (event.container_id, event.exit_code) == ("c0", 0)
        os.chdir("/")
        assert [found.name for found in runtime.list()] == ["c0"]


def test_no_container_dir_has_no_events(
    runc: Path, monitor_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match="container_dir is empty"):
        Runtime(runc, "", monitor_path).events()
    assert not (tmp_path / "exits").exists()


def test_directories_that_cannot_be(runc: Path, monitor_path: Path, make: Make) -> None:
    """Errors of ours, which name the place."""
    runtime = Runtime(runc, "/proc/none/here", monitor_path)
    with pytest.raises(RecordError, match="/proc/none/here"):
        runtime.create_container(make("true"), stdio=(-1, -1, -1))
    with pytest.raises(RecordError, match="/proc/none/here"):
        runtime.events()
    with pytest.raises(ContainerNotFound):
        runtime.update_status(make("true"))


def test_a_record_under_another_name(runtime: Runtime, running: Container) -> None:
    directory = Path(runtime.container_dir)
    record = json.loads((directory / "c0.json").read_text())
    (directory / "other.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="container c0"):
        runtime.reload("other")
    (directory / "other.json").write_text(json.dumps(record | {"name": "other", "init": []}))
    with pytest.raises(RecordError, match="is no process"):
        runtime.reload("other")
    assert [container.name for container in runtime.list()] == ["c0"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeCommandError("stop container x", ["runc", "kill"], 1, "why"),
        ContainerNotFound("stop container x", ["runc", "kill"], 1, "why"),
        MonitorError("message", "stderr"),
        CreateTimeout("message", "stderr"),
        ExitFileError("/path", "reason"),
        RecordError("/path", "reason"),
        RunError("name", RunResult(1, b"out", b"err")),
        ExecExitError(b"out", b"err", 1, "cause", True),
        SendTimeout("message", 3),
        WaitTimeout("message"),
        InvalidArgumentError("message"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: PyconmonError) -> None:
    """As a pool of processes sends them."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
