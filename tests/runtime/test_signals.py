"""Signals to the monitor, and what the container and its children inherit of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from tests.helpers.bundles import no_pid_namespace
from tests.helpers.harness import Container, Harness, target
from tests.helpers.waiting import gone, wait_until

TRAP = "trap 'echo got; exit 21' {name}; echo ready; while :; do sleep 0.05; done"


def trapping(harness: Harness, name: str) -> Container:
    container = harness.running(["sh", "-c", TRAP.format(name=name)])
    wait_until(lambda: container.log.text() == "ready\n", what="the trap")
    return container


@pytest.mark.parametrize("name", ["TERM", "INT", "QUIT"])
def test_passed_on_to_the_container(harness: Harness, name: str) -> None:
    container = trapping(harness, name)
    os.kill(container.monitor_pid(), getattr(signal, f"SIG{name}"))
    assert container.wait_exit() == "21"
    assert container.log.text() == "ready\ngot\n"


def test_passed_on_to_an_exec(harness: Harness) -> None:
    session = harness.running().exec(["sh", "-c", TRAP.format(name="TERM")])
    session.begin()
    wait_until(lambda: session.log.text() == "ready\n", what="the trap")
    os.kill(session.monitor_pid(), signal.SIGTERM)
    assert session.results()[1] == 21


@pytest.mark.parametrize("name", ["USR1", "PIPE", "WINCH", "CONT", "CHLD"])
def test_without_effect(harness: Harness, name: str) -> None:
    container = trapping(harness, "TERM")
    for _ in range(3):
        os.kill(container.monitor_pid(), getattr(signal, f"SIG{name}"))
    os.kill(container.monitor_pid(), signal.SIGTERM)
    assert container.wait_exit() == "21"


@target("they kill conmon, and leave the container without a monitor")
@pytest.mark.parametrize("name", ["HUP", "USR2", "ALRM"])
def test_a_hangup_leaves_nobody_alone(harness: Harness, name: str) -> None:
    """Whether it is passed on or ignored: the container keeps a monitor to its end."""
    script = "trap 'exit 22' HUP TERM; echo ready; while :; do sleep 0.05; done"
    container = harness.running(["sh", "-c", script])
    wait_until(lambda: container.log.text() == "ready\n", what="the trap")
    os.kill(container.monitor_pid(), getattr(signal, f"SIG{name}"))
    container.kill("TERM")
    assert container.wait_exit() == "22"


def test_stopped_and_continued(harness: Harness) -> None:
    container = trapping(harness, "TERM")
    monitor = container.monitor_pid()
    os.kill(monitor, signal.SIGSTOP)
    container.kill("TERM")
    wait_until(lambda: gone(container.container_pid()), what="the container's end")
    assert not container.exit_file.exists()
    os.kill(monitor, signal.SIGCONT)
    assert container.wait_exit() == "21"
    assert container.log.text() == "ready\ngot\n"


def test_terminated_before_the_start_byte(harness: Harness) -> None:
    container = harness.container(["true"])
    called = harness.home / "called"
    container.runtime = harness.script("noting", f"echo >{called}; exit 1")
    call = container.create(start_pipe=True)
    wait_until(lambda: call.process.asleep(), what="the wait for the byte")
    call.process.kill(signal.SIGTERM)
    assert call.status() in (1, -signal.SIGTERM)
    assert call.sync.rest() == b""
    assert not called.exists()
    assert not container.pidfile.exists()
    assert not (container.directory / "ctl").exists()


def test_terminated_while_the_container_is_being_created(harness: Harness) -> None:
    """The signal goes to the runtime; the caller hears of a failure, and nothing is left."""
    container = harness.container(["true"])
    noted = harness.home / "noted"
    container.runtime = harness.script(
        "slow", f"echo $$ >{noted}.new; mv {noted}.new {noted}; exec sleep 1000"
    )
    call = container.create()
    runtime = int(wait_until(noted.read_text, what="the runtime"))
    assert call.status() == 0
    wait_until(lambda: sleeping(runtime), what="the runtime's sleep")
    os.kill(container.monitor_pid(), signal.SIGTERM)
    call.sync.rest()  # one message or none; the end in any case
    wait_until(lambda: gone(runtime), what="the runtime's end")
    container.wait_monitor_gone()
    assert not container.exit_file.exists()


@target("conmon passes it to the runtime, and runc shrugs it off")
def test_terminated_at_any_moment(harness: Harness) -> None:
    """Whether the runtime is at work, the container waits or runs: neither is left behind."""
    for milliseconds in range(0, 64, 8):
        container = harness.container(["sleep", "1000"], edit=no_pid_namespace)
        call = container.create()
        assert call.status() == 0
        time.sleep(milliseconds / 1000)  # a spread of moments, not a wait for something
        with contextlib.suppress(ProcessLookupError):
            os.kill(container.monitor_pid(), signal.SIGTERM)
        call.sync.rest()
        container.wait_monitor_gone()
        assert container.state() in ("", "stopped"), milliseconds


def test_the_runtime_dies_with_the_monitor(harness: Harness) -> None:
    container = harness.container(["true"])
    noted = harness.home / "noted"
    container.runtime = harness.script(
        "slow", f"echo $$ >{noted}.new; mv {noted}.new {noted}; exec sleep 1000"
    )
    call = container.create()
    runtime = int(wait_until(noted.read_text, what="the runtime"))
    assert call.status() == 0
    os.kill(container.monitor_pid(), signal.SIGKILL)
    assert call.sync.rest() == b""
    wait_until(lambda: gone(runtime), what="the runtime's death")


def test_a_container_gets_the_signal_before_it_is_started(harness: Harness) -> None:
    container = harness.container(["sleep", "1000"])
    container.created()
    os.kill(container.monitor_pid(), signal.SIGTERM)
    assert container.wait_exit() != "0"
    container.wait_monitor_gone()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_container_starts_with_ordinary_signals(harness: Harness, terminal: bool) -> None:
    container = harness.running(
        ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], terminal=terminal
    )
    assert container.wait_exit() == "0"
    values = [line.split()[1] for line in container.log.text().splitlines()]
    assert values == ["0" * 16, "0" * 16]


def test_the_runtime_has_an_empty_mask_and_only_pipe_ignored(harness: Harness) -> None:
    """SIGXFSZ in particular is ignored by Python and would stay so in every child."""
    container = harness.container(["true"])
    container.runtime = harness.script(
        "noting", "grep -E '^Sig(Blk|Ign)' /proc/self/status >&2; exit 1"
    )
    message = container.create().sync.value()["message"]
    values = {line.split(":")[0]: int(line.split()[1], 16) for line in message.splitlines()}
    assert values["SigBlk"] == 0
    assert values["SigIgn"] & ~(1 << signal.SIGPIPE - 1) == 0


def test_a_container_without_pid_namespace_dies_of_the_signal(harness: Harness) -> None:
    container = harness.running(edit=no_pid_namespace)
    os.kill(container.monitor_pid(), signal.SIGTERM)
    assert container.wait_exit() == "143"


def sleeping(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().startswith(b"sleep\0")
