"""The container's streams: held back while the runtime is at work, then to the logs and to clients."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pyconmon import linux
from pyconmon.diag import Diag
from pyconmon.loop import Loop
from pyconmon.options import Options
from pyconmon.stdio import Reader
from pyconmon.streams import HEAD, MOST_HELD, STDERR, STDIN, STDOUT, TAIL, Streams


class Logs:
    """Keeps what is to be logged."""

    passthrough = False
    wanted = True

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    def write(self, stream: int, view: memoryview) -> None:
        self.written.append((stream, bytes(view)))

    def stream(self, number: int) -> bytes:
        return b"".join(data for stream, data in self.written if stream == number)


class Bench:
    """Streams with our hands on the container's ends."""

    def __init__(self, **options: Any) -> None:
        self.loop = Loop()
        self.logs = Logs()
        made = Options(**options)
        self.streams = Streams(made, self.loop, cast("Any", self.logs), Reader(), Diag())
        self.theirs: dict[int, int] = {}
        self.broadcasts: list[tuple[int, bytes]] = []

    def take(self, *numbers: int) -> None:
        ours = {}
        for number in numbers:
            read_end, write_end = os.pipe()
            if number == STDIN:
                self.theirs[number], ours[number] = read_end, write_end
            else:
                ours[number], self.theirs[number] = read_end, write_end
        self.streams.take(ours)

    def write(self, number: int, data: bytes) -> None:
        """And let it be read, however long that takes; of a terminal the first turn has it."""
        assert os.write(self.theirs[number], data) == len(data)
        self.loop.turn()
        while not os.isatty(self.theirs[number]) and linux.bytes_waiting(self.theirs[number]):
            self.loop.turn()

    def ready(self) -> bool:
        return self.streams.terminal_ready

    def connect(self, admit: Callable[[], None] = lambda: None) -> None:
        def broadcast(stream: int, view: memoryview) -> float:
            self.broadcasts.append((stream, bytes(view)))
            return 0.0

        self.streams.connect(broadcast, lambda: True, admit)

    def close(self) -> None:
        self.streams.close()
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    made.take(STDOUT, STDERR)
    yield made
    made.close()


def test_held_back_until_there_is_a_container(bench: Bench) -> None:
    bench.connect()
    bench.write(STDOUT, b"out 1\n")
    bench.write(STDERR, b"err\n")
    bench.write(STDOUT, b"out 2\n")
    assert bench.logs.written == []
    assert bench.broadcasts == []
    bench.streams.flow()
    assert bench.logs.written == [(1, b"out 1\n"), (2, b"err\n"), (1, b"out 2\n")]
    # To clients stdout is stream 2, and stderr 3.
    assert bench.broadcasts == [(2, b"out 1\n"), (3, b"err\n"), (2, b"out 2\n")]
    bench.write(STDERR, b"later\n")
    assert bench.logs.written[3:] == [(2, b"later\n")]


def test_clients_that_wait_are_let_in_before_the_first_byte(bench: Bench) -> None:
    bench.connect(lambda: bench.broadcasts.append((0, b"admitted")))
    bench.write(STDOUT, b"early")
    bench.streams.flow()
    assert bench.broadcasts == [(0, b"admitted"), (2, b"early")]


def test_without_clients_only_the_logs(bench: Bench) -> None:
    bench.streams.connect(
        lambda stream, view: pytest.fail("nobody is there"), lambda: False, lambda: None
    )
    bench.streams.flow()
    bench.write(STDOUT, b"out")
    assert bench.logs.written == [(1, b"out")]


def test_what_a_runtime_says_is_its_message(bench: Bench) -> None:
    """And stdout is none of it."""
    bench.write(STDERR, b"it went ")
    bench.write(STDOUT, b"noise")
    bench.write(STDERR, b"wrong")
    assert bench.streams.messages() == b"it went wrong"
    assert bench.logs.written == []


def test_its_last_words_are_taken_without_waiting(bench: Bench) -> None:
    os.write(bench.theirs[STDERR], b"last words")
    os.write(bench.theirs[STDOUT], b"noise")
    bench.streams.take_messages()
    assert bench.streams.messages() == b"last words"


def test_a_long_message_keeps_its_beginning_and_its_end(bench: Bench) -> None:
    bench.write(STDERR, b"first ")
    for _ in range(50):
        bench.write(STDERR, b"x" * 5000)
    bench.write(STDERR, b" last")
    said = bench.streams.messages()
    assert len(said) == HEAD + TAIL
    assert said.startswith(b"first xx")
    assert said.endswith(b"xx last")


def test_a_talkative_runtime_is_logged_as_it_speaks(bench: Bench) -> None:
    """It must not fill our memory, and its message is kept all the same."""
    total = 0
    while total <= MOST_HELD:
        bench.write(STDOUT, b"y" * 10_000)
        total += 10_000
    assert len(bench.logs.stream(1)) == total
    bench.write(STDERR, b"the error")
    assert bench.logs.stream(2) == b"the error"
    assert bench.streams.messages() == b"the error"
    bench.streams.flow()
    assert len(bench.logs.stream(1)) == total


def test_the_container_is_not_the_runtime(bench: Bench) -> None:
    bench.streams.flow()
    bench.write(STDERR, b"the container's")
    assert bench.streams.messages() == b""


def test_draining(bench: Bench) -> None:
    """All that was written before now, stdout first, also what was held back."""
    bench.write(STDOUT, b"held ")
    os.write(bench.theirs[STDERR], b"err")
    os.write(bench.theirs[STDOUT], b"out")
    bench.streams.drain()
    assert bench.logs.stream(1) == b"held out"
    assert bench.logs.stream(2) == b"err"
    assert [stream for stream, _ in bench.logs.written] == [1, 1, 2]


def test_inodes_are_those_of_the_pipes(bench: Bench) -> None:
    assert bench.streams.inodes == {
        stream: os.fstat(bench.theirs[stream]).st_ino for stream in (STDOUT, STDERR)
    }


def test_closing(bench: Bench) -> None:
    bench.streams.close()
    bench.streams.close()
    with pytest.raises(BrokenPipeError):
        os.write(bench.theirs[STDOUT], b"x")


@pytest.mark.parametrize("leave_open", [True, False])
def test_stdin(leave_open: bool) -> None:
    bench = Bench(stdin=True, leave_stdin_open=leave_open)
    bench.take(STDIN, STDOUT, STDERR)
    assert bench.streams.stdin.write(memoryview(b"abc")) == 3
    assert os.read(bench.theirs[STDIN], 10) == b"abc"
    bench.streams.stdin.client_eof()
    assert (bench.streams.stdin.fd == -1) is not leave_open
    bench.close()


def test_adopted_streams_flow_at_once() -> None:
    """Another monitor has created the container; nothing of it is a runtime's word."""
    bench = Bench()
    read_end, write_end = os.pipe()
    bench.theirs[STDOUT] = write_end
    bench.streams.adopt({STDOUT: read_end})
    bench.write(STDOUT, b"out")
    assert bench.logs.written == [(1, b"out")]
    bench.close()


# --- a terminal


def hand_over(path: str) -> int:
    """As a runtime does it; gives the slave."""
    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(path)
        socket.send_fds(console, [b"pty"], [master])
    os.close(master)
    return slave


def test_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bench = Bench(terminal=True)
    failures: list[str] = []
    told: list[int] = []
    bench.streams.when_terminal(told.append)
    path = bench.streams.listen(failures.append)
    assert Path(path).parent == tmp_path
    bench.take(STDERR)
    assert not bench.ready()
    slave = bench.theirs[STDOUT] = hand_over(path)
    bench.streams.serve_pending_terminal()
    assert bench.ready()
    assert len(told) == 1
    bench.streams.flow()
    bench.write(STDOUT, b"line\n")
    assert bench.logs.stream(1) == b"line\r\n"
    assert bench.streams.stdin.write(memoryview(b"typed\n")) == 6
    assert os.read(slave, 100) == b"typed\n"
    bench.streams.stdin.client_eof()  # a client's end is no end of a terminal's input
    assert bench.streams.stdin.fd >= 0
    assert failures == []
    assert list(tmp_path.iterdir()) == []
    bench.close()


def test_a_terminal_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bench = Bench(terminal=True)
    path = bench.streams.listen(lambda text: None)
    bench.streams.serve_pending_terminal()
    assert not bench.ready()
    assert Path(path).exists()
    assert bench.streams.stdin.write(memoryview(b"x")) == 0
    bench.close()
    assert not Path(path).exists()


def test_without_a_log_and_clients_nothing_is_handed_on(bench: Bench) -> None:
    bench.logs.wanted = False
    bench.take(STDOUT, STDERR)
    bench.write(STDERR, b"the runtime's words")
    assert bench.streams.messages() == b"the runtime's words", "those are always wanted"
    bench.streams.flow()
    said = list(bench.logs.written)
    bench.write(STDOUT, b"unheard")
    bench.connect()
    bench.write(STDOUT, b"heard")
    assert bench.broadcasts == [(2, b"heard")]
    assert bench.logs.written == [*said, (STDOUT, b"heard")]
