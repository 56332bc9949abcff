"""Signals to a monitor of the classic dialect: passed on to the container, or to the runtime that makes it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.classic.sessions import Call, Containers, noted_pids
from tests.helpers.bundles import no_pid_namespace
from tests.helpers.waiting import gone, wait_until

TRAP = "trap 'echo got; exit 21' {name}; echo ready; while :; do sleep 0.05; done"
forwarded = pytest.mark.parametrize("name", ["TERM", "INT", "QUIT"])


def ready(call: Call) -> Call:
    wait_until(lambda: call.stdout == b"ready\n", what="the trap")
    return call


def send(call: Call, name: str) -> None:
    call.process.send_signal(getattr(signal, f"SIG{name}"))


@forwarded
def test_to_a_container(containers: Containers, name: str) -> None:
    container = containers(["sh", "-c", TRAP.format(name=name)])
    call = ready(container.run())
    if not container.runtime.name.startswith("runc"):
        # The shim stands for the container, and dies of it; its command dies with it.
        send(call, name)
        assert call.status() == 0
        assert container.exit_file.read_bytes() == b"%d" % (128 + getattr(signal, f"SIG{name}"))
        return
    send(call, name)
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"21"
    assert call.stdout == b"ready\ngot\n"


@forwarded
def test_to_an_exec(containers: Containers, name: str) -> None:
    container = containers.running()
    # So that the shim becomes the command, as runc's process does.
    environment = {"SHIM_SELF": "1"}
    call = ready(container.exec("sh", "-c", TRAP.format(name=name), environment=environment))
    wait_until(call.watches, what="the runtime's end")
    send(call, name)
    assert call.rest() == b'{"exit_code": 21}\n'
    assert call.status() == 0
    assert container.state() == "running"


@forwarded
def test_to_one_that_dies_of_it(alone: Containers, runc: Path, name: str) -> None:
    container = alone(runtime=runc, edit=no_pid_namespace)
    call = container.run()
    send(call, name)
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"%d" % (128 + getattr(signal, f"SIG{name}"))
    container.delete()


def test_before_it_is_started(containers: Containers) -> None:
    container = containers()
    call = container.created()
    send(call, "TERM")
    assert call.status() == 0
    assert container.exit_file.read_bytes() not in (b"", b"0")


@forwarded
def test_to_the_runtime(alone: Containers, name: str) -> None:
    """While there is no container yet: it fails as if the runtime had been killed."""
    noted = alone.home / "pid-runtime"
    script = alone.script(
        f"trap 'exit 9' {name}; echo $$ >'{noted}.new'; mv '{noted}.new' '{noted}'\n"
        "while :; do sleep 0.05; done"
    )
    container = alone(runtime=script)
    call = container.create()
    pid = int(wait_until(noted.read_text, what="the runtime"))
    send(call, name)
    assert call.status() == 1
    assert call.rest() == b""
    assert b"status 9" in call.stderr
    assert gone(pid)
    assert not container.exit_file.exists()


def test_to_a_runtime_that_does_not_care(alone: Containers) -> None:
    """Its command is at work before it has returned itself, as happens with runc: that gets the signal."""
    noted, go_on = alone.home / "pid-command", alone.home / "go-on"
    script = alone.script(
        "trap : TERM\n"
        "(trap 'exit 23' TERM; echo ready; while :; do sleep 0.05; done) & pid=$!\n"
        f"echo $pid >'{noted}'; while [ ! -e '{go_on}' ]; do sleep 0.05; done; echo $pid >$PF"
    )
    words = ["-c", "x", "-r", script, "-p", alone.home / "pidfile", "-e", "true"]
    call = ready(alone.call(words))
    send(call, "TERM")
    wait_until(lambda: _pending(call.pid) == 0, what="the delivery")
    go_on.touch()
    assert call.rest() == b'{"exit_code": 23}\n'
    assert call.status() == 0
    assert all(map(gone, noted_pids(alone.home)))


@pytest.mark.parametrize("name", ["HUP", "USR1", "USR2", "PIPE", "ALRM", "WINCH", "CHLD", "CONT"])
def test_without_effect(containers: Containers, name: str) -> None:
    container = containers()
    call = container.run()
    for _ in range(3):
        send(call, name)
    assert container.state() == "running"
    container.kill()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"137"


def test_stopped_and_continued(containers: Containers) -> None:
    container = containers(["sh", "-c", "read x; exit 22"])
    read_end, write_end = os.pipe()
    call = container.run(stdin=read_end)
    os.close(read_end)
    pid = container.pid
    send(call, "STOP")
    wait_until(lambda: _state(call.pid) == "T", what="the monitor's stop")
    os.close(write_end)
    wait_until(lambda: gone(pid), what="the container's end")
    assert not container.exit_file.exists()
    send(call, "CONT")
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"22"


def test_a_container_that_is_stopped_has_not_ended(containers: Containers) -> None:
    container = containers()
    call = container.run()
    os.kill(container.pid, signal.SIGSTOP)
    wait_until(lambda: _state(container.pid) == "T", what="the container's stop")
    os.kill(container.pid, signal.SIGCONT)
    wait_until(lambda: _state(container.pid) != "T", what="its continuation")
    assert call.process.poll() is None
    os.kill(container.pid, signal.SIGKILL)
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"137"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _pending(pid: int) -> int:
    """The signals that the process has yet to take."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1], 16) for line in status.splitlines() if "Pnd:" in line)
