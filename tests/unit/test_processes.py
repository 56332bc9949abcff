"""Looking for processes and ending them, with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon import processes
from pyconmon.container import ContainerProcess
from pyconmon.loop import Loop
from pyconmon.reaper import Reaper
from tests.helpers.snippets import run
from tests.helpers.waiting import gone, wait_until


@pytest.fixture
def family(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a child, a grandchild, and one that has left for a session of its own."""
    script = (
        "sleep 1000 & echo $! >$1/child.new; mv $1/child.new $1/child\n"
        "sh -c 'sleep 1000 & echo $! >$1/grandchild.new; mv $1/grandchild.new $1/grandchild; wait' sh $1 &\n"
        "setsid sleep 1000 & echo $! >$1/session.new; mv $1/session.new $1/session\n"
        "wait"
    )
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", str(tmp_path)], stdout=write_end, start_new_session=True
    )
    os.close(write_end)
    names = ("child", "grandchild", "session")
    wait_until(lambda: all((tmp_path / name).exists() for name in names), what="the family")
    pids = [int((tmp_path / name).read_text()) for name in names]
    process.pids = pids  # type: ignore[attr-defined]
    process.inode = os.fstat(read_end).st_ino  # type: ignore[attr-defined]
    yield process
    for pid in [*pids, process.pid]:
        processes.kill(pid)
    process.wait()
    os.close(read_end)


def test_children_and_descendants(family: subprocess.Popen[bytes]) -> None:
    child, grandchild, session = family.pids  # type: ignore[attr-defined]
    children = processes.children_of(family.pid)
    assert {child, session} < set(children)
    assert grandchild not in children
    below = processes.descendants_of(family.pid)
    assert {child, grandchild, session} < set(below)
    assert below.index(grandchild) > below.index(child)
    assert family.pid in processes.descendants_of(os.getpid())


@pytest.fixture(scope="module")
def proc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of /proc: process 5 with two threads."""
    made = tmp_path_factory.mktemp("proc")
    for thread in ("5", "6"):
        (made / "5/task" / thread).mkdir(parents=True)
    return made


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.binary(max_size=100)
    | st.lists(st.integers(1, 2**22)).map(lambda pids: b" ".join(b"%d" % n for n in pids))
)
def test_children_of_any_bytes(proc: Path, text: bytes) -> None:
    """A thread whose list makes no sense is passed over, and takes no other's children with it."""
    (proc / "5/task/5/children").write_bytes(text)
    (proc / "5/task/6/children").write_bytes(b"77 78 ")
    found = processes.children_of(5, str(proc))
    assert {77, 78} <= set(found)
    assert all(isinstance(pid, int) for pid in found)


def test_of_nobody() -> None:
    assert processes.children_of(2**31 - 1) == []
    assert processes.descendants_of(2**31 - 1) == []
    processes.kill(2**31 - 1)


def test_holders_of_a_pipe(family: subprocess.Popen[bytes]) -> None:
    inode = family.inode  # type: ignore[attr-defined]
    wait_until(lambda: family.pid in processes.holders_of([inode]))
    assert set(family.pids) < set(processes.holders_of([inode, 1]))  # type: ignore[attr-defined]
    assert os.getpid() not in processes.holders_of([inode])
    assert processes.holders_of([]) == []


def test_children_of_all_threads(tmp_path: Path) -> None:
    for thread, children in (("7", "8 9"), ("10", "11"), ("12", "nonsense")):
        (tmp_path / "7" / "task" / thread).mkdir(parents=True)
        (tmp_path / "7" / "task" / thread / "children").write_text(children)
    (tmp_path / "7" / "task" / "13").mkdir()
    assert sorted(processes.children_of(7, str(tmp_path))) == [8, 9, 11]


def test_killing_everything_below() -> None:
    """Also those that ignore everything else, and those that are born meanwhile; our parent lives."""
    code = """
import os, subprocess, sys, time
from pyconmon import linux, processes
from pyconmon.reaper import Reaper
linux.set_child_subreaper(True)
script = "trap '' TERM INT HUP; echo ready; while :; do (sleep 1000 & sleep 0); done"
made = [subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) for _ in range(3)]
made.append(subprocess.Popen(["sh", "-c", "setsid sh -c 'sleep 1000 & sleep 1000' & echo ready"], stdout=subprocess.PIPE))
for each in made:
    each.stdout.readline()
processes.kill_children(Reaper())
print(processes.descendants_of(os.getpid()))
processes.kill_children(Reaper())
"""
    assert run(code) == "[]\n"


@pytest.mark.parametrize("as_child", [True, False])
def test_killing_what_is_overdue(family: subprocess.Popen[bytes], as_child: bool) -> None:
    loop, reaper = Loop(), Reaper()
    pid = family.pid
    if not as_child:
        # The shell's child is not ours: it is ended, and what it started; nobody else.
        pid = family.pids[0]  # type: ignore[attr-defined]
    container = ContainerProcess(loop, reaper, pid, lambda code: None)
    container.pidfd = os.pidfd_open(pid)
    inodes = [family.inode] if as_child else []  # type: ignore[attr-defined]
    processes.kill_overdue(container, inodes, reaper)
    container.close()
    wait_until(lambda: gone(pid), what="its end")
    if as_child:
        assert family.wait(30) == -signal.SIGKILL
        wait_until(lambda: all(map(gone, family.pids)), what="the end of all")  # type: ignore[attr-defined]
    else:
        assert not gone(family.pids[1])  # type: ignore[attr-defined]
        assert family.poll() is None


def test_what_has_left_group_and_tree_is_found_by_its_output() -> None:
    """As a daemon does it: another session, another parent, the same stdout."""
    script = "(setsid sleep 1000 & echo $!); exec sleep 1000"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    daemon = int(process.stdout.readline())
    inode = os.fstat(process.stdout.fileno()).st_ino
    container = ContainerProcess(Loop(), Reaper(), process.pid, lambda code: None)
    container.pidfd = os.pidfd_open(process.pid)
    try:
        wait_until(lambda: daemon not in processes.descendants_of(process.pid))
        processes.kill_overdue(container, [inode], Reaper())
        assert process.wait(30) == -signal.SIGKILL
        wait_until(lambda: gone(daemon), what="the daemon's end")
    finally:
        container.close()
        processes.kill(daemon)
        process.stdout.close()


def test_our_own_group_is_never_killed() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    container = ContainerProcess(Loop(), Reaper(), process.pid, lambda code: None)
    container.pidfd = os.pidfd_open(process.pid)
    assert os.getpgid(process.pid) == os.getpgid(0)
    processes.kill_overdue(container, [], Reaper())
    container.close()
    assert process.wait(30) == -signal.SIGKILL
