"""After recovery everything works as before: attaching, control, input, time limits, all log drivers."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import recovering
from tests.helpers.drive import Drive
from tests.helpers.journal import Journal
from tests.helpers.monitors import PYCONMON
from tests.helpers.need import need_program
from tests.helpers.recovering import JOURNAL, STATE, box, kill_monitor, recovered, state, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]


def lines(container: Drive) -> list[bytes]:
    return container.logged().splitlines()


def test_attach_and_control(drive: Make, tmp_path: Path) -> None:
    script = "while [ ! -e /box/stop ]; do sleep 0.05; echo tick; done; exit 3"
    container = wait_kept(drive(["sh", "-c", script], edit=box(tmp_path / "box")).run())
    before = container.attach()
    before.until(b"tick")
    kill_monitor(container)
    before.all()  # a client sees that its monitor is gone
    with pytest.raises(OSError):
        container.ctl("2 0 0")
    recovered(container)
    clients = [container.attach() for _ in range(3)]
    for client in clients:
        client.until(b"tick")
    old = container.log.stat().st_ino
    container.ctl("2 0 0")
    wait_until(lambda: container.log.stat().st_ino != old, what="a new log")
    wait_until(lambda: lines(container), what="output in the new log")
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 3
    for client in clients:
        client.all()
        assert client.eof
    container.wait_monitor()
    for name in ("attach", "ctl", "winsz", STATE, JOURNAL):
        assert not (container.directory / name).exists()


def test_the_link_to_the_socket(drive: Make, tmp_path: Path) -> None:
    container = drive(["sleep", "1000"])
    links = tmp_path / "links"
    links.mkdir()
    container.options = ["--socket-dir-path", links]
    words = container.arguments
    container.arguments = lambda: [w for w in words() if w != "--full-attach"]  # type: ignore[method-assign]
    wait_kept(container.run())
    kill_monitor(container)
    (links / container.ident).unlink()
    recovered(container)
    assert os.readlink(links / container.ident) == str(container.bundle)
    container.kill()
    assert container.wait_exit() == 137
    container.wait_monitor()
    assert os.listdir(links) == []


def test_input_goes_on(drive: Make, tmp_path: Path) -> None:
    """Who reads stdin only after the recovery does not notice the gap."""
    script = "while [ ! -e /box/go ]; do sleep 0.05; done; echo got $(wc -c); exit 6"
    container = drive(["sh", "-c", script], edit=box(tmp_path / "box"), stdin=True)
    wait_kept(container.run())
    container.attach().send(b"12345")
    wait_until(lambda: waiting_in(container) == 5, what="the input in the pipe")
    kill_monitor(container)
    recovered(container)
    (tmp_path / "box/go").touch()
    client = container.attach()
    client.send(b"6789")
    client.half_close()
    assert container.wait_exit() == 6
    assert container.logged() == b"got 9\n"


def waiting_in(container: Drive) -> int:
    """Bytes in the pipe of the container's stdin."""
    import fcntl

    fd = os.open(f"/proc/{container.pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        answer = fcntl.ioctl(fd, 0x541B, b"\0\0\0\0")  # FIONREAD
        return int.from_bytes(answer, "little")
    finally:
        os.close(fd)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_time_limit_goes_on(drive: Make, rounds: int) -> None:
    """It counts from the container's beginning, however often the monitor changes."""
    container = drive(["sleep", "1000"], options=["-T", "3"])
    begun = time.monotonic()
    wait_kept(container.run())
    for _ in range(rounds):
        kill_monitor(container)
        recovered(container)
        assert state(container.directory)["begun"] > 0
    assert container.wait_exit() == -1
    assert time.monotonic() - begun >= 2.9
    wait_until(lambda: gone(container.pid), what="the container's end")
    container.wait_monitor()


def test_a_time_limit_that_was_over_meanwhile(drive: Make) -> None:
    container = wait_kept(drive(["sleep", "1000"], options=["-T", "1"]).run())
    kill_monitor(container)
    begun = state(container.directory)["begun"]
    wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > begun + 1.1, what="the time")
    assert not container.exit_file.exists()
    recovered(container)
    assert container.wait_exit() == -1
    wait_until(lambda: gone(container.pid), what="the container's end")


def test_signals_are_passed_on(drive: Make) -> None:
    script = "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    container = wait_kept(drive(["sh", "-c", script]).run())
    wait_until(lambda: b"ready" in container.logged(), what="the trap")
    kill_monitor(container)
    recovered(container)
    os.kill(container.monitor_pid, signal.SIGTERM)
    assert container.wait_exit() == 5
    assert container.logged() == b"ready\nterm\n"


def test_the_exit_command_has_the_first_callers_environment(drive: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = tmp_path / "command"
    command.write_text(f'#!/bin/sh\necho "$FLAVOUR $1 $(pwd)" >{out}.new; mv {out}.new {out}\n')
    command.chmod(0o755)
    container = drive(
        ["sleep", "1000"],
        options=["--exit-command", command, "--exit-command-arg", "a  b"],
        environment={"FLAVOUR": "k\udcffiwi"},
    )
    wait_kept(container.create(cwd=tmp_path).start())
    kill_monitor(container)
    recovered(container)
    container.kill()
    wait_until(out.exists, what="the exit command")
    assert out.read_bytes() == b"k\xffiwi a  b %b\n" % os.fsencode(tmp_path)


def test_a_successor_inherits_nothing(drive: Make) -> None:
    """A caller that waits for the end of a pipe of its own does not wait for the container."""
    container = wait_kept(drive(["sleep", "1000"]).run())
    kill_monitor(container)
    read_end, write_end = os.pipe()
    done = recovering.recover(container.directory, pass_fds=[write_end])
    assert done.returncode == 0, done.stderr
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    pid = container.monitor_pid
    assert os.getsid(pid) == pid
    for number in range(3):
        assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"
    container.kill()
    assert container.wait_exit() == 137


def test_a_successor_speaks_to_the_system_log_too(drive: Make, tmp_path: Path) -> None:
    """As the caller asked of its predecessor. The system log is ours, in a /dev of its own."""
    container = wait_kept(drive(["sleep", "1000"], options=["--syslog"]).run())
    kill_monitor(container)
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / "null").touch()
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log.settimeout(30)
    log.bind(str(folder / "log"))
    within = (
        f"mount --bind /dev/null {folder}/null && mount --rbind {folder} /dev && exec {PYCONMON}"
    )
    program = tmp_path / "recover-there"
    program.write_text(
        f"#!/bin/sh\nexec {need_program('unshare')} --mount --propagation private "
        f"""sh -c {shlex.quote(within + ' "$@"')} sh "$@"\n"""
    )
    program.chmod(0o755)
    done = recovering.recover(container.directory, program=program)
    assert done.returncode == 0, done.stderr
    container.ctl("1 9999 9999")
    assert "size out of range" in log.recv(4096).decode()
    log.close()
    container.kill()
    assert container.wait_exit() == 137


def test_a_terminal_ends_with_its_monitor(drive: Make) -> None:
    """Its master was the monitor's: the container gets a hang-up. What is left is the report."""
    with recovering.adopting_orphans():
        container = drive(["sh", "-c", "trap 'exit 8' HUP; echo ready; while :; do sleep 0.05; done"],
                          terminal=True)  # fmt: skip
        wait_kept(container.run())
        wait_until(lambda: b"ready" in container.logged(), what="the trap")
        kill_monitor(container)
        wait_until(lambda: gone(container.pid), what="the container's end")
        recovered(container)
        assert container.wait_exit() == 8
        recovering.reap(container.pid)


def test_persist_dir_and_bundle_are_places(drive: Make, tmp_path: Path) -> None:
    persist = tmp_path / "persist"
    persist.mkdir()
    container = drive(["sleep", "1000"], options=["--persist-dir", persist]).run()
    kept = wait_until(lambda: state_in(persist), what="the state")
    assert kept["container_pid"] == container.pid
    assert not (container.directory / STATE).exists()
    assert persist.joinpath(STATE).stat().st_mode & 0o777 == 0o600
    assert persist.joinpath(JOURNAL).stat().st_mode & 0o777 == 0o600
    kill_monitor(container)
    assert recovering.recover(persist).returncode == 0
    container.kill()
    assert container.wait_exit() == 137
    assert (persist / "exit").read_text() == "137"


def state_in(directory: Path) -> dict[str, int]:
    import json

    content = json.loads((directory / STATE).read_text())
    assert isinstance(content, dict)
    return content


# --- the system's journal


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    started = Journal(tmp_path_factory.mktemp("journal"))
    yield started
    started.close()


def test_the_systems_journal(drive: Make, tmp_path: Path, journal: Journal) -> None:
    """Lines come whole, also one that was begun before the death and ended after the recovery."""
    script = (
        "i=0; while [ ! -e /box/stop ]; do echo out $i; i=$((i+1)); "
        "printf 'half '; sleep 0.02; echo $i; done; printf last; exit 4"
    )
    container = drive(["sh", "-c", script], edit=box(tmp_path / "box"))
    plain, where = container.monitor, f"CONTAINER_ID_FULL={container.ident}"
    container.monitor = journal.wrap(plain)
    container.logs = ["journald", f"k8s-file:{container.log}"]
    wait_kept(container.run())
    for _ in range(4):
        seen = len(lines(container))
        wait_until(lambda: len(lines(container)) > seen + 4, what="more lines")  # noqa: B023
        kill_monitor(container)
        done = subprocess.run(
            [container.monitor, "--recover", container.directory], capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 4
    container.wait_monitor()
    count = len(lines(container)) // 2
    expected = [
        b"out %d\n" % (n // 2) if n % 2 == 0 else b"half %d\n" % (n // 2 + 1)
        for n in range(count * 2)
    ]
    expected.append(b"last")
    entries = journal.wait_entries(len(expected), where)
    messages = [entry["MESSAGE"].rstrip(b"\n") for entry in entries]
    wanted = [text.rstrip(b"\n") for text in expected]
    # A message that was being sent at a death may come twice; none may be missing or torn.
    assert list(dict.fromkeys(messages)) == wanted
    assert len(messages) <= len(wanted) + 4
