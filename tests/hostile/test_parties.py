"""Runtimes, callers, clients and containers that misbehave: none of them keeps the exit code from arriving."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.bundles import no_pid_namespace
from tests.helpers.drive import Drive
from tests.helpers.need import need_program
from tests.helpers.recovering import JOURNAL, STATE, both, box, kill_monitor, recovered, wait_kept
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Drive]


def runtime(path: Path, create: str) -> Path:
    """A stand-in for a runtime: what it does at create, and nothing otherwise."""
    path.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) ;; *) exit 0 ;; esac\n{create}\n')
    path.chmod(0o755)
    return path


def peak(pid: int) -> int:
    """The most memory that a process has had, in kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


# --- runtimes


@pytest.mark.parametrize(
    "text",
    ["abc", "-5", "0", "1", "99999999999999999999", "12 34", "\\0\\0", "4194305", "\\377\\376"],
)
def test_a_pid_file_with_rubbish(drive: Make, tmp_path: Path, text: str) -> None:
    container = drive(["true"], options=["--sync"])
    container.runtime = runtime(tmp_path / "rt", f"printf '%b' '{text}' >{container.pidfile}")
    container.launch()
    answer = container.sync.line()
    assert answer is not None
    if text == "4194305":  # a number as good as any, but nobody has it: an end that nobody can know
        assert answer == {"data": 4194305}
        assert container.wait_exit() == -1
    else:
        assert answer["data"] == -1
        assert str(container.pidfile) in answer["message"]
        assert not container.exit_file.exists()
    assert container.sync.rest() == b""


def test_a_pid_file_as_long_as_a_disk(drive: Make, tmp_path: Path) -> None:
    container = drive(["true"])
    container.runtime = runtime(
        tmp_path / "rt", f"head -c 20000000 /dev/zero | tr '\\0' 1 >{container.pidfile}"
    )
    container.launch()
    answer = container.sync.line()
    assert answer is not None and answer["data"] == -1
    assert len(answer["message"]) < 1000


def test_the_pid_of_the_monitor_itself(drive: Make, tmp_path: Path) -> None:
    container = drive(["true"])
    container.runtime = runtime(tmp_path / "rt", f"echo $PPID >{container.pidfile}")
    container.launch()
    answer = container.sync.line()
    assert answer is not None and answer["data"] == -1


def test_the_pid_of_somebody_else(drive: Make, tmp_path: Path) -> None:
    """It is watched, and its end is told; at a timeout its group, whoever is in it, is left alone."""
    group = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; wait; echo $?; sleep 1000"],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert group.stdout is not None
    other = int(group.stdout.readline())
    container = drive(["true"], options=["-T", "1"])
    container.runtime = runtime(tmp_path / "rt", f"echo {other} >{container.pidfile}")
    try:
        container.launch()
        assert container.sync.line() == {"data": other}
        assert container.wait_exit() == -1
        assert group.stdout.readline(), "its parent goes on"
        assert gone(other)
        assert group.poll() is None
    finally:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()
        group.stdout.close()


def test_much_on_the_runtimes_stderr(drive: Make, tmp_path: Path) -> None:
    """100 MB: read as it comes, kept are a beginning and an end."""
    go = tmp_path / "go"
    container = drive(["true"])
    container.runtime = runtime(
        tmp_path / "rt",
        f"echo FIRST >&2; head -c 100000000 /dev/zero >&2; echo LAST >&2; touch {go}.said\n"
        f"while [ ! -e {go} ]; do sleep 0.05; done; exit 1",
    )
    container.launch()
    wait_until(Path(f"{go}.said").exists, 60, "100 MB")
    assert peak(container.monitor_pid) < 40_000
    go.touch()
    answer = container.sync.line()
    assert answer is not None and answer["data"] == -1
    assert answer["message"].startswith("FIRST")


def test_a_runtime_that_hangs_ends_by_a_signal(drive: Make, tmp_path: Path) -> None:
    container = drive(["true"])
    said = tmp_path / "said"
    container.runtime = runtime(
        tmp_path / "rt", f"trap 'echo told >&2; exit 1' TERM; touch {said}; sleep 1000 & wait"
    )
    container.launch()
    wait_until(said.exists, what="the runtime")
    pid = container.monitor_pid
    os.kill(pid, signal.SIGTERM)
    answer = container.sync.line()
    assert answer is not None and answer["data"] == -1
    assert "told" in answer["message"]
    wait_until(lambda: gone(pid), what="the monitor's end")


def test_a_runtime_that_hangs_dies_with_its_monitor(drive: Make, tmp_path: Path) -> None:
    container = drive(["true"])
    said = tmp_path / "said"
    container.runtime = runtime(
        tmp_path / "rt", f"trap '' TERM; echo $$ >{said}.new; mv {said}.new {said}; exec sleep 1000"
    )
    container.launch()
    pid = int(wait_until(said.read_text, what="the runtime"))
    kill_monitor(container)
    wait_until(lambda: gone(pid), what="the runtime's end")
    assert container.sync.rest() == b""


# --- callers


def test_a_caller_that_never_reads(drive: Make) -> None:
    """Its pipe is full to the brim: the container is watched all the same."""
    container = drive(["sh", "-c", "exit 6"])
    end = container.sync.write_end
    os.set_blocking(end, False)
    try:
        while True:
            os.write(end, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(end, True)
    container.launch()
    wait_until(lambda: container.pidfile.read_text(), what="the container")
    wait_until(lambda: container.status() == "created", what="the container")
    container.start()
    assert container.wait_exit() == 6


def test_a_caller_that_dies_at_any_moment(drive: Make) -> None:
    """The container is watched to its end, or there is none; nothing hangs and nothing is left."""
    dice = random.Random()
    for _ in range(8):
        container = drive(["sh", "-c", "exit 6"])
        words = [str(container.monitor), *map(str, container.arguments())]
        caller = subprocess.Popen(
            ["sh", "-c", '"$@" & wait; sleep 1000', "caller", *words],
            env={**os.environ, "_OCI_SYNCPIPE": str(container.sync.write_end)},
            pass_fds=[container.sync.write_end],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        container.sync.started()
        time.sleep(dice.uniform(0, 0.12))  # any moment will do
        os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()
        rest = container.sync.buffer + read_to_end_or_line(container)
        if container.status() == "created":
            container.start()
            if rest:
                assert json.loads(rest) == {"data": int(container.pidfile.read_text())}
                assert container.wait_exit() == 6
        container.delete()


def read_to_end_or_line(container: Drive) -> bytes:
    return container.sync.raw_line(30)


def test_a_stopped_monitor_reports_what_happened_meanwhile(drive: Make) -> None:
    container = wait_kept(drive(["sh", "-c", "sleep 0.2; seq 1 1000; exit 6"]).run())
    pid = container.monitor_pid
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: gone(container.pid), what="the container's end")
    assert not container.exit_file.exists()
    os.kill(pid, signal.SIGCONT)
    assert container.wait_exit() == 6
    assert container.logged() == b"".join(b"%d\n" % n for n in range(1, 1001))


# --- clients


def test_clients_with_odd_packets_and_fifo_lines(drive: Make, tmp_path: Path) -> None:
    container = drive(["sh", "-c", "cat >/dev/null; exit 6"], stdin=True).run()
    client = container.attach()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    for size in (1, 8193, 100_000, 200_000):
        try:
            client.socket.send(b"z" * size)
        except OSError as error:  # more than the kernel lets a packet have
            assert size > 100_000, error
    fifo = os.open(container.directory / "ctl", os.O_WRONLY | os.O_NONBLOCK)
    dice = random.Random(3)
    for _ in range(50):
        try:
            os.write(fifo, dice.randbytes(3000))
        except BlockingIOError:
            time.sleep(0)
    old = container.log.stat().st_ino
    wait_until(lambda: os.write(fifo, b"\n2 0 0\n"), what="room in the fifo")
    os.close(fifo)
    wait_until(lambda: container.log.stat().st_ino != old, what="a new log")
    second = container.attach()
    second.half_close()
    assert container.wait_exit() == 6


def test_many_clients_that_never_read(drive: Make) -> None:
    container = drive(["sh", "-c", "yes | head -c 4000000; exit 6"])
    container.create()
    clients = [container.attach() for _ in range(20)]
    container.start()
    assert container.wait_exit() == 6
    assert container.logged() == b"y\n" * 2_000_000
    wait_until(lambda: gone(container.monitor_pid), 30, "the monitor's end")
    del clients


# --- containers


def test_daemons_that_hold_the_streams(drive: Make) -> None:
    """In a pid namespace they end with the first process, without one they delay nothing."""
    daemons = "for i in 1 2 3; do (setsid sh -c 'sleep 1000; echo no' &) ; done; echo yes; exit 6"
    for edit in (None, no_pid_namespace):
        container = drive(["sh", "-c", daemons], edit=edit).run()
        begun = time.monotonic()
        assert container.wait_exit() == 6
        assert time.monotonic() - begun < 10
        assert container.logged() == b"yes\n"
        container.delete()


@pytest.mark.parametrize(
    "deed",
    [
        "exec >&- 2>&- <&-",
        "printf '\\033[2J\\033]0;x\\007\\0\\377'",
        "trap '' TERM INT HUP; kill -TERM $$",
    ],
)
def test_containers_with_odd_streams(drive: Make, tmp_path: Path, deed: str) -> None:
    text = f"echo before; {deed}; while [ ! -e /box/stop ]; do sleep 0.05; done; exit 6"
    container = drive(["sh", "-c", text], edit=box(tmp_path / "box"))
    wait_kept(container.run())
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 6
    container.wait_monitor()
    assert not (container.directory / STATE).exists()


def test_a_container_that_is_stopped_has_not_ended(drive: Make) -> None:
    """Clients are served meanwhile, and what it is told to do waits for it."""
    script = "trap 'echo told; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    container = drive(["sh", "-c", script], stdin=True).run()
    wait_until(lambda: container.logged() == b"ready\n", what="the trap")
    os.kill(container.pid, signal.SIGSTOP)
    wait_until(lambda: stopped(container.pid), what="its stop")
    os.kill(container.monitor_pid, signal.SIGTERM)
    client = container.attach()
    client.send(b"x" * 5000)
    old = container.log.stat().st_ino
    container.ctl("2 0 0")
    wait_until(lambda: container.log.stat().st_ino != old, what="a new log")
    assert stopped(container.pid)
    assert not container.exit_file.exists()
    os.kill(container.pid, signal.SIGCONT)
    assert container.wait_exit() == 6
    assert client.all()[0] == b"told\n"


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_reader_of_its_own_output_and_a_death(drive: Make, tmp_path: Path) -> None:
    """It competes with us for its bytes: they are its own, and the code is still right."""
    text = (
        "(while :; do dd bs=100 count=1 <&1 >/dev/null 2>&1; done) & "
        "i=0; while [ ! -e /box/stop ]; do echo line $i; i=$((i+1)); done; exit 6"
    )
    container = drive(["sh", "-c", text], edit=both(box(tmp_path / "box")))
    wait_kept(container.run())
    for _ in range(3):
        kill_monitor(container)
        recovered(container)
    (tmp_path / "box/stop").touch()
    assert container.wait_exit() == 6


def test_no_record_can_be_forged(drive: Make) -> None:
    forged = "2026-01-01T00:00:00.000000000+00:00 stderr F forged"
    lines = [f"a\r{forged}", f"\\n{forged}", "x\0y", "\x1b[1A\x1b[2K"]
    text = "".join(f"printf '{line}'; echo; " for line in lines)
    container = drive(["sh", "-c", text.replace("\0", "\\0") + "exit 6"]).run()
    assert container.wait_exit() == 6
    assert {stream for stream, _, _ in container.records()} == {"stdout"}
    assert container.logged("stderr") == b""
    assert forged.encode() in container.logged()


# --- files


@pytest.mark.parametrize("name", [STATE, JOURNAL, "conmon.pid", "pidfile", "oom"])
def test_a_planted_link_is_not_followed(drive: Make, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    victim.chmod(0o600)
    container = drive(["sh", "-c", "exit 6"])
    (container.directory / name).symlink_to(victim)
    if name == "pidfile":
        # The runtime replaces it, as we do.
        (container.directory / name).unlink()
        (container.directory / name).symlink_to(tmp_path / "nowhere")
    container.run()
    assert container.wait_exit() == 6
    container.wait_monitor()
    assert victim.read_text() == ""
    assert victim.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "nowhere").exists()


def test_no_file_is_made_through_a_link(drive: Make, tmp_path: Path) -> None:
    """All that a life creates, as strace sees it; only the log is opened as the caller names it."""
    strace, trace = need_program("strace"), tmp_path / "trace"
    persist = tmp_path / "persist"
    persist.mkdir()
    container = drive(["sh", "-c", "seq 1 5000; exit 6"], options=[
        "--persist-dir", persist, "--log-size-max", "9000", "--log-rotate",
    ])  # fmt: skip
    wrapper = tmp_path / "traced-monitor"
    wrapper.write_text(
        f"#!/bin/sh\nexec {strace} -D -f -qq -s 4096 -e trace=open,openat,openat2,creat "
        f'-o {trace} {container.monitor} "$@"\n'
    )
    wrapper.chmod(0o755)
    container.monitor = wrapper
    container.run()
    assert container.wait_exit() == 6
    container.wait_monitor()
    ours = f"{tmp_path}/({container.directory.name}|{persist.name})/"
    names = (STATE, JOURNAL, "conmon.pid", "/persist/exit", "/exits/", "ctr.log.new")

    def made() -> list[tuple[str, str]]:
        found = re.findall(rf'"({ours}[^"]*)", (\S*O_CREAT\S*)', trace.read_text())
        paths = " ".join(path for path, _, _ in found)
        if not all(name in paths for name in names):
            return []
        return [(path, flags) for path, _, flags in found]

    for path, flags in wait_until(made, what=f"the making of {names}"):
        # The pid file is the runtime's.
        if path not in (str(container.log), str(container.pidfile)):
            assert "O_EXCL" in flags or "O_NOFOLLOW" in flags, (path, flags)


def test_a_state_of_another_user_is_not_run(drive: Make, tmp_path: Path) -> None:
    """It names commands: an unprivileged user must not have root run them at the next recovery."""
    ran = tmp_path / "ran"
    container = wait_kept(
        drive(
            ["sleep", "1000"], options=["--exit-command", "/bin/touch", "--exit-command-arg", ran]
        ).run()
    )
    kill_monitor(container)
    os.chown(container.directory / STATE, 12345, 12345)
    done = subprocess.run(
        [container.monitor, "--recover-under", tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "another user" in done.stderr
    container.kill()
    assert not ran.exists()
