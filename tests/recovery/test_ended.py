"""The container has ended while nobody watched, or its monitor died while it reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import recovering
from tests.helpers.bundles import no_pid_namespace
from tests.helpers.drive import Drive
from tests.helpers.need import need_program
from tests.helpers.recovering import JOURNAL, STATE, kill_monitor, reap, recovered, state, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]


@pytest.fixture
def orphans() -> Iterator[None]:
    with recovering.adopting_orphans():
        yield


def end(container: Drive, number: int = signal.SIGKILL) -> None:
    """The container's process ends, unseen: its zombie is our child."""
    os.kill(container.pid, number)
    wait_until(lambda: gone(container.pid), what="the container's end")


def settled(container: Drive) -> None:
    """Nothing is kept any more, a moment after the exit file."""
    kept = [container.directory / STATE, container.directory / JOURNAL]
    wait_until(lambda: not any(path.exists() for path in kept), what="the end of what was kept")


@pytest.mark.usefixtures("orphans")
class TestEndedUnwatched:
    def test_a_zombie_tells_its_code(self, drive: Make) -> None:
        container = wait_kept(drive(["sleep", "1000"]).run())
        kill_monitor(container)
        end(container)
        recovered(container)
        assert container.wait_exit() == 137
        reap(container.pid)
        settled(container)

    def test_a_kernel_that_remembers_tells_it_after_the_reaping(self, drive: Make) -> None:
        """The successor holds a pidfd; its parent, which is not the monitor, reaps the process."""
        container = wait_kept(drive(["sleep", "1000"], edit=no_pid_namespace).run())
        kill_monitor(container)
        recovered(container)
        os.kill(container.pid, signal.SIGTERM)
        assert os.WTERMSIG(reap(container.pid)) == signal.SIGTERM
        assert container.wait_exit() == 143
        container.wait_monitor()
        settled(container)

    def test_reaped_by_somebody_is_lost_and_said_so(self, drive: Make, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        container = drive(["sleep", "1000"], options=["--exit-command", "/bin/touch",
                          "--exit-command-arg", ran])  # fmt: skip
        wait_kept(container.run())
        kill_monitor(container)
        end(container)
        reap(container.pid)
        recovered(container)
        assert container.wait_exit() == -1, "an unknown code is never 0"
        wait_until(ran.exists, what="the exit command")
        left = wait_until(
            lambda: (s := state(container.directory))["phase"] == "lost" and s, what="the reason"
        )
        assert isinstance(left, dict)
        assert "exit status" in left["reason"]
        wait_until(lambda: not (container.directory / JOURNAL).exists(), what="its journal's end")
        # And that is the end of it: nothing is reported again.
        container.exit_file.unlink()
        ran.unlink()
        recovered(container)
        assert not container.exit_file.exists()
        assert not ran.exists()

    def test_another_process_with_its_pid_is_not_taken_for_it(self, drive: Make) -> None:
        container = wait_kept(drive(["sleep", "1000"]).run())
        kill_monitor(container)
        end(container)
        reap(container.pid)
        stranger = subprocess.Popen(["sleep", "1000"])
        try:
            change(container, container_pid=stranger.pid)
            recovered(container)
            assert container.wait_exit() == -1
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    def test_a_start_in_the_same_bundle_forgets_what_was(self, drive: Make) -> None:
        container = wait_kept(drive(["sh", "-c", "sleep 0.1; exit 4"]).create())
        kill_monitor(container)
        end(container)
        reap(container.pid)
        container.delete()
        container.sync.close()
        again = drive(["true"])
        again.directory = again.bundle = container.directory
        again.exit_dir, again.log = container.exit_dir, container.log
        again.pidfile, again.monitor_pidfile = container.pidfile, container.monitor_pidfile
        again.ident, again.logs = container.ident, container.logs
        again.create()
        wait_until(lambda: state(container.directory)["container_pid"] == again.pid, what="a state")
        again.start()
        assert again.wait_exit() == 4
        again.wait_monitor()
        settled(again)


def change(container: Drive, **fields: Any) -> None:
    """Make the state file say something else."""
    path = container.directory / STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- killed while it reports: at a given system call of its last moments


def dying(container: Drive, tmp_path: Path, call: str, number: int) -> Drive:
    """The container's monitor will be killed at its so-and-so-manieth call of that name.

    Counted in the process that watches, which strace names in the output.
    """
    strace = need_program("strace")
    wrapper = tmp_path / "dying-monitor"
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    wrapper.write_text(
        f"#!/bin/sh\nexec {strace} -D -f -qq -o /dev/null -e trace={call} -e {inject} "
        f'{container.monitor} "$@"\n'
    )
    wrapper.chmod(0o755)
    container.monitor = wrapper
    return container


# The renames of a life: 1 state: running, 2 state: ended, 3 persist dir, 4 exit dir, 5 state: reported.
# (The pid file is renamed by the parent of the process that watches.)
@pytest.mark.parametrize(
    ("call", "number", "codes"),
    [
        ("rename", 2, (-1, 9)),  # the code was known to nobody else
        ("fsync", 1, (9,)),
        ("rename", 3, (9,)),
        ("rename", 4, (9,)),
        ("rename", 5, (9,)),
    ],
)
def test_killed_while_reporting(
    drive: Make, tmp_path: Path, call: str, number: int, codes: tuple[int, ...]
) -> None:
    persist = tmp_path / "persist"
    persist.mkdir()
    runs = tmp_path / "runs"
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\necho ran >>{runs}\n")
    command.chmod(0o755)
    container = drive(
        ["sh", "-c", "seq 1 2000; exit 9"],
        options=["--persist-dir", persist, "--exit-command", command],
    )
    dying(container, tmp_path, call, number).run()
    pid = container.monitor_pid
    wait_until(lambda: gone(pid), what="the monitor's death")
    assert (persist / STATE).exists()
    assert not runs.exists()
    wait_until(
        lambda: recovering.recover(persist).returncode == 0 and runs.read_text() == "ran\n",
        what="a recovery",
    )
    code = container.wait_exit()
    assert code in codes
    assert (persist / "exit").read_text() == str(code)
    assert runs.read_text() == "ran\n"
    if code == 9:
        assert container.logged() == b"".join(b"%d\n" % line for line in range(1, 2001))
        wait_until(lambda: os.listdir(persist) == ["exit"],
                   what="an empty persist dir")  # fmt: skip
    assert recovering.recover(persist).returncode == 0
    assert runs.read_text() == "ran\n"
    # No half-written files of the dead monitor either.
    assert sorted(os.listdir(container.exit_dir)) == [container.ident]


def test_a_report_that_was_made_is_not_made_again(drive: Make, tmp_path: Path) -> None:
    """The exit file's time is the time of the end for callers."""
    container = drive(["sh", "-c", "exit 9"], options=["--exit-command", "/bin/true"])
    dying(container, tmp_path, "rename", 4).run()  # without a persist dir: state: reported
    pid = container.monitor_pid
    wait_until(lambda: gone(pid), what="the monitor's death")
    assert container.wait_exit() == 9
    before = container.exit_file.stat()
    recovered(container)
    after = container.exit_file.stat()
    assert (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)


# --- the exit command


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """An exit command that says it runs, and goes on when it may."""
    script = tmp_path / "command"
    script.write_text(
        f"#!/bin/sh\necho ran >>{tmp_path}/runs\n"
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done\necho ended >>{tmp_path}/runs\n"
    )
    script.chmod(0o755)
    return script


def test_killed_while_the_exit_command_runs(drive: Make, tmp_path: Path, command: Path) -> None:
    runs = tmp_path / "runs"
    container = drive(["true"], options=["--exit-command", command]).run()
    wait_until(runs.exists, what="the exit command")
    kill_monitor(container)
    recovered(container)
    (tmp_path / "go").touch()
    wait_until(lambda: runs.read_text() == "ran\nended\n", what="the command's end")
    recovered(container)
    assert runs.read_text() == "ran\nended\n"
    settled(container)


def test_killed_during_the_exit_delay(drive: Make, tmp_path: Path, command: Path) -> None:
    (tmp_path / "go").touch()
    runs = tmp_path / "runs"
    container = drive(["true"], options=["--exit-command", command, "--exit-delay", "1"]).run()
    container.wait_exit()
    wait_until(lambda: state(container.directory)["phase"] == "reported", what="its report")
    kill_monitor(container)
    recovered(container)
    wait_until(lambda: runs.exists() and runs.read_text() == "ran\nended\n", what="the command")
    wait_until(lambda: not recovering.watched(container), what="the end of all monitors")
    recovered(container)
    assert runs.read_text() == "ran\nended\n"
    settled(container)


def test_an_exit_command_may_start_the_container_again(drive: Make, tmp_path: Path) -> None:
    """As `--restart` does: its state has the place of the old one."""
    again = tmp_path / "again"
    container = drive(["sh", "-c", "sleep 1000"], options=["--exit-command", again])
    words = [str(word) for word in container.arguments()]
    words[words.index(str(again))] = "/bin/true"
    again.write_text(
        f"#!/bin/sh\n{container.runtime} delete --force {container.ident}\nunset _OCI_SYNCPIPE\n"
        + " ".join(f"'{word}'" for word in [str(container.monitor), *words])
        + f"\nwhile [ ! -e {container.directory / STATE} ]; do sleep 0.01; done\n"
    )
    again.chmod(0o755)
    wait_kept(container.run())
    first, monitor = container.pid, container.monitor_pid
    container.kill()
    wait_until(lambda: gone(monitor), what="the first monitor's end")
    kept = state(wait_kept(container).directory)
    assert kept["phase"] == "running"
    assert kept["container_pid"] != first
    kill_monitor(container)
    recovered(container)
    assert container.start().status() == "running"
    container.exit_file.unlink()
    container.kill()
    assert container.wait_exit() == 137
    container.wait_monitor()
    settled(container)


# --- what cannot be used


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2, "phase": "running"}'])
def test_a_state_that_is_none_is_an_error(drive: Make, content: str) -> None:
    container = wait_kept(drive(["sleep", "1000"]).run())
    kill_monitor(container)
    (container.directory / STATE).write_text(content)
    done = recovering.recover(container.directory)
    assert done.returncode == 1
    assert STATE in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert container.status() == "running"


def test_options_that_nobody_understands_are_an_error(drive: Make) -> None:
    container = wait_kept(drive(["sleep", "1000"]).run())
    kill_monitor(container)
    good = state(container.directory)["argv"]
    change(container, argv=["--no-such-option"])
    done = recovering.recover(container.directory)
    assert done.returncode == 1
    assert done.stderr
    assert "Traceback" not in done.stderr
    change(container, argv=good)
    recovered(container)


def test_a_removed_runtime_and_log_directory_do_not_matter(drive: Make, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    runtime = tmp_path / "its-own-runtime"
    container = drive(["sleep", "1000"], log=[f"k8s-file:{logs}/ctr.log"])
    plain = container.runtime
    runtime.write_text(f'#!/bin/sh\nexec {plain} "$@"\n')
    runtime.chmod(0o755)
    container.runtime = runtime
    wait_kept(container.run())
    container.runtime = plain
    kill_monitor(container)
    (logs / "ctr.log").unlink()
    logs.rmdir()
    runtime.unlink()
    recovered(container)
    container.kill()
    assert container.wait_exit() == 137


def test_a_bundle_that_is_elsewhere(drive: Make, tmp_path: Path) -> None:
    """It is watched, and its end noted; what could not be written there is made up for later."""
    container = wait_kept(drive(["sleep", "1000"]).run())
    kill_monitor(container)
    elsewhere = container.directory.rename(tmp_path / "elsewhere")
    done = recovering.recover(elsewhere)
    assert done.returncode == 0
    assert "clients cannot attach" in done.stderr
    assert "internal error" not in done.stderr
    os.kill(container.pid, signal.SIGKILL)
    wait_until(
        lambda: "could not be written" in state(elsewhere).get("reason", ""), what="the reason"
    )
    elsewhere.rename(container.directory)
    recovered(container)
    assert container.wait_exit() == 137


def test_without_its_journal(drive: Make) -> None:
    """Somebody cleans up what he does not know: while the monitor lives, and after its death."""
    container = wait_kept(drive(["sh", "-c", "sleep 1000; echo never"]).run())
    (container.directory / JOURNAL).unlink()
    said = recovering.recover(container.directory, "--log-level", "info")
    assert said.returncode == 0
    assert "has a monitor" in said.stderr
    kill_monitor(container)
    recovered(container)
    container.kill()
    assert container.wait_exit() == 137


def test_no_recovery_keeps_nothing(drive: Make) -> None:
    container = drive(["sh", "-c", "sleep 1000"], options=["--no-recovery"]).run()
    assert container.status() == "running"
    assert not (container.directory / STATE).exists()
    assert not (container.directory / JOURNAL).exists()
    kill_monitor(container)
    recovered(container)
    assert not container.exit_file.exists()
