"""States that nobody can use, and states of something that is over: said in a line, and not acted upon."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import recovering
from tests.helpers.drive import Drive, SyncPipe
from tests.helpers.recovering import JOURNAL, STATE, kill_monitor, recover, recovered, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]
NOBODY = 0x7FFFFFF0  # more than any kernel gives as a pid


def left(directory: Path, **changes: Any) -> Path:
    """Leave the state of a container that has ended, as an odd or hostile monitor might have."""
    directory.mkdir(exist_ok=True)
    words = ["--api-version", "1", "-c", "x", "-u", "x", "-n", "x", "-r", "/bin/true"]
    words += ["-b", str(directory), "-p", f"{directory}/pid", "--exit-dir", str(directory)]
    words += ["-l", f"{directory}/ctr.log"]
    content = {
        "version": 1,
        "phase": "running",
        "argv": words,
        "cwd": "/",
        "environment": ["A=b"],
        "container_pid": NOBODY,
        "container_start": 5,
        "monitor_pid": NOBODY,
        "monitor_start": 5,
        "pipes": {"1": 5, "2": 6},
        "begun": 3.0,
    }
    path = directory / STATE
    path.write_text(json.dumps({**content, **changes}))
    path.chmod(0o600)
    return directory


def test_a_state_of_that_kind_is_settled(tmp_path: Path) -> None:
    """So that the tests below fail for the reason that they name."""
    assert recover(left(tmp_path / "c")).returncode == 0
    assert (tmp_path / "c" / "x").read_text() == "-1"


@pytest.mark.parametrize("options", [[], ["--sync"]], ids=["daemon", "sync"])
@pytest.mark.parametrize(
    "changes",
    [
        {"container_pid": 10**20},
        {"monitor_pid": 10**20},
        {"monitor_pid": -1},
        {"argv": []},
        {"argv": ["--no-such-option"]},
        {"argv": ["-c", "\ud800"]},
        {"cwd": "a\0b"},
        {"cwd": "\ud800"},
        {"oom_score": "\ud800"},
    ],
    ids=str,
)
def test_what_cannot_be_used_is_said_in_a_line(
    tmp_path: Path, changes: dict[str, Any], options: list[str]
) -> None:
    done = recover(left(tmp_path / "c", **changes), *options)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"cannot recover {tmp_path}/c: " in done.stderr
    assert not (tmp_path / "c" / "x").exists()
    assert (tmp_path / "c" / STATE).exists()


def test_a_fifo_is_no_state(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATE, 0o600)
    writer = os.open(tmp_path / STATE, os.O_RDWR)
    try:
        done = recover(tmp_path)
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("code", [10**30, -5, 256, "0", None])
def test_a_code_that_is_none_is_not_known(tmp_path: Path, code: object) -> None:
    done = recover(left(tmp_path / "c", phase="ended", code=code), "--sync")
    assert done.returncode == 255, done.stderr
    assert (tmp_path / "c" / "x").read_text() == "-1"


def test_one_that_cannot_be_used_does_not_keep_others(tmp_path: Path) -> None:
    left(tmp_path / "a", monitor_pid=10**20)
    left(tmp_path / "b")
    assert recover(tmp_path, under=True).returncode == 1
    assert (tmp_path / "b" / "x").read_text() == "-1"


def test_more_containers_than_descriptors(tmp_path: Path) -> None:
    count = 45
    for number in range(count):
        left(tmp_path / f"c{number}")

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    done = recover(tmp_path, under=True, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("c*/x"))) == count


def test_a_state_from_before_the_machine_started_anew(drive: Make) -> None:
    """Pid and start time may be somebody else's now: he is neither watched nor signalled."""
    container = wait_kept(drive(["sleep", "1000"], options=["-T", "1000"]).run())
    kill_monitor(container)
    path = container.directory / STATE
    content = recovering.state(container.directory)
    assert content["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path.write_text(json.dumps({**content, "boot": "another", "begun": -(10**6)}))
    recovered(container)
    assert container.wait_exit() == -1
    assert container.status() == "running"
    assert recovering.state(container.directory)["phase"] == "lost"


@pytest.fixture
def run_again(drive: Make, tmp_path: Path) -> Callable[[list[str]], Drive]:
    """A container of the same name in the same place as one that ended unwatched."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/hooked\n")
    hook.chmod(0o755)

    def make(options: list[str]) -> Drive:
        container = drive(["sleep", "1000"], options=["--exit-command", str(hook)])
        wait_kept(container.run())
        kill_monitor(container)
        os.kill(container.pid, signal.SIGKILL)
        wait_until(lambda: gone(container.pid), what="the container's end")
        container.delete()
        container.sync.close()
        container.sync = SyncPipe()
        container.options += options
        return container

    return make


def ends_once(container: Drive, hooked: Path) -> None:
    assert not container.exit_file.exists()
    assert not hooked.exists()
    container.kill()
    assert container.wait_exit() == 137
    container.wait_monitor()
    assert hooked.read_text() == "ran\n"


def test_an_earlier_containers_state_is_not_reported_for_the_next(
    run_again: Callable[[list[str]], Drive], tmp_path: Path
) -> None:
    """The next one keeps nothing itself, so there was nothing to replace the state with."""
    container = run_again(["--no-recovery"]).run()
    assert recover(container.directory, "--sync").returncode == 0
    assert not (container.directory / STATE).exists()
    assert not (container.directory / JOURNAL).exists()
    ends_once(container, tmp_path / "hooked")


@pytest.mark.parametrize("options", [[], ["--no-recovery"]], ids=["kept", "not-kept"])
def test_nor_while_the_next_is_created(
    run_again: Callable[[list[str]], Drive], tmp_path: Path, options: list[str]
) -> None:
    container = run_again(options)
    plain = container.runtime
    slow = tmp_path / "slow"
    os.mkfifo(tmp_path / "go")
    slow.write_text(
        f'#!/bin/sh\n: > {tmp_path}/at-work\nread go < {tmp_path}/go\nexec {plain} "$@"\n'
    )
    slow.chmod(0o755)
    container.runtime = slow
    container.launch()
    wait_until((tmp_path / "at-work").exists, what="the runtime")
    wait_until(lambda: recovering.watched(container), what="the monitor")
    done = recover(container.directory, "--sync", "--log-level", "info")
    assert done.returncode == 0
    assert "has a monitor" in done.stderr
    container.runtime = plain
    (tmp_path / "go").write_text("\n")
    answer = container.sync.line()
    assert answer is not None and answer["data"] > 0
    container.start()
    ends_once(container, tmp_path / "hooked")


def test_but_if_the_next_cannot_be_created(
    run_again: Callable[[list[str]], Drive], tmp_path: Path
) -> None:
    """Then nothing has taken its place, and its end is owed as before."""
    container = run_again([])
    plain, container.runtime = container.runtime, Path("/bin/false")
    container.launch()
    answer = container.sync.line()
    assert answer is not None and answer["data"] == -1
    container.runtime = plain
    wait_until(lambda: not recovering.watched(container), what="the monitor's end")
    assert recovering.state(container.directory)["phase"] == "running"
    assert recover(container.directory, "--sync").returncode in (137, 255)
    assert container.exit_file.exists()
