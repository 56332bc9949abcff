"""The sandbox example against hostile code: each outcome told apart, nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.monitors import ROOT
from tests.helpers.need import need, need_root
from tests.helpers.session import TOKEN

Judge = Callable[..., Any]
EXAMPLE = ROOT / "examples/sandbox.py"


def _load() -> ModuleType:
    found = importlib.util.spec_from_file_location("sandbox_example", EXAMPLE)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


sandbox = _load()
Outcome = sandbox.Outcome


@pytest.fixture
def judge(monitor_path: Path, runc: Path) -> Judge:
    """sandbox.judge with the monitor under test, limits in keeping with a test, and patience."""
    need_root()
    need(os.access("/usr/bin/python3", os.X_OK), "Python in /usr/bin")
    need(os.path.islink("/bin"), "a system with everything in /usr")

    def judge(code: str, language: str = "python", **limits: Any) -> Any:
        settings = {"seconds": 60, "memory": "64m", "pids": 32, **limits}
        return sandbox.judge(
            code, language, runtime=str(runc), monitor=str(monitor_path), **settings
        )

    return judge


def mark() -> str:
    """A word for the command lines of what a test starts, so that it can be looked for."""
    return f"{TOKEN}-{time.monotonic_ns()}"


def running(word: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in command and int(pid) != os.getpid():
            found.append(pid)
    return found


# --- honest code


def test_good_code_finishes(judge: Judge) -> None:
    verdict = judge("import sys; print(6 * 7); print('no', file=sys.stderr); sys.exit(3)")
    assert (verdict.outcome, verdict.exit_code, verdict.signal) == (Outcome.FINISHED, 3, None)
    assert (verdict.stdout, verdict.stderr) == (b"42\n", b"no\n")
    assert judge("echo $((6*7))", "sh").stdout == b"42\n"


def test_what_the_code_can_see_and_do(judge: Judge) -> None:
    code = """
import json, os, socket
def attempt(call, *words):
    try:
        call(*words)
    except OSError as error:
        return error.errno
    return 0
print(json.dumps({
    "uid": os.getuid(), "home": sorted(os.listdir("/")),
    "procs": sum(map(str.isdigit, os.listdir("/proc"))),
    "net": os.listdir("/sys/class/net"), "env": sorted(os.environ), "etc": os.listdir("/etc"),
    "write": [attempt(open, name, "w") for name in ("/x", "/usr/x", "/code/snippet", "/dev/x")],
    "tmp": attempt(open, "/tmp/x", "w"), "unshare": attempt(os.unshare, os.CLONE_NEWUSER)
        if hasattr(os, "unshare") else 1,
    "out": attempt(socket.create_connection, ("192.0.2.1", 80), 5),
}))
"""
    verdict = judge(code)
    seen = json.loads(verdict.stdout)
    assert seen["uid"] == 65534
    assert seen["etc"] == [] and seen["net"] == ["lo"] and seen["procs"] == 2
    assert not {"root", "home", "var", "work"} & set(seen["home"])
    assert (
        {"HOME", "LANG", "PATH"}
        <= set(seen["env"])
        <= {"HOME", "LANG", "PATH", "PWD", "OLDPWD", "_"}
    )
    assert 0 not in seen["write"] and seen["tmp"] == 0
    assert seen["unshare"] != 0 and seen["out"] != 0


# --- hostile code


def test_an_endless_loop(judge: Judge) -> None:
    verdict = judge("while True: pass", seconds=0.5)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.TIMED_OUT, None)
    assert verdict.seconds >= 0.5


def test_a_process_that_ignores_every_signal(judge: Judge) -> None:
    code = """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print("ignoring", flush=True)
while True: time.sleep(1)
"""
    verdict = judge(code, seconds=1)
    assert verdict.outcome is Outcome.TIMED_OUT


def test_a_fork_bomb(judge: Judge) -> None:
    code = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""
    assert judge(code, seconds=1).outcome is Outcome.TIMED_OUT


def test_a_shell_fork_bomb(judge: Judge) -> None:
    word = mark()
    script = f"b() {{ b | b & sh -c 'sleep 1000; :' {word}; }}; b & exec sleep 1000"
    assert judge(script, "sh", seconds=1).outcome is Outcome.TIMED_OUT
    assert running(word) == []


def test_no_more_processes_than_allowed(judge: Judge) -> None:
    code = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0: time.sleep(1000)
        count += 1
except OSError as error:
    print(count, error.errno)
"""
    verdict = judge(code, pids=20)
    assert verdict.stdout == b"18 11\n"  # the shell, Python and 18 children; EAGAIN
    assert verdict.outcome is Outcome.FINISHED


def test_a_memory_bomb(judge: Judge) -> None:
    code = "data = []\nwhile True: data.append(bytearray(1 << 20))"
    verdict = judge(code, memory="48m")
    assert (verdict.outcome, verdict.exit_code) == (Outcome.OUT_OF_MEMORY, None)


def test_a_memory_bomb_in_many_processes(judge: Judge) -> None:
    code = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        data = bytearray(16 << 20)
        time.sleep(100)
print(os.waitstatus_to_exitcode(os.wait()[1]))
os.kill(os.getpid(), 9)
"""
    verdict = judge(code, memory="48m")
    assert verdict.outcome is Outcome.OUT_OF_MEMORY


def test_filling_tmp_and_shared_memory(judge: Judge) -> None:
    code = """
import errno, os
for where in ("/tmp/fill", "/dev/shm/fill"):
    size = 0
    try:
        with open(where, "wb", buffering=0) as file:
            while True: size += file.write(bytes(1 << 16))
    except OSError as error:
        print(size, errno.errorcode[error.errno], flush=True)
    os.unlink(where)
"""
    verdict = judge(code, disk="4m")
    size = str(4 << 20)
    assert verdict.stdout.decode().split() == [size, "ENOSPC", size, "ENOSPC"], verdict
    assert verdict.outcome is Outcome.FINISHED


def test_filling_tmp_beyond_the_memory_limit(judge: Judge) -> None:
    code = "with open('/tmp/fill', 'wb') as file:\n    while True: file.write(bytes(1 << 16))"
    assert judge(code, memory="32m", disk="1g").outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_endless_output(judge: Judge, where: str) -> None:
    code = f"import sys\nwhile True: print('flood', file=sys.{where})"
    verdict = judge(code, output=10_000)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.TOO_MUCH_OUTPUT, None)
    assert getattr(verdict, where) == (b"flood\n" * 2000)[:10_000]


def test_one_byte_too_much_at_the_very_end(judge: Judge) -> None:
    assert judge("print('x' * 99)", output=100).outcome is Outcome.FINISHED
    assert judge("print('x' * 100)", output=100).outcome is Outcome.TOO_MUCH_OUTPUT


def test_background_daemons_end_with_the_code(judge: Judge) -> None:
    word = mark()
    code = f"""
import os, subprocess
script = "trap '' TERM HUP; echo up; while :; do sleep 1; done"
child = subprocess.Popen(["sh", "-c", script, {word!r}],
                         stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print("leaving", flush=True)
os._exit(0)
"""
    verdict = judge(code)
    assert (verdict.outcome, verdict.stdout) == (Outcome.FINISHED, b"leaving\n")
    assert running(word) == []


def test_daemons_that_hold_the_output_open(judge: Judge) -> None:
    word = mark()
    verdict = judge(f"sh -c 'while :; do sleep 1; done' {word} & echo bye", "sh")
    assert (verdict.outcome, verdict.stdout) == (Outcome.FINISHED, b"bye\n")
    assert running(word) == []


def test_closing_the_output_is_not_the_end(judge: Judge) -> None:
    code = (
        "import os, time\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\n"
    )
    assert judge(code + "time.sleep(1000)", seconds=1).outcome is Outcome.TIMED_OUT
    verdict = judge(code + "os._exit(7)")
    assert (verdict.outcome, verdict.exit_code) == (Outcome.FINISHED, 7)


@pytest.mark.parametrize(
    ("code", "signal"),
    [("import os; os.abort()", 6), ("import os; os.kill(os.getpid(), 9)", 9)],
)
def test_code_that_dies_by_a_signal(judge: Judge, code: str, signal: int) -> None:
    verdict = judge(code)
    assert (verdict.outcome, verdict.signal, verdict.exit_code) == (Outcome.KILLED, signal, None)


def test_killing_everything_in_sight(judge: Judge) -> None:
    verdict = judge("kill -9 -1; kill -9 1; echo alive", "sh")
    assert verdict.outcome in (Outcome.FINISHED, Outcome.KILLED)


def test_code_that_is_no_code(judge: Judge) -> None:
    assert judge("(").exit_code == 1
    assert judge("").exit_code == 0


# --- as a command


def test_the_command(pyconmon: Path) -> None:
    need_root()
    path = f"{pyconmon.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, EXAMPLE, "-", "--seconds", "60"],
        input=b"print('hello'); raise SystemExit(5)",
        capture_output=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "client")},
        timeout=90,
    )
    assert (done.returncode, done.stdout) == (5, b"hello\n"), done.stderr
    assert done.stderr == b"sandbox: finished 5\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["/no/file.py"], "/no/file.py: No such file"),
        (["-", "--seconds", "0"], "--seconds: 0.0 is not more than 0"),
        (["-", "--output", "-5"], "--output: -5 is not more than 0"),
        (["-", "--pids", "x"], "--pids: invalid int value: 'x'"),
        (["-", "--memory", "zz"], "memory: 'zz' is not a size"),
    ],
)
def test_wrong_words(pyconmon: Path, words: list[str], problem: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{pyconmon.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "client"),
        },
        timeout=90,
        check=False,
    )
    assert done.returncode in (2, 125)
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
