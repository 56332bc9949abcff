"""Containers with a terminal: the console socket, sizes, input, and the control FIFOs (also without one)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.harness import Container, Harness, target
from tests.helpers.waiting import wait_until

ASK_SIZE = "while read x; do stty size; done"


def sized(harness: Harness) -> Container:
    """A container that says the size of its terminal for each line of input.

    Without -i: with it, conmon takes no more input once a client has left.
    """
    container = harness.container(
        ["sh", "-c", f"stty -echo; echo ready; {ASK_SIZE}"], terminal=True
    )
    container.run()
    return container


def test_the_output_has_carriage_returns(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo out; echo err >&2; tty"], terminal=True)
    container.created()
    client = container.attach()
    container.start()
    client.read_to_end()
    assert container.wait_exit() == "0"
    assert client.stream(2) == b"out\r\nerr\r\n/dev/pts/0\r\n"
    assert client.stream(3) == b""
    assert container.log.stream("stdout") == client.stream(2)


def test_nothing_is_lost_at_the_end(harness: Harness) -> None:
    for _ in range(10):
        container = harness.container(["seq", "1", "3000"], terminal=True)
        container.run()
        assert container.wait_exit() == "0"
        lines = container.log.stream("stdout").split(b"\r\n")
        assert lines == [b"%d" % n for n in range(1, 3001)] + [b""]
        container.delete()


@pytest.mark.parametrize("options", [[], ["-i"]])
def test_input_needs_no_option(harness: Harness, options: list[str]) -> None:
    container = harness.container(["sh", "-c", "read x; echo got:$x; exit 3"], terminal=True)
    container.run(*options)
    client = container.attach()
    client.send(b"word\n")
    client.read_to_end()
    # The terminal echoes the line before the program says it.
    assert client.stream(2).endswith(b"got:word\r\n")
    assert b"word\r\n" in client.stream(2)
    assert container.wait_exit() == "3"


def test_a_client_that_leaves_is_no_end_of_input(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "read x; echo got:$x"], terminal=True)
    container.run()
    first = container.attach()
    first.half_close()
    first.close()
    second = container.attach()
    second.send(b"later\n")
    second.read_to_end()
    assert second.stream(2).endswith(b"got:later\r\n")


def test_control_d_is_the_end_of_input(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo ready; cat; exit 4"], terminal=True)
    container.run()
    client = container.attach()
    client.send(b"\x04")
    assert container.wait_exit() == "4"


def test_control_c_interrupts(harness: Harness) -> None:
    script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done"
    container = harness.container(["sh", "-c", script], terminal=True)
    container.created()
    client = container.attach()
    container.start()
    client.read_until(b"ready")
    client.send(b"\x03")
    assert container.wait_exit() == "9"


def test_much_input_for_a_raw_terminal(harness: Harness) -> None:
    script = "stty raw -echo; echo ready; head -c 200000 | tr -d z | wc -c"
    container = harness.container(["sh", "-c", script], terminal=True)
    container.created()
    client = container.attach()
    container.start()
    client.read_until(b"ready")
    for _ in range(50):
        client.send(b"y" * 4000)
    client.read_to_end()
    assert client.stream(2).split()[-1] == b"200000"


# --- sizes


def ask(container: Container, client_size: bytes) -> None:
    """Asks for the size until it is the expected one."""
    client = container.attach()

    def answered() -> bool:
        client.send(b"\n")
        client.read_for(0.5)
        return client_size + b"\r\n" in client.stream(2)

    wait_until(answered, what=f"the size {client_size!r}")
    client.close()


def test_resize(harness: Harness) -> None:
    container = sized(harness)
    container.ctl("1 30 40\n")
    ask(container, b"30 40")
    container.ctl("1 0050 0060 extra words\n")
    ask(container, b"50 60")


def test_a_resize_before_the_start_is_kept(harness: Harness) -> None:
    script = 'while [ "$(stty size)" != "33 44" ]; do sleep 0.05; done'
    container = harness.container(["sh", "-c", script], terminal=True)
    container.created()
    container.ctl("1 33 44\n")
    container.start()
    assert container.wait_exit() == "0"


def test_the_size_fifo_takes_sizes_directly(harness: Harness) -> None:
    container = sized(harness)
    container.ctl("31 41\n", "winsz")
    ask(container, b"31 41")


def test_a_message_in_pieces(harness: Harness) -> None:
    container = sized(harness)
    for piece in ("1 3", "2 4", "2\n"):
        container.ctl(piece)
    ask(container, b"32 42")


@target("2.1.6 evaluates the first line again for every line of a read")
def test_several_messages_at_once(harness: Harness) -> None:
    container = sized(harness)
    container.ctl("1 10 20\n1 34 43\n")
    ask(container, b"34 43")


@target("conmon drops the rest of the read after a bad line")
@pytest.mark.parametrize(
    "bad",
    [
        "nonsense\n",
        "1 2\n9 9 9\n",
        "7 1 1\n",
        "1 -1 5\n",
        "1 5 70000\n",
        "1 10.5 3\n",
        "\n\n",
        "x" * 500,
    ],
)
def test_a_bad_message_spoils_no_other(harness: Harness, bad: str) -> None:
    container = sized(harness)
    container.ctl("1 11 22\n")
    ask(container, b"11 22")
    container.ctl(bad + "\n")
    container.ctl("1 35 45\n")
    ask(container, b"35 45")


@target("conmon hangs for good after 64 KiB of them")
def test_resizes_without_a_terminal_do_no_harm(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "read x; echo end; exit 6"])
    container.run("-i")
    for _ in range(1000):
        wait_until(partial(sent, container, "1 24 80\n" * 20), what="room in the FIFO")
    client = container.attach()
    client.send(b"x\n")
    assert container.wait_exit() == "6"


def sent(container: Container, message: str) -> bool:
    """Whether there was room for a whole message."""
    try:
        container.ctl(message)
    except BlockingIOError:
        return False
    return True


def test_one_reopens_the_log(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo a; read x; echo b; read x"], terminal=False)
    container.run("-i")
    wait_until(lambda: container.log.text() == "a\n", what="the first line")
    moved = container.log.path.rename(container.directory / "ctr.log.1")
    container.ctl("2 0 0\n")
    wait_until(container.log.path.exists, what="the new log")
    container.attach().send(b"x\n")
    wait_until(lambda: container.log.text() == "b\n", what="the second line")
    assert moved.read_text().endswith(" stdout F a\n")


# --- the terminal itself


def test_output_is_processed_and_nothing_else_is_changed(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "stty -a"], terminal=True)
    container.run()
    container.wait_exit()
    words = container.log.text().replace(";", " ").split()
    for word in ("opost", "onlcr", "echo", "icanon", "isig"):
        assert word in words, word


def test_an_exec_with_a_terminal(harness: Harness) -> None:
    session = harness.running().exec(["sh", "-c", "tty; exit 3"], terminal=True)
    session.begin()
    assert session.results()[1] == 3
    assert session.log.text() == "/dev/pts/0\r\n"


def test_many_execs_with_a_terminal(harness: Harness) -> None:
    container = harness.running()
    sessions = [container.exec(["echo", f"ok {n}"], terminal=True) for n in range(12)]
    for session in sessions:
        session.begin()
    for number, session in enumerate(sessions):
        assert session.results()[1] == 0
        assert session.log.text() == f"ok {number}\r\n"


def test_an_exec_in_a_container_with_a_terminal(harness: Harness) -> None:
    container = harness.running(["sh", "-c", "exec sleep 1000"], terminal=True)
    session = container.exec(["echo", "ok"], terminal=True)
    call = session.begin("--exec-attach")
    call.go()
    assert call.attach_pipe
    call.attach_pipe.line()
    client = session.attach(accepted=False)
    call.go()
    client.read_to_end()
    assert client.stream(2) == b"ok\r\n"
    assert session.results()[1] == 0


def test_a_terminal_that_is_opened_again_is_read_on(harness: Harness) -> None:
    """All of the container's descriptors closed is a hang-up, and not the end."""
    script = "echo one; exec <&- >&- 2>&-; sleep 0.3; exec >/dev/console; echo two; exit 3"
    container = harness.container(["sh", "-c", script], terminal=True)
    container.run()
    assert container.wait_exit() == "3"
    assert container.log.text() == "one\r\ntwo\r\n"


# --- the console socket


def sockets(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_socket()]


@pytest.mark.parametrize("how", ["works", "fails"])
@target("2.1.6 leaves the socket behind when the runtime never connected")
def test_no_console_socket_is_left(harness: Harness, how: str) -> None:
    directory = harness.home / "tmp"
    directory.mkdir()
    container = harness.container(["true"], terminal=True)
    if how == "fails":
        container.runtime = harness.script("failing", "echo no >&2; exit 1")
    call = container.create(env={"TMPDIR": str(directory)})
    assert (call.sync.value()["data"] > 0) == (how == "works")
    wait_until(lambda: not sockets(directory), what="the removal of the console socket")


@target("2.1.6 cuts a long path, and so puts the socket somewhere else")
def test_a_long_temporary_directory(harness: Harness) -> None:
    directory = harness.home / ("d" * 120)
    directory.mkdir()
    container = harness.container(["echo", "hi"], terminal=True)
    container.run(env={"TMPDIR": str(directory)})
    assert container.wait_exit() == "0"
    assert container.log.text() == "hi\r\n"
    assert not sockets(harness.home)


@pytest.mark.parametrize("what", ["no descriptor", "no terminal", "nothing"])
def test_a_console_that_is_none_is_a_failure(harness: Harness, what: str) -> None:
    send = {
        "no descriptor": 's.send(b"x")',
        "no terminal": 'socket.send_fds(s, [b"x"], [0])',
        "nothing": "pass",
    }[what]
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        's.connect(sys.argv[sys.argv.index("--console-socket") + 1])\n'
        f"{send}\n"
    )
    script = harness.home / "console.py"
    script.write_text(program)
    container = harness.container(["true"], terminal=True)
    container.runtime = harness.script("odd", f'exec {sys.executable} {script} "$@"')
    call = container.create("--sync")
    line = call.sync.line()
    assert line == b"" or b": -1" in line
    assert call.sync.rest() == b""
    assert call.status() == 1


def test_the_terminal_has_the_flag_set_by_the_monitor(harness: Harness) -> None:
    """A runtime that clears ONLCR, as some do, gets it back."""
    noted = harness.home / "noted"
    program = (
        "import os, pty, socket, sys, termios, time\n"
        "words = sys.argv\n"
        "master, slave = pty.openpty()\n"
        "mode = termios.tcgetattr(slave)\n"
        "mode[1] &= ~termios.ONLCR\n"
        "termios.tcsetattr(slave, termios.TCSANOW, mode)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        's.connect(words[words.index("--console-socket") + 1])\n'
        'socket.send_fds(s, [b"pty"], [master])\n'
        "s.close()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    deadline = time.monotonic() + 20\n"
        "    while not termios.tcgetattr(slave)[1] & termios.ONLCR:\n"
        "        assert time.monotonic() < deadline\n"
        "        time.sleep(0.01)\n"
        f"    open({str(noted)!r}, 'w').write('set')\n"
        '    os.write(slave, b"a\\n")\n'
        "    os._exit(5)\n"
        'open(words[words.index("--pid-file") + 1], "w").write(str(pid))\n'
    )
    script = harness.home / "console.py"
    script.write_text(program)
    container = harness.container(["true"], terminal=True)
    container.runtime = harness.script("own", f'exec {sys.executable} {script} "$@"')
    call = container.create()
    assert call.sync.value()["data"] == container.container_pid()
    assert container.wait_exit() == "5"
    assert noted.read_text() == "set"
    assert container.log.text() == "a\r\n"
