"""A user at a terminal: run -it with an editor, resize, ctrl-c, detach, attach again, top.

The terminal is tmux's: what its screen shows is what the user would see.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.helpers.need import need_program
from tests.helpers.session import TOKEN
from tests.helpers.waiting import wait_until

_PATIENCE = 60.0


class Tmux:
    """A server of the test's own with one window, and a shell in it whose prompt is `ready$ `."""

    def __init__(self, directory: Path, rows: int, columns: int) -> None:
        self._command = [need_program("tmux"), "-f", "/dev/null", "-L", TOKEN]
        environment = {key: value for key, value in os.environ.items() if key != "TMUX"}
        environment |= {"PS1": "ready$ ", "TERM": "screen", "LC_ALL": "C.UTF-8"}
        environment |= {"TMUX_TMPDIR": str(directory), "HISTFILE": ""}
        self._environment = environment
        # As words of their own: a shell between would take PS1 away.
        shell = [need_program("bash"), "--norc", "--noprofile", "-i"]
        size = ["-x", str(columns), "-y", str(rows)]
        self.call("new-session", "-d", "-s", "user", *size, "-c", str(directory), *shell)

    def call(self, *words: str) -> str:
        done = subprocess.run(
            [*self._command, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen(self) -> list[str]:
        """The lines that the user sees, without blanks at their ends."""
        return [line.rstrip() for line in self.call("capture-pane", "-p", "-t", "user").split("\n")]

    def type(self, text: str, enter: bool = True) -> None:
        self.call("send-keys", "-t", "user", "-l", text)
        if enter:
            self.key("Enter")

    def key(self, *names: str) -> None:
        """By tmux's names: Enter, Escape, C-c."""
        self.call("send-keys", "-t", "user", *names)

    def sees(self, text: str) -> None:
        """Waits until the text is somewhere on the screen."""
        wait_until(lambda: any(text in line for line in self.screen()), _PATIENCE, repr(text))

    def sees_line(self, text: str) -> None:
        """Waits for a line that is just the text: no prompt with a command behind it."""
        wait_until(lambda: text in self.screen(), _PATIENCE, f"a line {text!r}")

    def clear(self) -> None:
        """An empty screen but for the shell's prompt: what is seen next is new."""
        self.sees_line("ready$")
        self.key("C-l")
        wait_until(
            lambda: [line for line in self.screen() if line] == ["ready$"], _PATIENCE, "it empty"
        )

    def kill(self) -> None:
        subprocess.run(
            [*self._command, "kill-server"],
            env=self._environment,
            capture_output=True,
            timeout=_PATIENCE,
        )


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Tmux]:
    """30 rows and 100 columns."""
    tmux = Tmux(tmp_path, 30, 100)
    try:
        tmux.sees_line("ready$")
        yield tmux
    finally:
        tmux.kill()


def shell_words(cli: Cli, folder: Path) -> str:
    """The command with its options under a short name, since a screen has narrow lines."""
    short = folder / "pc"
    short.write_text(f'#!/bin/sh\nexec {shlex.join(cli.argv())} "$@"\n')
    short.chmod(0o755)
    return "./pc"


@pytest.mark.slow
def test_an_editor(both: Cli, root: str, terminal: Tmux, tmp_path: Path) -> None:
    name, command = both.name(), shell_words(both, tmp_path)
    terminal.type(f"{command} run -it --rm --name {name} --rootfs {root} vi /tmp/text")
    terminal.sees("- /tmp/text")
    terminal.type("iwritten in a container", enter=False)
    terminal.sees("written in a container")
    terminal.key("Escape")
    # It learned the window's size at its start: the status is in the last line, before and after.
    wait_until(lambda: "/tmp/text" in terminal.screen()[29], _PATIENCE, "the status in line 30")
    terminal.call("resize-window", "-t", "user", "-x", "70", "-y", "20")
    wait_until(lambda: "/tmp/text" in terminal.screen()[19], _PATIENCE, "the status in line 20")
    # Taken back, looked at from outside, and connected again: the editor draws its screen anew.
    terminal.key("C-p", "C-q")
    terminal.sees("goes on")
    terminal.clear()
    terminal.type(f"{command} top -i 0.5")
    terminal.sees("running, every 0.5 s")
    for column in ("CPU %", "MEMORY", "LOG/S", "iB"):
        terminal.sees(column)
    terminal.type("q", enter=False)
    terminal.clear()
    terminal.type(f"{command} attach {name}; echo status=$?")
    terminal.sees("written in a container")
    terminal.type(":wq")
    terminal.sees("status=0")
    terminal.type(f"{command} ps -a -q; echo nothing-left-$?")
    terminal.sees("nothing-left-0")
    assert not any(name in line for line in terminal.screen()[-4:])


@pytest.mark.slow
def test_a_shell(both: Cli, root: str, terminal: Tmux, tmp_path: Path) -> None:
    name, command = both.name(), shell_words(both, tmp_path)
    terminal.type(f"{command} run -it --name {name} -e PS1=inside: --rootfs {root} sh")
    terminal.sees_line("inside:")
    terminal.type("stty size")
    terminal.sees("30 100")
    # Not before it runs: at a prompt the shell takes ctrl-c for a key.
    terminal.type("echo begin-$((1 + 1)); sleep 600")
    terminal.sees("begin-2")
    terminal.key("C-c")
    terminal.type("echo still-$((40 + 2))")
    terminal.sees("still-42")
    terminal.key("C-p", "C-q")
    terminal.clear()
    terminal.type("stty -a; echo mine-$((40 + 3))")
    terminal.sees("mine-43")
    modes = " ".join(terminal.screen()).split()
    assert {"icanon", "echo", "isig", "opost"} <= set(modes), "the user's terminal is as it was"
    terminal.clear()
    terminal.type(f"{command} exec -it {name} sh -c 'tty; stty size; exit 5'; echo exec=$?")
    terminal.sees("exec=5")
    terminal.sees("/dev/pts/")
    terminal.sees("30 100")
    terminal.type(f"{command} attach {name}; echo status=$?")
    # Typed before it is attached: it arrives all the same.
    terminal.type("exit 7")
    terminal.sees("status=7")
    terminal.type(f"{command} ps -a")
    terminal.sees("stopped (7)")


@pytest.mark.slow
def test_colours_only_on_a_terminal(cli: Cli, terminal: Tmux, tmp_path: Path) -> None:
    name, command = cli.sleeper(), shell_words(cli, tmp_path)
    terminal.type(f"{command} ps; {command} logs nobody; echo done-$((1 + 1))")
    terminal.sees("done-2")
    coloured = terminal.call("capture-pane", "-p", "-e", "-t", "user")
    assert "\033[1m" in coloured and "NAME" in coloured
    assert "\033[1m\033[31mpyconmon-client:" in coloured or "\033[1;31mpyconmon-client:" in coloured
    assert name[:10] in coloured
    terminal.clear()
    terminal.type(f"({command} ps; NO_COLOR=1 {command} logs nobody) | cat; echo done-$((1 + 2))")
    terminal.sees("done-3")
    terminal.sees("there is no container nobody")
    assert "\033[" not in terminal.call("capture-pane", "-p", "-e", "-t", "user")
