"""The kernel's facts, asked of real processes, pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon import linux
from tests.helpers.need import need
from tests.helpers.snippets import run


def zombie(how: str) -> int:
    """A child that has ended and has not been reaped."""
    pid = os.fork()
    if pid == 0:
        if how.startswith("-"):
            os.kill(os.getpid(), -int(how))
        os._exit(int(how))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def kernel_at_least(major: int, minor: int) -> bool:
    release = os.uname().release.split("-")[0].split(".")
    return (int(release[0]), int(release[1])) >= (major, minor)


def test_orphans_become_ours() -> None:
    code = """
import os
from pyconmon import linux
linux.set_child_subreaper({on})
read_end, write_end = os.pipe()
if os.fork() == 0:
    middle = os.getpid()
    if os.fork() == 0:
        while os.getppid() == middle:
            pass
        os.write(write_end, b"%d" % os.getppid())
    os._exit(0)
os.wait()
print(int(os.read(read_end, 20)) == os.getpid())
"""
    assert run(code.format(on=True)) == "True\n"
    assert run(code.format(on=False)) == "False\n"


def test_a_child_dies_with_its_parent() -> None:
    code = """
import os, select, signal
from pyconmon import linux
read_end, write_end = os.pipe()
parent = os.fork()
if parent == 0:
    if os.fork() == 0:
        linux.set_parent_death_signal(signal.SIGKILL)
        os.write(write_end, b"ready")
        signal.pause()
    signal.pause()
os.read(read_end, 5)
os.close(write_end)
os.kill(parent, signal.SIGKILL)
print(select.select([read_end], [], [], 30)[0] == [read_end], os.read(read_end, 1))
"""
    assert run(code) == "True b''\n"


@pytest.mark.parametrize(
    ("how", "status"), [("0", 0), ("7", 7 << 8), ("255", 255 << 8), ("-9", 9), ("-15", 15)]
)
def test_the_status_of_the_dead(how: str, status: int) -> None:
    """By pidfd and by /proc, while it is a zombie; by pidfd also once it has been reaped."""
    pid = zombie(how)
    pidfd = os.pidfd_open(pid)
    try:
        assert linux.zombie_status(pid) == status
        if kernel_at_least(6, 15):
            before = linux.pidfd_exit_status(pidfd)
            assert before in (None, status)
    finally:
        os.waitpid(pid, 0)
    assert linux.zombie_status(pid) is None
    if kernel_at_least(6, 15):
        assert linux.pidfd_exit_status(pidfd) == status
    os.close(pidfd)


def test_the_living_have_no_status() -> None:
    pid = sleeper()
    pidfd = os.pidfd_open(pid)
    try:
        assert linux.pidfd_exit_status(pidfd) is None
        assert linux.zombie_status(pid) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def test_what_is_no_pidfd_has_no_status() -> None:
    read_end, write_end = os.pipe()
    assert linux.pidfd_exit_status(read_end) is None
    os.close(read_end)
    os.close(write_end)


STAT = "{pid} ({name}) {state} 1 2 3 {middle} {status}\n"


@pytest.mark.parametrize("name", ["sh", "a b", ") Z 1", "((", "new\nline", ") R (", ""])
@pytest.mark.parametrize(("state", "expected"), [("Z", 1792), ("S", None), ("X", None)])
def test_names_of_processes_are_arbitrary(
    tmp_path: Path, name: str, state: str, expected: int | None
) -> None:
    folder = tmp_path / "5"
    folder.mkdir()
    middle = " ".join(str(n) for n in range(4, 49))
    stat = STAT.format(pid=5, name=name, state=state, middle=middle, status=1792)
    (folder / "stat").write_text(stat)
    assert linux.zombie_status(5, str(tmp_path)) == expected
    # Field 22 of proc_pid_stat(5): our fields 4 and later are their own numbers here.
    assert linux.start_time(5, str(tmp_path)) == int(stat.rpartition(")")[2].split()[19])


@pytest.mark.parametrize(
    "text", ["", "5", "5 (sh", "5 (sh) Z", "5 (sh) Z 1 2 3", "5 (sh) Z " + "x " * 60]
)
def test_a_broken_stat_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "stat").write_text(text)
    assert linux.zombie_status(5, str(tmp_path)) is None
    assert linux.start_time(5, str(tmp_path)) == 0


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from([b"5", b"(sh)", b")", b"Z", b"-1", b"9" * 30, b"\n"]), max_size=60
    ).map(b" ".join)
)
def test_a_stat_of_any_bytes(folder: Path, stat: bytes) -> None:
    (folder / "5" / "stat").write_bytes(stat)
    assert linux.start_time(5, str(folder)) >= 0
    status = linux.zombie_status(5, str(folder))
    assert status is None or b"Z" in stat


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=15), st.integers(0, 2**63), st.integers(0, 0xFFFF))
def test_a_stat_with_a_name_of_any_bytes(
    folder: Path, name: bytes, start: int, status: int
) -> None:
    """The kernel puts the name as it is between brackets: it may look like the rest of the line."""
    fields = [b"1"] * 50
    fields[0], fields[19], fields[49] = b"Z", b"%d" % start, b"%d" % status
    (folder / "5" / "stat").write_bytes(b"5 (" + name + b") " + b" ".join(fields) + b"\n")
    assert linux.start_time(5, str(folder)) == start
    assert linux.zombie_status(5, str(folder)) == status


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of /proc, with room for process 5."""
    made = tmp_path_factory.mktemp("proc")
    (made / "5").mkdir()
    return made


def test_a_zero_that_may_be_none_is_not_believed() -> None:
    """To those who may not trace a process its status reads 0."""
    need(os.geteuid() == 0, "root")
    pid = zombie("7")
    try:
        # Imported before: nobody may not read the checkout.
        code = f"""
from pyconmon import linux
import os
os.setuid(65534)
print(linux.zombie_status({pid}))
"""
        assert run(code) == "None\n"
    finally:
        os.waitpid(pid, 0)


def test_start_times() -> None:
    first = linux.start_time(os.getpid())
    assert first > 0
    assert first == linux.start_time(os.getpid())
    pid = sleeper()
    try:
        assert linux.start_time(pid) >= first
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert linux.start_time(pid) == 0


def test_bytes_that_wait() -> None:
    read_end, write_end = os.pipe()
    assert linux.bytes_waiting(read_end) == 0
    os.write(write_end, bytes(50_000))
    assert linux.bytes_waiting(read_end) == 50_000
    os.close(read_end)
    os.close(write_end)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"12345")
        assert linux.bytes_waiting(ours.fileno()) == 5
    with open("/dev/null", "rb") as null, pytest.raises(OSError, match="ioctl"):
        linux.bytes_waiting(null.fileno())


def test_a_bigger_pipe() -> None:
    read_end, write_end = os.pipe()
    assert linux.enlarge_pipe(read_end, 1 << 18) == 1 << 18
    # Beyond what any machine allows: it stays as it is.
    assert linux.enlarge_pipe(read_end, (1 << 31) - 1) in (1 << 18, 1 << 31)
    os.set_blocking(write_end, False)
    assert os.write(write_end, bytes(1 << 18)) == 1 << 18
    os.close(read_end)
    os.close(write_end)


def test_a_terminal_is_no_pipe() -> None:
    master, slave = pty.openpty()
    with pytest.raises(OSError, match="Bad file"):
        linux.enlarge_pipe(master, 1 << 18)
    os.close(master)
    os.close(slave)


def test_pidfds() -> None:
    pid = zombie("0")
    os.waitpid(pid, 0)
    assert linux.pidfd_open(pid) == -1
    pidfd = linux.pidfd_open(os.getpid())
    assert pidfd >= 0
    assert not os.get_inheritable(pidfd)
    os.close(pidfd)
