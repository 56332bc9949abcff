"""Interactive sessions, driven through a real terminal: keys, sizes, detaching, and the way out."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptyprocess import PtyProcess

from pyconmon_client.errors import InvalidArgumentError
from pyconmon_client.keys import KeyMatcher, parse_keys
from tests.helpers.drive import Drive
from tests.helpers.monitors import ROOT
from tests.helpers.waiting import gone, wait_until

Drives = Callable[..., Drive]

DETACH = b"\x10\x11"

# What runs in the terminal: a session, and then what the terminal is like after it.
SESSION = """
import sys, termios, threading
sys.path.insert(0, {client!r})
from pyconmon_client.attach import attach
from pyconmon_client.terminal import interact
before = termios.tcgetattr(0)
print("begin", flush=True)
input()
def run():
    try:
        with attach({directory!r}) as attachment:
            print("end:", interact(attachment, {arguments}), flush=True)
    finally:
        print("restored:", termios.tcgetattr(0) == before, flush=True)
{call}
"""


class Terminal:
    """A user's terminal with a session in it."""

    def __init__(self, container: Drive, arguments: str, call: str) -> None:
        text = SESSION.format(
            client=str(ROOT / "client"),
            directory=str(container.directory),
            arguments=arguments,
            call=call,
        )
        self.process = PtyProcess.spawn([sys.executable, "-c", text], dimensions=(30, 100))
        self.process.delayafterclose = self.process.delayafterterminate = 0.01
        self.pid: int = self.process.pid
        self.seen = b""
        self.until(b"begin\r\n")
        self.before = termios.tcgetattr(self.process.fd)
        self.type(b"\n")

    def until(self, what: bytes) -> bytes:
        """Reads on until `what` has come; gives what was before it and forgets both."""

        def more() -> bool:
            if what not in self.seen:
                self.read()
            return what in self.seen

        try:
            wait_until(more, 20)
        except (AssertionError, EOFError):
            raise AssertionError(f"{what!r} did not come: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(what)
        return before

    def read(self, wait: float = 0.1) -> None:
        """Takes what has come, waiting a moment for it. EOFError at the end."""
        if select.select([self.process.fd], [], [], wait)[0]:
            self.seen += self.process.read(65536)

    def type(self, data: bytes) -> None:
        self.process.write(data)

    def end(self) -> int:
        """Reads to the end; the exit code, or -N for signal N."""
        deadline = time.monotonic() + 20
        with contextlib.suppress(EOFError):
            while time.monotonic() < deadline:
                self.read()
        self.process.wait()
        if self.process.signalstatus is not None:
            return -int(self.process.signalstatus)
        return int(self.process.exitstatus)

    def is_raw(self) -> bool:
        flags = termios.tcgetattr(self.process.fd)[3]
        return not flags & (termios.ICANON | termios.ECHO | termios.ISIG)

    def close(self) -> None:
        self.process.close(force=True)


Opens = Callable[..., Terminal]


@pytest.fixture
def opens() -> Iterator[Opens]:
    with ExitStack() as stack:

        def make(container: Drive, arguments: str = "", call: str = "run()") -> Terminal:
            terminal = Terminal(container, arguments, call)
            stack.callback(terminal.close)
            # What is typed before it is raw may be eaten or changed by the terminal itself.
            wait_until(terminal.is_raw, what="raw mode")
            return terminal

        yield make


def shell(drives: Drives, script: str = "exec sh") -> Drive:
    environment = "export PS1='$ ' ENV=; stty -echo; "
    # Without the option the first client that leaves ends the input for all.
    options = ["--leave-stdin-open"]
    words = ("sh", "-c", environment + script)
    return drives(*words, terminal=True, stdin=True, options=options).run()


# --- keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\0\x1b\x1c\x1d\x1e\x1f"),
        ("a,B,~, ", b"aB~ "),
        ("", b""),
    ],
)
def test_key_names(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", [",", "ctrl-", "ctrl-P,", "alt-x", "ab", "ctrl-1", "é", "a,,b"])
def test_what_are_no_keys(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="detach keys"):
        parse_keys(text)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    keys=st.lists(st.sampled_from(b"ab"), min_size=1, max_size=4).map(bytes),
    typed=st.lists(st.lists(st.sampled_from(b"ab"), max_size=5).map(bytes), max_size=8),
)
def test_keys_are_found_however_they_are_cut(keys: bytes, typed: list[bytes]) -> None:
    matcher = KeyMatcher(keys)
    passed = b""
    found = False
    for piece in typed:
        out, found = matcher.feed(piece)
        passed += out
        if found:
            break
    everything = b"".join(typed)
    if keys in everything:
        assert found and passed == everything[: everything.find(keys)]
    else:
        # What is held back is shorter than the keys, and would be passed on by the next other key.
        assert not found and everything.startswith(passed)
        assert passed + matcher.feed(b"x")[0].removesuffix(b"x") == everything


def test_without_keys_everything_passes() -> None:
    assert KeyMatcher(b"").feed(DETACH) == (DETACH, False)


# --- sessions


def test_a_shell_to_its_end(drives: Drives, opens: Opens) -> None:
    container = shell(drives)
    terminal = opens(container)
    terminal.type(b"echo $((6*7))\r")
    terminal.until(b"42\r\n")
    terminal.type(b"exit 7\r")
    terminal.until(b"end: ended\r\n")
    assert terminal.end() == 0
    assert b"restored: True" in terminal.seen
    assert container.wait_exit() == 7


def test_control_c_goes_to_the_container(drives: Drives, opens: Opens) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do usleep 2000; done"
    container = shell(drives, script)
    terminal = opens(container)
    wait_until(lambda: b"ready" in container.logged(), what="the trap")
    terminal.type(b"\x03")
    terminal.until(b"end: ended\r\n")
    assert container.wait_exit() == 5
    terminal.until(b"restored: True\r\n")


def test_detaching_and_coming_back(drives: Drives, opens: Opens) -> None:
    container = shell(drives)
    terminal = opens(container)
    terminal.type(b"x=kept\r\x10\r")  # ctrl-p alone is passed on, here as an unknown command
    terminal.until(b"not found")
    terminal.type(b"\x10")
    terminal.type(b"\x11")
    terminal.until(b"end: detached\r\n")
    assert terminal.end() == 0
    assert b"restored: True" in terminal.seen
    again = opens(container, "redraw=True")
    again.type(b"echo still $x\r")
    again.until(b"still kept\r\n")
    # The right size comes a moment after the other one.
    again.type(b'while [ "$(stty size)" != "30 100" ]; do :; done; echo si""zed\r')
    again.until(b"sized\r\n")
    again.type(b"echo last words; exit 0\r" + DETACH)
    again.until(b"end: detached\r\n")
    # What was typed before the keys has been sent.
    assert container.wait_exit() == 0
    assert b"last words" in container.logged()


def test_other_detach_keys_and_none(drives: Drives, opens: Opens) -> None:
    container = shell(drives, "stty raw; exec cat")
    terminal = opens(container, "detach_keys='ctrl-],q'")
    terminal.type(DETACH + b"Z")
    terminal.until(DETACH + b"Z")
    terminal.type(b"\x1dq")
    terminal.until(b"end: detached")
    none = opens(container, "detach_keys=''")
    none.type(DETACH + b"Y")
    none.until(DETACH + b"Y")


def test_the_window_size_follows(drives: Drives, opens: Opens) -> None:
    # It looks, instead of waiting for WINCH: a shell may miss one just before it blocks.
    script = """
        while :; do
            now=$(stty size)
            [ "$now" = "$last" ] || echo "$now"
            last=$now
            usleep 2000
        done
    """
    terminal = opens(shell(drives, script))
    terminal.until(b"30 100\r\n")
    for rows in range(31, 41):
        terminal.process.setwinsize(rows, 99)
    terminal.until(b"40 99\r\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
def test_signals_end_the_process_after_the_terminal_is_restored(
    drives: Drives, opens: Opens, name: str
) -> None:
    terminal = opens(shell(drives))
    number = signal.Signals[name]
    os.kill(terminal.pid, number)
    assert terminal.end() == -number
    assert termios.tcgetattr(terminal.process.fd) == terminal.before
    assert b"Traceback" not in terminal.seen


def test_an_exception_restores_the_terminal(drives: Drives, opens: Opens) -> None:
    terminal = opens(shell(drives))
    os.kill(terminal.pid, signal.SIGINT)  # Python's own handler: KeyboardInterrupt
    terminal.until(b"restored: True\r\n")
    terminal.until(b"KeyboardInterrupt")


def test_a_failing_callback_restores_the_terminal(drives: Drives, opens: Opens) -> None:
    # The first call is that with the size at the start; the second that after a change.
    terminal = opens(shell(drives), "resize=lambda rows, _: 1 // (rows - 7)")
    terminal.process.setwinsize(7, 80)
    terminal.until(b"restored: True\r\n")
    terminal.until(b"ZeroDivisionError")


# As a shell with job control runs a command, and what the terminal is like while that is stopped.
JOB = """
import os, signal
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    run()
    os._exit(0)
assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
print("stopped:", termios.tcgetattr(0) == before, flush=True)
os.kill(child, signal.SIGCONT)
os.waitpid(child, 0)
"""


def test_stopping_gives_the_terminal_back_and_going_on_takes_it(
    drives: Drives, opens: Opens
) -> None:
    terminal = opens(shell(drives), call=JOB)
    os.kill(os.tcgetpgrp(terminal.process.fd), signal.SIGTSTP)
    terminal.until(b"stopped: True\r\n")
    wait_until(terminal.is_raw, what="raw mode again")
    terminal.type(b"echo o''ver\r")
    terminal.until(b"over\r\n")
    terminal.type(DETACH)
    terminal.until(b"restored: True\r\n")
    assert terminal.end() == 0


def test_a_terminal_that_hangs_up_leaves_the_container(drives: Drives, opens: Opens) -> None:
    container = shell(drives)
    terminal = opens(container)
    terminal.type(b"echo here\r")
    terminal.until(b"here\r\n")
    terminal.process.fileobj.close()
    wait_until(lambda: gone(terminal.pid), what="the session's end")
    assert container.status() == "running"


def test_outside_the_main_thread(drives: Drives, opens: Opens) -> None:
    call = "t = threading.Thread(target=run); t.start(); t.join()"
    container = shell(drives)
    terminal = opens(container, call=call)
    terminal.type(b"echo thread\r")
    terminal.until(b"thread\r\n")
    terminal.type(DETACH)
    terminal.until(b"end: detached\r\n")
    terminal.until(b"restored: True\r\n")


def test_a_container_that_does_not_read_can_be_detached_from(drives: Drives, opens: Opens) -> None:
    container = shell(drives, "stty raw; echo ready; exec sleep 1000")
    terminal = opens(container)
    # More than terminal, socket and session hold together; what is too much is dropped with a bell.
    for _ in range(1000):
        terminal.type(b"x" * 4000)
        terminal.read(wait=0)
        if b"\a" in terminal.seen:
            break
    assert b"\a" in terminal.seen
    terminal.type(DETACH)
    terminal.until(b"end: detached\r\n")
    assert terminal.end() == 0


def test_without_a_terminal_bytes_pass_and_the_end_of_input_is_passed_on(
    drives: Drives, tmp_path: Path
) -> None:
    container = drives("cat", stdin=True).create()
    data = DETACH + bytes(range(256)) * 2000
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'client')!r})\n"
        "from pyconmon_client.attach import attach\n"
        "from pyconmon_client.terminal import interact\n"
        f"with attach({str(container.directory)!r}) as attachment:\n"
        "    print('attached', file=sys.stderr, flush=True)\n"
        "    print(interact(attachment), file=sys.stderr)"
    )
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"attached\n"
    container.start()
    out, err = process.communicate(data, timeout=60)
    assert out == data
    assert err == b"ended\n"
    assert container.wait_exit() == 0
