"""Exec in the classic dialect: the command's words, its output and input, its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.classic.sessions import Container, Containers
from tests.helpers.waiting import wait_until

SHOW = r"""for word; do printf '<%s>' "$word"; done"""

WORDS = [
    ["a b", " ", "tab\there", "new\nline", "\n"],
    ["'", '"', '"quoted"', "it's", "\\", "\\n", "`id`", "$(id)"],
    ["$HOME", "${HOME}", "$", "a;b", "a&b", "|", ">x", "*", "?", "~", "#", "!"],
    ["", "", "x", ""],
    ["--", "-", "-c", "other", "-e", "-t", "-r", "/none", "--help", "--version", "-b", "--nope"],
    ["-p"],
    ["ü", "\u20ac", "\U0001f980", "%s", "{}", "=", "a=b"],
    ["x" * 100_000],
]


@pytest.fixture
def container(containers: Containers) -> Container:
    return containers.running()


def test_a_command(container: Container) -> None:
    call = container.exec("sh", "-c", "echo out; echo err >&2; exit 5")
    assert call.rest() == b'{"exit_code": 5}\n'
    assert call.status() == 0
    assert call.stdout == b"out\n"
    assert call.stderr == b"err\n"
    assert not (container.owner.home / "exit").exists()
    assert not container.exit_file.exists()


def test_nothing_is_told_before_the_end(container: Container) -> None:
    read_end, write_end = os.pipe()
    call = container.exec("sh", "-c", "echo ready; read x; exit 6", stdin=read_end)
    os.close(read_end)
    wait_until(lambda: call.stdout == b"ready\n", what="the command")
    assert call.sync is not None
    assert call.sync.silent()
    os.close(write_end)
    assert call.rest() == b'{"exit_code": 6}\n'
    assert call.status() == 0


@pytest.mark.parametrize("words", WORDS, ids=range(len(WORDS)))
def test_words_arrive_as_they_are(container: Container, words: list[str]) -> None:
    call = container.exec("sh", "-c", SHOW, "sh", *words)
    assert call.rest() == b'{"exit_code": 0}\n', call.stderr
    assert call.stdout == "".join(f"<{word}>" for word in words).encode()


def test_words_need_not_be_text(alone: Containers, shim_runtime: Path) -> None:
    """With a runtime that passes any bytes (runc itself makes JSON of them)."""
    container = alone.running(runtime=shim_runtime)
    words = [b"\xff\xfe", b"caf\xe9", b"\x01\x7f\x80", b"\xed\xa0\x80"]
    call = container.exec("sh", "-c", SHOW, "sh", *words)
    assert call.rest() == b'{"exit_code": 0}\n'
    assert call.stdout == b"".join(b"<" + word + b">" for word in words)
    container.delete()


def test_a_command_with_options_of_its_own(container: Container) -> None:
    call = container.exec("ls", "-d", "-1", "--", "/proc")
    assert call.rest() == b'{"exit_code": 0}\n'
    assert call.stdout == b"/proc\n"


def test_options_in_any_order_before_the_command(container: Container) -> None:
    home = container.owner.home
    words = ["--exec", f"--pidfile={home}/p", "--runtime", container.runtime, "--cid"]
    call = container.owner.call([*words, container.name, "echo", "-e", "-c"])
    assert call.rest() == b'{"exit_code": 0}\n'
    assert call.stdout.strip().endswith(b"-c")


def test_two_dashes_before_the_command(container: Container) -> None:
    call = container.exec("--", "sh", "-c", "exit 7")
    assert call.rest() == b'{"exit_code": 7}\n'


def test_without_a_pid_file_pidfile_name(container: Container) -> None:
    home = container.owner.home
    words = ["-c", container.name, "-r", container.runtime, "-e", "true"]
    call = container.owner.call(words, cwd=home)
    assert call.rest() == b'{"exit_code": 0}\n'
    assert int((home / f"pidfile-{container.name}").read_text()) > 1


def test_output_is_untouched(container: Container) -> None:
    script = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero | tr '\\0' x >&2"
    call = container.exec("sh", "-c", script)
    assert call.rest() == b'{"exit_code": 0}\n'
    assert call.stdout == bytes(3_000_000)
    assert call.stderr == b"x" * 2_000_000


def test_stdin_is_the_callers(container: Container) -> None:
    text = os.urandom(300_000)
    file = container.owner.home / "input"
    file.write_bytes(text)
    with open(file, "rb") as stdin:
        call = container.exec("cat", stdin=stdin)
        assert call.rest() == b'{"exit_code": 0}\n'
    assert call.stdout == text


def test_a_signal(container: Container) -> None:
    call = container.exec("sh", "-c", "kill -KILL $$")
    assert call.rest() == b'{"exit_code": 137}\n'
    assert call.status() == 0


def test_the_container_ends_first(container: Container) -> None:
    call = container.exec("sh", "-c", "echo ready; exec sleep 1000")
    wait_until(lambda: call.stdout == b"ready\n", what="the command")
    if container.runtime.name.startswith("runc"):
        container.kill()
    else:  # there, a command has nothing to do with the container's end
        container.delete()
    assert call.rest() == b'{"exit_code": 137}\n'
    assert call.status() == 0


def test_a_process_left_behind_holds_nobody_up(container: Container) -> None:
    call = container.exec("sh", "-c", "sleep 1000 & echo $!; exit 17")
    assert call.answer() == b'{"exit_code": 17}\n'
    assert call.status() == 0
    left_behind = int(call.stdout)
    if not container.runtime.name.startswith("runc"):  # it is a process of the host
        os.kill(left_behind, signal.SIGKILL)


def test_many_at_once(container: Container) -> None:
    calls = [container.exec("sh", "-c", f"echo {n}; exit {n}") for n in range(10)]
    for n, call in enumerate(calls):
        assert call.rest() == b'{"exit_code": %d}\n' % n
        assert call.stdout == b"%d\n" % n


# --- what goes wrong


def test_no_such_command(container: Container) -> None:
    call = container.exec("/no/such/command", "x")
    assert call.status() == 1
    assert call.rest() == b""
    assert b"/no/such/command" in call.stderr
    assert call.stdout == b""


def test_no_such_container(container: Container) -> None:
    call = container.exec("true", name="nobody")
    assert call.status() == 1
    assert call.rest() == b""
    assert b"does not exist" in call.stderr


def test_a_container_that_has_ended(container: Container) -> None:
    container.kill()
    container.code()
    call = container.exec("true")
    assert call.status() == 1
    assert call.rest() == b""
    assert call.stderr


def test_a_caller_that_does_not_listen_any_more(container: Container) -> None:
    noted = container.owner.home / "noted"
    with open(noted, "wb") as out:
        call = container.exec("sh", "-c", "echo ready; read x; echo done", stdout=out,
                              stdin=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: noted.read_bytes() == b"ready\n", what="the command")
    call.close_sync()
    assert call.process.stdin is not None
    call.process.stdin.close()
    assert call.status() == 0
    assert noted.read_bytes() == b"ready\ndone\n"


def test_a_caller_whose_stdout_is_closed(container: Container) -> None:
    """EPIPE is the command's affair; its exit code still comes."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    call = container.exec("sh", "-c", "sleep 0; exec cat /proc/version", stdout=write_end)
    os.close(write_end)
    answer = call.rest()
    assert answer in (b'{"exit_code": 141}\n', b'{"exit_code": 1}\n'), answer
    assert call.status() == 0
