"""Clients of the attach socket: framing, end of input, clients that are slow, and long paths."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import stat
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.harness import Container, Harness, target
from tests.helpers.waiting import gone, wait_until
from tests.helpers.wire import Client

BLOB = random.Random(1).randbytes(800_000)


def held(harness: Harness, script: str) -> Container:
    """A container whose shell script has the random file /tmp/in/blob at hand."""

    def edit(config: dict[str, object]) -> None:
        mounts = config["mounts"]
        assert isinstance(mounts, list)
        mounts.append(
            {
                "destination": "/tmp/in",
                "type": "bind",
                "source": str(harness.home / "in"),
                "options": ["bind", "ro"],
            }
        )

    (harness.home / "in").mkdir(exist_ok=True)
    (harness.home / "in/blob").write_bytes(BLOB)
    return harness.container(["sh", "-c", script], edit=edit)


# --- output


def test_the_socket(harness: Harness) -> None:
    container = harness.running()
    path = container.directory / "attach"
    assert stat.S_ISSOCK(path.stat().st_mode)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream, pytest.raises(OSError):
        stream.connect(str(path))


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 16384, 32768])
def test_packets_are_small_never_empty_and_complete(harness: Harness, size: int) -> None:
    count = min(20, len(BLOB) // size)
    container = held(harness, f"dd if=/tmp/in/blob bs={size} count={count} 2>/dev/null")
    container.created()
    client = container.attach()
    container.start()
    client.read_to_end()
    assert client.stream(2) == BLOB[: size * count]
    assert container.wait_exit() == "0"
    assert container.log.stream("stdout") in (client.stream(2), client.stream(2) + b"\n")


def test_binary_output_is_passed_on_byte_for_byte(harness: Harness) -> None:
    container = held(harness, "cat /tmp/in/blob; cat /tmp/in/blob >&2")
    container.created()
    client = container.attach()
    reader = client.collect()
    container.start()
    container.wait_exit()
    reader.join(30)
    assert client.ended
    assert client.stream(2) == BLOB
    assert client.stream(3) == BLOB


def test_every_client_gets_everything(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "seq 1 5000; echo err >&2"])
    container.created()
    clients = [container.attach() for _ in range(5)]
    readers = [client.collect() for client in clients]
    container.start()
    container.wait_exit()
    for client, reader in zip(clients, readers, strict=True):
        reader.join(30)
        assert client.ended
        assert client.stream(2) == container.log.stream("stdout")
        assert client.stream(3) == b"err\n"


def test_a_late_client_gets_what_comes_from_then_on(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo early; read x; echo late"])
    container.run("-i")
    wait_until(lambda: container.log.text() == "early\n", what="the first line")
    client = container.attach()
    client.send(b"x\n")
    client.read_to_end()
    assert client.stream(2) == b"late\n"


def test_a_late_client_of_a_container_without_a_log(harness: Harness) -> None:
    """What nobody wants is not even read; that ends with the first client."""
    script = "seq 200000; read x; seq 200001 200100; read x; seq 300000; exit 5"
    container = harness.container(["sh", "-c", script])
    container.run("-i", "--leave-stdin-open", log=["none"])
    client = container.attach()
    client.send(b"\n")
    client.read_until(b"\n200100\n")
    assert client.stream(2).endswith(b"".join(b"%d\n" % n for n in range(200001, 200101)))
    client.send(b"\n")
    client.close()
    assert container.wait_exit() == "5"


def test_the_end(harness: Harness) -> None:
    """EOF for all, and then a connect that fails at once and does not hang."""
    container = harness.running(["sh", "-c", "echo a; exit 3"])
    container.wait_exit()
    container.wait_monitor_gone()
    with pytest.raises(FileNotFoundError):
        container.attach()


def test_clients_have_their_end_when_the_exit_file_appears(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "seq 1 100; exit 3"])
    container.created()
    clients = [container.attach() for _ in range(3)]
    container.start()
    container.wait_exit()
    for client in clients:
        client.read_to_end(5)
        assert client.stream(2).endswith(b"\n100\n")
        assert not client.reset


@target("conmon takes in one client a turn of its loop, and those it has not come to miss output")
def test_attached_before_the_first_byte(harness: Harness) -> None:
    """The socket is there when the pid is reported: nothing can be missed."""
    for _ in range(5):
        container = harness.container(["echo", "first"])
        container.created()
        monitor = container.monitor_pid()
        os.kill(monitor, signal.SIGSTOP)  # it is as late as can be
        clients = [container.attach(accepted=False) for _ in range(4)]
        container.start()
        pid = container.container_pid()
        wait_until(partial(gone, pid), what="the container's end")
        os.kill(monitor, signal.SIGCONT)
        for client in clients:
            client.read_to_end()
            assert client.stream(2) == b"first\n"
        container.delete()


# --- a client that does not read


LINE = b"n %d xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"
LINES = (
    'i=0; while [ $i -lt 20000 ]; do echo "n $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; i=$((i+1)); done'
)


@target("conmon waits for the client: no log, no exit file")
def test_a_client_that_does_not_read_holds_up_nothing(harness: Harness) -> None:
    container = harness.container(["sh", "-c", f"{LINES}; exit 6"])
    container.created()
    lazy, keen = container.attach(), container.attach()
    reader = keen.collect()
    container.start()
    assert container.wait_exit() == "6"
    expected = b"".join(LINE % n for n in range(20000))
    assert container.log.stream("stdout") == expected
    reader.join(30)
    assert keen.stream(2) == expected
    lazy.close()
    container.wait_monitor_gone()


@target("conmon waits for the client")
def test_a_client_that_is_merely_slow_loses_nothing(harness: Harness) -> None:
    container = harness.container(["sh", "-c", f"{LINES}; exit 6"])
    container.created()
    client = container.attach()
    container.start()
    assert container.wait_exit() == "6"
    client.read_to_end()
    assert client.stream(2) == b"".join(LINE % n for n in range(20000))


@target("conmon waits for the client: the dead container stays a zombie")
def test_an_endless_writer_is_killed_behind_a_client_that_does_not_read(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxx; done"])
    container.created("--log-size-max", "100000")
    client = container.attach()
    container.start()
    wait_until(lambda: client.read_one(), what="output")
    container.kill("KILL")
    assert container.wait_exit() == "137"
    client.close()
    container.wait_monitor_gone()


def test_a_client_that_vanishes_hurts_nobody(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "read x; seq 1 3000; exit 7"])
    container.run("-i", "--leave-stdin-open")
    gone = container.attach()
    other = container.attach()
    reader = other.collect()
    gone.close()
    other.send(b"go\n")
    assert container.wait_exit() == "7"
    reader.join(30)
    assert other.stream(2) == container.log.stream("stdout")


def test_clients_come_and_go(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "while read x; do echo $x; done; exit 7"])
    container.run("-i", "--leave-stdin-open")
    for number in range(30):
        client = container.attach()
        client.send(b"%d\n" % number)
        client.read_until(b"%d\n" % number)
        client.close()
    assert container.state() == "running"


# --- input


@pytest.mark.parametrize("how", ["half-close", "close", "empty packet"])
@pytest.mark.parametrize("when", ["before start", "after start"])
def test_the_end_of_input(harness: Harness, how: str, when: str) -> None:
    container = harness.container(["sh", "-c", "n=$(wc -c); echo got $n"])
    container.created("-i")
    if when == "after start":
        container.start()
    client = container.attach()
    client.send(b"hello")
    if how == "half-close":
        client.half_close()
    elif how == "close":
        client.close()
    else:
        client.socket.send(b"")
    if when == "before start":
        container.start()
    assert container.wait_exit() == "0"
    assert container.log.text() == "got 5\n"
    if how == "half-close":
        client.read_to_end()
        assert client.stream(2) == b"got 5\n", "it still gets the output"


def test_an_end_of_input_without_input(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "cat; exit 5"])
    container.run("-i")
    container.attach().half_close()
    assert container.wait_exit() == "5"


def test_stdin_left_open_serves_the_next_client(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "read a; read b; echo $a-$b"])
    container.run("-i", "--leave-stdin-open")
    first = container.attach()
    first.send(b"one\n")
    first.half_close()
    second = container.attach()
    second.send(b"two\n")
    second.read_to_end()
    assert container.wait_exit() == "0"
    assert container.log.text() == "one-two\n"


def test_without_the_option_stdin_is_null(harness: Harness) -> None:
    container = harness.running(["sh", "-c", "cat; readlink /proc/self/fd/0"])
    assert container.wait_exit() == "0"
    assert container.log.text() == "/dev/null\n"


def test_input_that_nobody_asked_for(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "sleep 0.3; echo out; exit 5"])
    container.created()
    client = container.attach()
    client.send(b"unasked")
    container.start()
    client.read_until(b"out\n")
    client.read_to_end()
    assert container.wait_exit() == "5"


def test_much_input_arrives_whole(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "sha256sum"])
    container.run("-i")
    client = container.attach()
    data = BLOB * 10
    for at in range(0, len(data), 8192):
        client.send(data[at : at + 8192])
    client.half_close()
    client.read_to_end()
    assert client.stream(2).split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_input_waits_for_a_container_that_pauses(harness: Harness) -> None:
    script = "for i in 1 2 3 4; do head -c 100000 >/dev/null; sleep 0.2; done; wc -c"
    container = harness.container(["sh", "-c", script])
    container.run("-i")
    client = container.attach()
    for _ in range(100):
        client.send(b"z" * 8000)
    client.half_close()
    client.read_to_end()
    # head may take more from the pipe than it passes on, but not a byte is made up.
    assert 0 < int(client.stream(2)) <= 400_000


def test_packets_of_two_writers_stay_whole(harness: Harness) -> None:
    container = harness.container(["cat"])
    container.run("-i", "--leave-stdin-open")
    reader = container.attach()
    collecting = reader.collect()
    writers = [container.attach(), container.attach()]

    def write(client: Client, letter: bytes) -> None:
        for _ in range(200):
            client.send(letter * 99 + b"\n")

    threads = [
        threading.Thread(target=write, args=(client, letter))
        for client, letter in zip(writers, (b"a", b"b"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    wait_until(lambda: len(reader.stream(2)) == 40_000, what="all that was written")
    container.kill()
    collecting.join(30)
    lines = reader.stream(2).splitlines()
    assert {bytes(sorted(set(line))) for line in lines} == {b"a", b"b"}
    assert {len(line) for line in lines} == {99}


def test_a_container_that_never_reads_holds_back_its_client_only(harness: Harness) -> None:
    script = "for i in 1 2 3 4 5; do echo tick $i; sleep 0.2; done; exit 8"
    container = harness.container(["sh", "-c", script])
    container.created("-i")
    client = container.attach()
    client.socket.settimeout(0.2)
    container.start()
    taken = 0
    with pytest.raises(OSError):  # held back, or ended
        while taken < 20_000_000:
            taken += client.socket.send(b"z" * 8192)
    assert taken < 4_000_000, "what the monitor holds for a container is bounded"
    assert container.wait_exit() == "8"
    assert container.log.text() == "".join(f"tick {n}\n" for n in range(1, 6))


@target("conmon burns a whole CPU when the container closed its stdin")
def test_input_for_a_closed_stdin_is_dropped(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "exec <&-; echo closed; exec sleep 1000"])
    container.created("-i")
    client = container.attach()
    container.start()
    client.read_until(b"closed\n")
    for _ in range(20):
        client.send(b"z" * 1000)
    assert idle(container.monitor_pid())
    container.kill()
    assert container.wait_exit() == "137"


def test_a_terminal_that_nobody_has_open_costs_no_time(harness: Harness) -> None:
    script = "echo closed; exec <&- >&- 2>&-; exec sleep 1000"
    container = harness.container(["sh", "-c", script], terminal=True)
    container.run()
    wait_until(lambda: container.log.text() == "closed\r\n", what="the container's last word")
    client = container.attach()
    client.send(b"for nobody")
    assert idle(container.monitor_pid())
    container.kill()
    assert container.wait_exit() == "137"


def idle(pid: int) -> bool:
    """Whether a process comes to rest within some seconds."""

    def used() -> tuple[str, str]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[11], fields[12]

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        before = used()
        time.sleep(0.5)  # a span to measure over, not a wait for something
        if used() == before:
            return True
    return False


@pytest.mark.parametrize("state", ["attached", "half-closed", "gone with unread data"])
def test_a_quiet_container_costs_no_time(harness: Harness, state: str) -> None:
    container = harness.container(["sh", "-c", "seq 1 100; exec sleep 1000"])
    container.created("-i")
    client = container.attach()
    container.start()
    client.read_until(b"1\n")
    if state == "half-closed":
        client.half_close()
    elif state != "attached":
        client.close()
    assert idle(container.monitor_pid())


# --- paths


LONG = "d" * 120


def test_a_bundle_path_longer_than_an_address(harness: Harness) -> None:
    harness.home = harness.home / LONG
    harness.home.mkdir()
    container = harness.container(["sh", "-c", "read x; echo got $x"])
    container.run("-i")
    client = container.attach()
    client.send(b"it\n")
    client.read_to_end()
    assert client.stream(2) == b"got it\n"
    container.wait_exit()
    container.wait_monitor_gone()
    assert not (container.directory / "attach").exists()


@pytest.mark.parametrize("length", [0, 120])
def test_the_socket_directory_has_a_link_to_the_bundle(harness: Harness, length: int) -> None:
    sockets = harness.home / ("s" + "d" * length)
    sockets.mkdir()
    container = harness.container(["sh", "-c", "read x; echo got $x"])
    argv = container.create_argv("--socket-dir-path", str(sockets), "-i")
    argv.remove("--full-attach")
    call = container.launch(argv)
    assert call.sync.value()["data"] > 0
    link = sockets / container.cid
    assert os.readlink(link) == str(container.directory)
    container.start()
    client = Client(link / "attach")
    harness.clients.append(client)
    client.send(b"it\n")
    client.read_to_end()
    assert client.stream(2) == b"got it\n"
    container.wait_monitor_gone()


@target("2.1.6 leaves the link behind")
def test_the_link_goes_with_the_monitor(harness: Harness) -> None:
    sockets = harness.home / "s"
    sockets.mkdir()
    container = harness.container(["true"])
    argv = container.create_argv("--socket-dir-path", str(sockets))
    argv.remove("--full-attach")
    (sockets / container.cid).symlink_to("/nowhere")  # a stale one is replaced
    assert container.launch(argv).sync.value()["data"] > 0
    container.start()
    container.wait_exit()
    container.wait_monitor_gone()
    assert os.listdir(sockets) == []


def test_a_stale_socket_is_replaced(harness: Harness) -> None:
    container = harness.container(["echo", "hi"])
    (container.directory / "attach").write_text("stale")
    (container.directory / "ctl").write_text("stale")
    container.created()
    client = container.attach()
    container.start()
    client.read_to_end()
    assert client.stream(2) == b"hi\n"


# --- passthrough


def test_passthrough_has_no_socket_and_touches_no_stream(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "echo out; echo err >&2; exit 3"])
    call = container.create("--sync", log=["passthrough"])
    assert call.sync.value()["data"] > 0
    assert not (container.directory / "attach").exists()
    container.start()
    assert call.status() == 3
    assert call.stdout == "out\n"
    assert call.stderr == "err\n"
