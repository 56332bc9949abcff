"""What belongs to the process as a whole, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.monitors import ROOT
from tests.helpers.snippets import run
from tests.helpers.waiting import wait_until

BEGIN = """
import os, signal
from pyconmon.process import Process
process = Process()
"""


def test_inherited_descriptors() -> None:
    """Those that an exec leaves open, in order, and without the streams."""
    read_end, write_end = os.pipe()
    for high in (90, 91, 100):
        os.dup2(write_end, high, inheritable=True)
    try:
        said = run(BEGIN + "print(process.inherited)", pass_fds=[read_end, 90, 91, 100])
    finally:
        for fd in (read_end, write_end, 90, 91, 100):
            os.close(fd)
    assert said == f"{[read_end, 90, 91, 100]}\n"


def test_closing_the_inherited_ones() -> None:
    """In runs, with gaps, all but one; what was opened since then stays."""
    code = """
import os
null = os.open("/dev/null", os.O_RDWR)
for fd in [*range(100, 110), 120, *range(130, 133)]:
    os.dup2(null, fd, inheritable=True)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
    after = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
{BEGIN}
own = os.open("/dev/null", os.O_RDONLY)
os.dup2(own, 115)
process.disown(131)
process.disown(999)
process.close_inherited(keep=104)
left = []
for fd in range(100, 140):
    try:
        os.fstat(fd)
        left.append(fd)
    except OSError:
        pass
print(left, process.inherited)
process.close_inherited(keep=-1)
os.fstat(own)
"""
    assert run(code, after) == "[104, 115, 131] []\n"


def test_closing_thousands_is_quick() -> None:
    """One call for a run, not one for each."""
    code = (
        BEGIN
        + """
calls = []
os.closerange = lambda start, stop: calls.append((start, stop))
process.inherited = [5, *range(10, 20000)]
process.close_inherited(keep=15000)
print(calls)
"""
    )
    assert run(code) == "[(5, 6), (10, 15000), (15001, 20000)]\n"


@pytest.mark.parametrize(
    "given",
    [{}, {"LC_ALL": "C"}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "POSIX"}, {"LC_CTYPE": "C.UTF-8"}, {"LANG": "C"},
     {"XLC_CTYPE": "C", "A": "caf\udce9", "EMPTY": ""}],
    ids=str,
)  # fmt: skip
def test_the_environment_as_it_was_given(given: dict[str, str]) -> None:
    """CPython changes LC_CTYPE under a C locale; that is not the caller's doing."""
    code = BEGIN + "os.write(1, ascii(process.environment).encode())"
    assert run(code, env=given) == ascii(given)


def test_settling() -> None:
    code = (
        BEGIN
        + """
os.umask(0o077)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2})
process.settle()
print(oct(os.umask(0)), signal.getsignal(signal.SIGCHLD).name, signal.getsignal(signal.SIGINT).name)
print(sorted(each.name for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""
    )
    assert run(code) == "0o22 SIG_DFL SIG_DFL\n['SIGUSR2']\n"


def test_the_mask_is_that_of_the_start() -> None:
    code = (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})"
        + BEGIN
        + "process.settle()\nprocess.hold_signals()\nprint(sorted(process.mask) == [signal.SIGUSR1])"
    )
    assert run(code) == "True\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_early_end(name: str) -> None:
    code = BEGIN + f"process.settle()\nos.kill(os.getpid(), signal.{name})\nsignal.pause()"
    with pytest.raises(AssertionError) as failure:
        run(code)
    status, _, said = failure.value.args[0]
    assert status == (1 if name == "SIGTERM" else -signal.SIGINT)
    assert said == ""


def test_closed_streams_are_filled() -> None:
    """With something that a child inherits; what is opened next is none of them."""
    code = (
        BEGIN
        + """
report = os.dup(1)
for fd in (0, 1, 2):
    os.close(fd)
process.settle()
text = " ".join(f"{os.readlink(f'/proc/self/fd/{fd}')} {os.get_inheritable(fd)}" for fd in (0, 1, 2))
os.write(report, text.encode())
"""
    )
    assert run(code) == "/dev/null True /dev/null True /dev/null True"


def test_leaving_the_streams() -> None:
    code = (
        BEGIN
        + """
report = os.dup(1)
process.leave_streams()
os.write(report, " ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)).encode())
"""
    )
    assert run(code) == "/dev/null /dev/null /dev/null"


BACKGROUND = (
    BEGIN
    + """
process.go_to_background(sys.argv[1] if len(sys.argv) > 1 else None)
# Its own streams would keep our test waiting.
report = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o600) if len(sys.argv) > 2 else -1
process.leave_streams()
process.become_parent_of_orphans(new_session=True)
if report >= 0:
    os.write(report, b"%d %d" % (os.getpid(), os.getsid(0)))
"""
)


def test_going_to_the_background(tmp_path: Path) -> None:
    """The pid file is whole by the time the foreground has ended."""
    pid_file, report = tmp_path / "pid", tmp_path / "report"
    run(BACKGROUND, str(pid_file), str(report))
    pid = int(pid_file.read_text())
    assert pid_file.read_text() == str(pid)
    wait_until(lambda: report.exists() and report.read_text(), what="the background")
    assert report.read_text() == f"{pid} {pid}"


def test_the_pid_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failure:
        run(BACKGROUND, str(tmp_path / "none" / "pid"))
    status, _, said = failure.value.args[0]
    assert status == 1
    assert said.startswith(f"[conmon:e]: Failed to write conmon pidfile {tmp_path}/none/pid: ")
    assert said.count("\n") == 1


SIGNALS = (
    BEGIN
    + """
from pyconmon.loop import Loop
process.settle()
loop, forwarded = Loop(), []
turns = [0]
def on_child():
    turns[0] += 1
process.hold_signals()
os.kill(os.getpid(), signal.SIGTERM)  # it waits, and is not lost
process.take_signals(loop, on_child, forwarded.append)
process.release_signals()
"""
)


def test_signals_wake_the_loop() -> None:
    code = (
        SIGNALS
        + """
for name in ("INT", "QUIT", "HUP", "USR1", "USR2", "ALRM", "PIPE", "WINCH", "CHLD"):
    os.kill(os.getpid(), getattr(signal, "SIG" + name))
while len(forwarded) < 4:
    loop.turn()
print(sorted(signal.Signals(number).name for number in forwarded), turns[0] > 0)
"""
    )
    assert run(code) == "['SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGWINCH'] True\n"


def test_a_child_that_ended_before_we_listened() -> None:
    code = SIGNALS + "while not turns[0]:\n    loop.turn()\nprint('looked')"
    assert run(code) == "looked\n"


def test_a_flood_of_signals() -> None:
    """The wake-up pipe is full: the loop is woken all the same, and nothing blocks."""
    code = (
        SIGNALS
        + """
for _ in range(100_000):
    os.kill(os.getpid(), signal.SIGUSR1)
while signal.SIGTERM not in forwarded:
    loop.turn()
while True:
    before = turns[0]
    loop.turn(0)
    if turns[0] == before:
        break
os.kill(os.getpid(), signal.SIGQUIT)
while signal.SIGQUIT not in forwarded:
    loop.turn()
print("on")
"""
    )
    assert run(code) == "on\n"


def test_the_end_is_not_interrupted() -> None:
    code = (
        SIGNALS
        + """
process.stop_taking_signals()
for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "ALRM", "PIPE", "CHLD"):
    os.kill(os.getpid(), getattr(signal, "SIG" + name))
print("on")
"""
    )
    assert run(code) == "on\n"


def test_the_memory_score() -> None:
    code = (
        BEGIN
        + """
before = open("/proc/self/oom_score_adj", "rb").read()
process.protect_from_oom()
after = open("/proc/self/oom_score_adj", "rb").read()
print(process.oom_score in (None, before), after in (before, b"-1000\\n"))
print((process.oom_score is None) == (after == before) or before == after)
"""
    )
    assert run(code) == "True True\nTrue\n"


def test_a_group_leader_stays_one() -> None:
    """setsid fails for it, and that is fine."""
    code = (
        BEGIN
        + "process.become_parent_of_orphans(new_session=True)\nprint(os.getpgid(0) == os.getpid())"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        process_group=0,
        check=True,
    )
    assert done.stdout == b"True\n"
