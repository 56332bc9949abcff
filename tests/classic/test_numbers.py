"""Many times: every exit code, every fatal signal, many containers in a row and at once. Not one may be lost."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.classic.sessions import PATIENCE, Containers
from tests.helpers.bundles import no_pid_namespace
from tests.helpers.waiting import wait_until

T = TypeVar("T")

AT_ONCE = 6
# All that end a process which does nothing about them; 32 and 33 are the C library's own.
HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
FATAL = sorted(int(number) for number in signal.valid_signals() - HARMLESS - STOPPING)


def several(work: Callable[[int], T], numbers: Iterable[int]) -> dict[int, T]:
    """work(n) for each n, a few at a time."""
    numbers = list(numbers)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(numbers, pool.map(work, numbers), strict=True))


@pytest.fixture
def no_core() -> Iterator[None]:
    """A signal that dumps core leaves no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def sleeps(pid: int) -> bool:
    """Whether it is the command by now; what runs before that has handlers of its own."""
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


@pytest.mark.slow
def test_every_exit_code_of_an_exec(alone: Containers, runc: Path) -> None:
    container = alone.running(runtime=runc)

    def run(code: int) -> bytes:
        call = container.exec("sh", "-c", f"exit {code}")
        answer = call.rest()
        assert call.status() == 0, call.stderr
        assert (call.stdout, call.stderr) == (b"", b"")
        call.close()
        return answer

    assert several(run, range(256)) == {n: b'{"exit_code": %d}\n' % n for n in range(256)}


def test_every_fatal_signal_of_an_exec(containers: Containers, no_core: None) -> None:
    """From outside: a shell ignores some, and passes that on to its children."""
    container = containers.running()

    def run(number: int) -> bytes:
        # So that the shim becomes the command: it would tell a signal as an exit code.
        call = container.exec("sleep", "1000", environment={"SHIM_SELF": "1"})
        wait_until(call.watches, PATIENCE, "the runtime's end")
        assert call.pidfile is not None
        pid = int(call.pidfile.read_text())
        wait_until(lambda: sleeps(pid), PATIENCE, "the command")
        os.kill(pid, number)
        answer = call.rest()
        assert call.status() == 0, call.stderr
        call.close()
        return answer

    assert several(run, FATAL) == {n: b'{"exit_code": %d}\n' % (128 + n) for n in FATAL}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_containers_in_a_row(alone: Containers, runc: Path) -> None:
    """256 of them under runc, one after the other, each with another exit code."""
    found = {}
    container = alone(["true"], runtime=runc)
    config = (container.bundle / "config.json").read_text()
    assert '"true"' in config
    for n in range(256):
        (container.bundle / "config.json").write_text(
            config.replace('"true"', f'"sh", "-c", "exit {n}"')
        )
        call = container.run()
        assert call.status() == 0, call.stderr
        assert call.rest() == b""
        found[n] = container.exit_file.read_bytes()
        container.exit_file.unlink()
        call.close()
        container.delete()
    assert found == {n: b"%d" % n for n in range(256)}


def test_every_fatal_signal_of_a_container(alone: Containers, runc: Path, no_core: None) -> None:
    def run(number: int) -> bytes:
        # The first process of a pid namespace ignores what it does not handle.
        container = alone(runtime=runc, edit=no_pid_namespace)
        call = container.created()
        container.start()
        wait_until(lambda: sleeps(container.pid), PATIENCE, "the command")
        os.kill(container.pid, number)
        assert call.status() == 0, call.stderr
        code = container.exit_file.read_bytes()
        container.delete()
        return code

    assert several(run, FATAL) == {n: b"%d" % (128 + n) for n in FATAL}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "after"),
    [("runc", "start"), ("runc", "kill"), ("shim_runtime", "start")],
    indirect=["runtime"],
)
def test_fifty_at_once(containers: Containers, after: str) -> None:
    """All are there at the same time, and end at the same time."""
    command = ["sh", "-c", "exit $(cat)"] if after == "start" else ["sleep", "1000"]
    made = [containers(command) for _ in range(50)]
    gates: list[int] = []
    calls = []
    for container in made:
        read_end, write_end = os.pipe()
        gates.append(write_end)
        calls.append(container.create(stdin=read_end))
        os.close(read_end)
    for container, call in zip(made, calls, strict=True):
        assert call.answer() == b'{"pid": %d}\n' % container.pid
    several(lambda n: made[n].start(), range(50))
    for n, gate in enumerate(gates):
        if after == "start":
            os.write(gate, b"%d" % (n + 1))
        else:
            os.kill(made[n].pid, signal.SIGKILL)
        os.close(gate)
    for call in calls:
        assert call.status() == 0, call.stderr
    codes = [container.exit_file.read_bytes() for container in made]
    assert codes == [b"%d" % (n + 1 if after == "start" else 137) for n in range(50)]
    several(lambda n: made[n].delete(), range(50))
