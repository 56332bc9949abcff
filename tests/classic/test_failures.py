"""What goes wrong with the runtime, or its pid file: said on stderr, nothing on the pipe, nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.classic.sessions import Call, Container, Containers, noted_pids
from tests.helpers.waiting import gone, wait_until

# A process that would live on: nobody but the monitor knows of it once the runtime has ended.
LEAVE = "sleep 1000 & echo $! >'{home}/pid-1'; (sleep 1000 & echo $! >'{home}/pid-2')"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody may touch."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def attempt(containers: Containers, kind: str, runtime: Path | str) -> tuple[Container, Call]:
    """A create or exec with this runtime."""
    container = containers(runtime=Path(runtime))
    if kind == "create":
        return container, container.create()
    words = ["-c", container.name, "-r", runtime, "-p", container.pidfile, "-e", "true"]
    return container, containers.call(words)


def assert_failed(container: Container, call: Call, *said: bytes) -> None:
    assert call.status() == 1
    assert call.rest() == b""
    for text in said:
        assert text in call.stderr
    assert call.stderr.endswith(b"\n")
    assert call.stdout == b""
    assert not container.exit_file.exists()


both = pytest.mark.parametrize("kind", ["create", "exec"])

PID_FILES = {
    "missing": (":", b"Failed to open file"),
    "empty": (': >"$PF"', b"is empty"),
    "only a line end": ('echo >"$PF"', b"is empty"),
    "garbled": ('echo abc >"$PF"', b"abc"),
    "not only a number": ('echo 12abc >"$PF"', b"12abc"),
    "two numbers": ('echo 1 2 >"$PF"', b"1 2"),
    "zero": ('echo 0 >"$PF"', b"'0'"),
    "negative": ('echo -5 >"$PF"', b"-5"),
    "minus one": ('echo -1 >"$PF"', b"-1"),
    "too big": ('echo 99999999999999999999 >"$PF"', b"99999999"),
    "more than a pid": ('echo 9999999999 >"$PF"', b"9999999999"),
    "init": ('echo 1 >"$PF"', b"no container's"),
    "binary": ('head -c 5000 /dev/zero >"$PF"', b"where a process id belongs"),
    "a FIFO": ('mkfifo "$PF"', b"is empty"),
    "a folder": ('mkdir "$PF"', b"Is a directory"),
    "a dangling link": ('ln -s none "$PF"', b"Failed to open file"),
}


@both
@pytest.mark.parametrize("content", PID_FILES)
def test_a_pid_file_without_a_pid(alone: Containers, kind: str, content: str) -> None:
    write, said = PID_FILES[content]
    script = alone.script(f"{LEAVE.format(home=alone.home)}\n{write}")
    container, call = attempt(alone, kind, script)
    assert_failed(container, call, said)
    left = noted_pids(alone.home)
    assert len(left) == 2
    assert all(map(gone, left))


@both
def test_a_stale_pid_file(alone: Containers, kind: str, bystander: subprocess.Popen[bytes]) -> None:
    """It names a living process that has nothing to do with it."""
    container = alone(runtime=alone.script("exit 0"))
    container.pidfile.write_text(str(bystander.pid))
    if kind == "create":
        call = container.create()
    else:
        words = ["-c", "x", "-r", container.runtime, "-p", container.pidfile, "-e", "true"]
        call = alone.call(words)
    assert_failed(container, call, b"Failed to open file")
    assert bystander.poll() is None


def test_a_stale_pid_file_does_not_matter(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 3"])
    container.pidfile.write_text(str(os.getpid()))
    call = container.create()
    answer = json.loads(call.answer())
    assert answer == {"pid": container.pid}
    assert container.pid != os.getpid()
    container.start()
    assert call.status() == 0
    assert container.exit_file.read_bytes() == b"3"


def test_an_empty_pid_file_made_beforehand(containers: Containers) -> None:
    container = containers(["sh", "-c", "exit 4"])
    container.pidfile.touch()
    assert container.run().status() == 0
    assert container.exit_file.read_bytes() == b"4"


# --- the runtime itself


@both
def test_a_runtime_that_is_missing(alone: Containers, kind: str) -> None:
    container, call = attempt(alone, kind, alone.home / "no-runtime")
    assert_failed(container, call, b"no-runtime", b"No such file or directory")


@both
def test_a_runtime_that_may_not_be_executed(alone: Containers, kind: str) -> None:
    script = alone.script("exit 0")
    script.chmod(0o644)
    container, call = attempt(alone, kind, script)
    assert_failed(container, call, os.fsencode(script), b"Permission denied")


@both
def test_a_runtime_that_is_a_folder(alone: Containers, kind: str) -> None:
    container, call = attempt(alone, kind, alone.home)
    assert_failed(container, call, b"Permission denied")


@both
@pytest.mark.parametrize(
    ("text", "said"),
    [("", b"Exec format error"), ("#!/no/interpreter\n", b"No such file or directory")],
)
def test_a_runtime_that_is_no_program(alone: Containers, kind: str, text: str, said: bytes) -> None:
    program = alone.home / "program"
    program.write_text(text)
    program.chmod(0o755)
    container, call = attempt(alone, kind, program)
    assert_failed(container, call, said)


@both
@pytest.mark.parametrize("status", [1, 3, 126, 127, 255])
def test_a_runtime_that_fails(alone: Containers, kind: str, status: int) -> None:
    lines = f"{LEAVE.format(home=alone.home)}\necho 'what went wrong' >&2; exit {status}"
    container, call = attempt(alone, kind, alone.script(lines))
    assert_failed(container, call, b"what went wrong", b"status %d" % status)
    assert call.stderr.index(b"what went wrong") < call.stderr.index(b"status")
    left = noted_pids(alone.home)
    assert len(left) == 2
    assert all(map(gone, left))


def test_a_runtime_that_fails_after_all(
    alone: Containers, bystander: subprocess.Popen[bytes]
) -> None:
    """It has written a pid file, and says then that there is no container."""
    lines = f"{LEAVE.format(home=alone.home)}\ncp '{alone.home}/pid-2' \"$PF\"; exit 9"
    container, call = attempt(alone, "create", alone.script(lines))
    assert_failed(container, call, b"status 9")
    assert all(map(gone, noted_pids(alone.home)))
    assert bystander.poll() is None


@both
@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_a_runtime_that_is_killed(alone: Containers, kind: str, name: str) -> None:
    container, call = attempt(alone, kind, alone.script(f"kill -{name} $$; sleep 1000"))
    number = getattr(signal, f"SIG{name}")
    assert_failed(container, call, b"status %d" % (128 + number))


def test_a_command_that_is_not_there(containers: Containers) -> None:
    container = containers(["/no/such/command"])
    call = container.create()
    assert_failed(container, call, b"/no/such/command")


def test_a_name_that_is_taken(containers: Containers) -> None:
    first = containers.running()
    words = ["-c", first.name, "-r", first.runtime, "-b", containers().bundle]
    call = containers.call([*words, "-p", containers.home / "pidfile"])
    assert call.status() == 1
    assert call.rest() == b""
    assert call.stderr
    assert first.state() == "running"


def test_a_runtime_that_says_much(alone: Containers) -> None:
    """More than a pipe holds."""
    lines = "head -c 1000000 /dev/zero | tr '\\0' y >&2; exit 1"
    container, call = attempt(alone, "create", alone.script(lines))
    assert_failed(container, call, b"y" * 1_000_000)


def test_leftovers_that_do_not_want_to_go(alone: Containers) -> None:
    """TERM is ignored, and children are born all the time."""
    stubborn = f"trap '' TERM INT HUP; echo $$ >'{alone.home}/pid-3'; while :; do (sleep 1000 & sleep 0); done"
    lines = (
        f'/bin/sh -c "{stubborn.replace("$", chr(92) + "$")}" &\n'
        f"while [ ! -s '{alone.home}/pid-3' ]; do :; done\nexit 1"
    )
    container, call = attempt(alone, "create", alone.script(lines))
    assert_failed(container, call)
    assert all(map(gone, noted_pids(alone.home)))
    mark = os.fsencode(alone.home)
    wait_until(lambda: not _with_directory(mark), what="the end of all of them")


def _with_directory(mark: bytes) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            directory = os.fsencode(os.readlink(f"/proc/{name}/cwd"))
        except OSError:
            continue
        if directory.startswith(mark) and not gone(int(name)):
            found.append(int(name))
    return found


# --- what the caller did wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-c", "x", "-r", "/bin/true", "-p"], b"Missing argument for -p"),
        (["-c", "x", "-r", "/bin/true", "-p", "p", "--nope"], b"Unknown option --nope"),
        (["-c", "x", "-p", "p", "-e", "true"], b"Runtime path not provided"),
    ],
)
def test_bad_words(alone: Containers, words: list[str], said: bytes) -> None:
    call = alone.call(words)
    assert call.status() == 1
    assert call.rest() == b""
    assert call.stderr.count(b"\n") == 1
    assert said in call.stderr
