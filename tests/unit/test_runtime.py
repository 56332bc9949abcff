"""The runtime: its words, what is read from its pid file, and the child that becomes it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyconmon.options import Options
from pyconmon.runtime import NOT_EXECUTED, Child, build_argv, no_pid, read_pid
from tests.helpers.snippets import run
from tests.helpers.waiting import gone, wait_until

BASE = {"cid": "CID", "runtime": "RT", "container_pidfile": "PF", "bundle": "B"}
PAIR = ["--bundle", "B", "--pid-file", "PF"]


@pytest.mark.parametrize(
    ("given", "console", "words"),
    [
        ({}, None, ["create", *PAIR, "CID"]),
        ({}, "S", ["create", *PAIR, "--console-socket", "S", "CID"]),
        ({"systemd_cgroup": True, "no_pivot": True, "no_new_keyring": True}, None,
         ["--systemd-cgroup", "create", *PAIR, "--no-pivot", "--no-new-keyring", "CID"]),
        ({"runtime_args": ("--a", "b c"), "runtime_opts": ("--d", "")}, "S",
         ["--a", "b c", "create", *PAIR, "--d", "", "--console-socket", "S", "CID"]),
        ({"restore": "R", "runtime_opts": ("--x",)}, None,
         ["restore", *PAIR, "--detach", "--image-path", "R", "--work-path", "B", "--x", "CID"]),
        ({"exec": True, "exec_process_spec": "SPEC"}, None,
         ["exec", "--pid-file", "PF", "--process", "SPEC", "--detach", "CID"]),
        ({"exec": True, "exec_process_spec": "SPEC", "terminal": True, "runtime_args": ("--a",),
          "runtime_opts": ("--d",), "systemd_cgroup": True, "no_pivot": True}, "S",
         ["--a", "exec", "--pid-file", "PF", "--process", "SPEC", "--detach", "--d",
          "--console-socket", "S", "CID"]),
        ({"dialect": "classic"}, None, ["create", *PAIR, "CID"]),
        ({"dialect": "classic", "exec": True, "command": ("a", "-t", "", "--")}, None,
         ["exec", "--pid-file", "PF", "--detach", "CID", "a", "-t", "", "--"]),
        ({"dialect": "classic", "exec": True, "command": ("a",), "terminal": True}, "S",
         ["exec", "--pid-file", "PF", "--tty", "--detach", "--console-socket", "S", "CID", "a"]),
    ],
)  # fmt: skip
def test_words(given: dict[str, Any], console: str | None, words: list[str]) -> None:
    assert build_argv(Options(**(BASE | given)), console) == ["RT", *words]


# --- read_pid


@pytest.mark.parametrize(
    ("data", "pid"),
    [
        (b"2", 2),
        (b"42\n", 42),
        (b" 42 \r\n", 42),
        (b"0042", 42),
        (b"4194304", 4194304),
        (b"2147483647", 2147483647),
    ],
)
def test_a_pid(data: bytes, pid: int) -> None:
    assert read_pid(data) == pid


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b" \t\n", b"0", b"00", b"-5", b"-1", b"+5", b"abc", b"12abc", b"1 2", b"12\x00",
        b"1_0", b"0x10", b"1e3", b"12.0", b"\xb2", "٣".encode(), b"9999999999", b"2147483648",
        b"4294967298", b"9" * 4096, b"\xff\xfe", b"1", b"{}",
    ],
)  # fmt: skip
def test_no_pid(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(is empty|holds )"):
        read_pid(data)


def test_our_own_pid_is_no_containers() -> None:
    with pytest.raises(ValueError, match="no container's"):
        read_pid(b"%d" % os.getpid())


@given(st.binary() | st.text().map(str.encode) | st.integers().map(lambda n: b"%d" % n))
def test_anything(data: bytes) -> None:
    """A pid that a process can have, or a ValueError; nothing else."""
    try:
        pid = read_pid(data)
    except ValueError as error:
        assert len(str(error)) < 300
    else:
        assert 1 < pid < 2**31
        assert int(data) == pid


def test_why_there_is_no_pid() -> None:
    assert no_pid("/a/b", ValueError("is empty")) == "the pid file /a/b is empty"
    missing = FileNotFoundError(2, "No such file or directory", "/a/b")
    assert no_pid("/a/b", missing) == "Failed to open file “/a/b”: No such file or directory"


# --- the child


def spawn(argv: list[str], out: int, **settings: Any) -> int:
    """Spawn it with /dev/null and `out` as its streams; its wait status turned into an exit code."""
    null = os.open("/dev/null", os.O_RDONLY)
    environment = settings.pop("environment", dict(os.environ))
    child = Child(argv, (null, out, out), environment, **settings)
    try:
        pid = child.spawn()
    finally:
        os.close(null)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def out(tmp_path: Path) -> Any:
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd
    os.close(fd)


def said(out: int) -> str:
    return os.pread(out, 65536, 0).decode("utf-8", "surrogateescape")


def test_streams_words_environment(out: int) -> None:
    show = 'read x; echo "$0|$1|$2|$A|$x"; exit 7'
    words = ["/bin/sh", "-c", show, "a b", "", "$HOME"]
    environment = {"A": "caf\udce9", "PATH": os.environ["PATH"]}
    assert spawn(words, out, environment=environment) == 7
    assert said(out) == "a b||$HOME|caf\udce9|\n"


@pytest.mark.parametrize(
    ("path", "why"),
    [("/none", "No such file or directory"), ("/", "Permission denied"), ("a\0b", "null")],
)
def test_it_cannot_be_executed(out: int, path: str, why: str) -> None:
    assert spawn([path], out) == NOT_EXECUTED
    assert said(out).startswith(f"cannot run the runtime {path}: ")
    assert why in said(out)
    assert said(out).count("\n") == 1


def test_signals_of_the_child(out: int) -> None:
    """Ours are handled, ignored and blocked in every way; the child's are not."""
    words = ["/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    old = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        assert spawn(words, out, mask={signal.SIGUSR1}) == 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in old.items():
            signal.signal(number, handler)
    values = dict(line.split(":\t") for line in said(out).splitlines())
    assert int(values["SigBlk"], 16) == 1 << (signal.SIGUSR1 - 1)
    assert int(values["SigIgn"], 16) == 0


def test_listen_pid(out: int) -> None:
    show = ["/bin/sh", "-c", "echo $$ $LISTEN_PID"]
    path = {"PATH": os.environ["PATH"]}
    assert spawn(show, out, environment=path | {"LISTEN_PID": str(os.getpid())}) == 0
    assert spawn(show, out, environment=path | {"LISTEN_PID": "1"}, replace_listen_pid=True) == 0
    assert spawn(show, out, environment=path | {"LISTEN_PID": "1"}) == 0
    assert spawn(show, out, environment=path, replace_listen_pid=True) == 0
    own, replaced, others, none = (line.split() for line in said(out).splitlines())
    assert own[0] == own[1]
    assert replaced[0] == replaced[1]
    assert others[1] == "1"
    assert len(none) == 1


@pytest.mark.parametrize("value", ["abc", "", "0", "-1", "1x", "²"])
def test_a_bad_listen_pid(out: int, value: str) -> None:
    environment = {"LISTEN_PID": value}
    assert spawn(["/bin/true"], out, environment=environment) == 1
    assert "LISTEN_PID" in said(out)


def test_the_start_gate(out: int) -> None:
    """Nothing runs before its byte."""
    read_end, write_end = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    pid = Child(["/bin/echo", "run"], (null, out, out), {}, start_gate=read_end).spawn()
    os.close(null)
    wait_until(lambda: _sleeps(pid), what="the wait for the byte")
    assert said(out) == ""
    os.write(write_end, b"\0")
    assert os.waitpid(pid, 0)[1] == 0
    assert said(out) == "run\n"
    os.close(read_end)
    os.close(write_end)


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_the_memory_score(out: int) -> None:
    with open("/proc/self/oom_score_adj") as file:
        ours = int(file.read())
    higher = b"%d" % min(ours + 10, 1000)
    assert spawn(["/bin/cat", "/proc/self/oom_score_adj"], out, oom_score=higher) == 0
    assert spawn(["/bin/cat", "/proc/self/oom_score_adj"], out, oom_score=b"rubbish") == 0
    assert said(out).split() == [higher.decode(), str(ours)]


def test_it_dies_with_its_monitor(tmp_path: Path) -> None:
    code = """
import os, sys
from pyconmon.runtime import Child
null = os.open("/dev/null", os.O_RDWR)
print(Child(["/bin/sleep", "1000"], (null, null, null), {}).spawn(), flush=True)
os.kill(os.getpid(), 9)
"""
    with pytest.raises(AssertionError) as failure:
        run(code)
    status, output, _ = failure.value.args[0]
    assert status == -signal.SIGKILL
    wait_until(lambda: gone(int(output)), what="the runtime's death")


def test_without_streams_it_has_ours() -> None:
    code = """
import os
from pyconmon.runtime import Child
pid = Child(["/bin/sh", "-c", "cat; echo err >&2"], None, {"PATH": "/bin:/usr/bin"}).spawn()
os.waitpid(pid, 0)
"""
    done = run(code, input="from stdin\n")
    assert done == "from stdin\n"


def test_it_is_not_executed_for_a_parent_that_is_gone() -> None:
    """The parent died between the fork and prctl: nobody would ever end the runtime."""
    code = """
import os, signal
from pyconmon import runtime
read_end, write_end = os.pipe()
null = os.open("/dev/null", os.O_RDWR)
child = runtime.Child(["/bin/sh", "-c", "echo run"], (null, write_end, null), {})
pid = os.fork()
if pid == 0:
    child._become_runtime(os.getppid() + 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.close(write_end)
print(os.read(read_end, 10))
"""
    assert run(code) == f"{NOT_EXECUTED}\nb''\n"


def test_words_need_not_be_text() -> None:
    """No shell and no serialisation in between."""
    word = b"\xff\n\x01"
    words = [os.fsdecode(word)]
    read_end, write_end = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    pid = Child(["/bin/sh", "-c", 'printf %s "$0"', *words], (null, write_end, null), {}).spawn()
    os.close(write_end)
    os.close(null)
    assert os.read(read_end, 100) == word
    os.close(read_end)
    os.waitpid(pid, 0)
