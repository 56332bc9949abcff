"""The attach socket with real clients, each told by what it sees on its connection."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon import attach
from pyconmon.attach import AttachServer, link_path
from pyconmon.backlog import Backlog, cut
from pyconmon.loop import Loop
from pyconmon.stdio import Stdin
from tests.helpers.need import need
from tests.helpers.serving import Messages, open_descriptors, serve_until, wake_ups

MIB = 1024 * 1024


def test_no_piece_is_longer_than_a_packet_holds() -> None:
    for size in (0, 1, 8191, 8192, 8193, 16384, 32769):
        data = os.urandom(size)
        pieces = cut(memoryview(data))
        assert b"".join(pieces) == data
        assert all(1 <= len(piece) <= 8192 for piece in pieces)
        assert len(pieces) == (bool(size) if size <= 8192 else -(-size // 7744))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), max_size=20))
def test_the_backlog_keeps_what_is_wanted_and_no_more(steps: list[tuple[int, int]]) -> None:
    backlog = Backlog()
    sent: list[bytes] = []
    wanted = 0
    for count, taken in steps:
        pieces = [memoryview(b"%d" % (len(sent) + i)) for i in range(count)]
        backlog.extend(b"\x02", pieces, 0)
        sent += [b"\x02" + bytes(piece) for piece in pieces]
        assert [backlog.packet(i) for i in range(wanted, backlog.end)] == sent[wanted:]
        wanted = min(wanted + taken, backlog.end)
        backlog.forget_before(wanted)
        assert len(backlog) == backlog.end - wanted


class Served:
    """A server on its loop; stdin is a real pipe whose reading end the test has."""

    def __init__(
        self, bundle: Path, link: tuple[str, str] | None = None, stdin: bool = True
    ) -> None:
        self.bundle = bundle
        self.loop = Loop()
        self.diag = Messages()
        self.stdin = Stdin(self.loop)
        self.stdin_read = -1
        if stdin:
            self.stdin_read, write_end = os.pipe()
            os.set_blocking(self.stdin_read, False)
            self.stdin.open(write_end, closes_with_client=True)
        self.server = AttachServer(self.loop, self.diag, str(bundle), link, self.stdin)
        self.clients: list[socket.socket] = []

    def connect(self, path: Path | None = None) -> socket.socket:
        """A client that the server has accepted."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.clients.append(client)
        client.setblocking(False)
        before = len(self.server._clients)
        client.connect(str(path or self.bundle / "attach"))
        serve_until(self.loop, lambda: len(self.server._clients) > before)
        return client

    def packets(self, client: socket.socket, size: int, stream: int = 2) -> bytes:
        """Read packets until so many bytes of output have come; all have to be of that stream."""
        data = bytearray()

        def enough() -> bool:
            while len(data) < size:
                try:
                    packet = client.recv(65536)
                except BlockingIOError:
                    return False
                assert packet, "the end of file comes too early"
                assert packet[0] == stream
                assert 2 <= len(packet) <= 8193
                data.extend(packet[1:])
            return True

        serve_until(self.loop, enough)
        return bytes(data)

    def ends(self, client: socket.socket) -> None:
        """The client sees an end of file and nothing else."""

        def at_end() -> bool:
            try:
                packet = client.recv(65536)
            except BlockingIOError:
                return False
            assert packet == b""
            return True

        serve_until(self.loop, at_end)

    def arrives(self, size: int) -> bytes:
        """Read so many bytes (or up to the end) from the container's stdin."""
        data = bytearray()

        def enough() -> bool:
            while len(data) < size:
                try:
                    got = os.read(self.stdin_read, 65536)
                except BlockingIOError:
                    return False
                if not got:
                    return True
                data.extend(got)
            return True

        serve_until(self.loop, enough)
        return bytes(data)

    def close(self) -> None:
        self.server.close()
        self.server.remove_socket()
        self.server.remove_link()
        self.stdin.close()
        for client in self.clients:
            client.close()
        if self.stdin_read >= 0:
            os.close(self.stdin_read)


Make = Callable[..., Served]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(...) -> Served; the descriptors are counted at the end."""
    before = open_descriptors()
    made: list[Served] = []

    def serve(bundle: Path = tmp_path, **arguments: object) -> Served:
        made.append(Served(bundle, **arguments))  # type: ignore[arg-type]
        made[-1].server.open()
        return made[-1]

    yield serve
    for served in made:
        served.close()
    assert open_descriptors() == before
    assert [name for name in os.listdir(tmp_path) if name == "attach"] == []


# Files


def test_the_socket_is_private_whatever_the_umask(make: Make, tmp_path: Path) -> None:
    (tmp_path / "attach").symlink_to("/nowhere")
    old = os.umask(0)
    try:
        make()
    finally:
        os.umask(old)
    status = os.lstat(tmp_path / "attach")
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o700


def test_a_bundle_path_longer_than_an_address(make: Make, tmp_path: Path) -> None:
    deep = tmp_path
    while len(str(deep)) < 1500:
        deep = deep / ("d" * 200)
    deep.mkdir(parents=True)
    served = make(deep)
    directory = os.open(deep, os.O_PATH)
    client = served.connect(Path(f"/proc/self/fd/{directory}/attach"))
    os.close(directory)
    served.server.broadcast(2, memoryview(b"hi"))
    assert served.packets(client, 2) == b"hi"
    served.server.remove_socket()
    assert os.listdir(deep) == []


def test_the_link_leads_to_the_socket(make: Make, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "u").symlink_to("/nowhere")
    served = make(link=(str(tmp_path / "links"), "u"))
    served.connect(tmp_path / "links" / "u" / "attach")
    served.server.remove_socket()
    assert os.readlink(tmp_path / "links" / "u") == str(tmp_path)
    served.server.remove_link()
    assert os.listdir(tmp_path / "links") == []


def test_a_link_of_107_bytes_loses_the_last() -> None:
    assert link_path("/run", "u" * 101) == "/run/" + "u" * 101
    assert link_path("/run", "u" * 102) == "/run/" + "u" * 101
    assert link_path("/run", "u" * 103) == "/run/" + "u" * 103
    assert link_path("/run", "") == "/run"
    assert link_path("/run", None) == "/run"


@pytest.mark.parametrize("problem", ["directory", "no bundle", "link directory", "no link dir"])
def test_what_cannot_be_made_is_an_error(tmp_path: Path, problem: str) -> None:
    before = open_descriptors()
    bundle, link = tmp_path / "b", None
    if problem != "no bundle":
        bundle.mkdir()
    if problem == "directory":
        (bundle / "attach").mkdir()
    if problem == "link directory":
        link = (str(tmp_path), "")
    if problem == "no link dir":
        link = (str(tmp_path / "missing"), "u")
    served = Served(bundle, link, stdin=False)
    with pytest.raises(OSError):
        served.server.open()
    served.close()
    assert open_descriptors() == before


def test_the_files_of_the_next_monitor_stay(make: Make, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    first = make(link=(str(tmp_path / "links"), "u"))
    # As long as it is open the inode's number is not used again, which would be a rare coincidence.
    old_link = os.open(tmp_path / "links" / "u", os.O_PATH | os.O_NOFOLLOW)
    second = make(link=(str(tmp_path / "links"), "u"))
    os.close(old_link)
    first.server.close()
    first.server.remove_socket()
    first.server.remove_link()
    second.connect(tmp_path / "links" / "u" / "attach")


# Output


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 16384, 32769, 200_000])
def test_every_client_gets_the_same_packets(make: Make, size: int) -> None:
    served = make()
    clients = [served.connect() for _ in range(3)]
    data = os.urandom(size)
    assert served.server.broadcast(3, memoryview(data)) == 0.0
    assert served.server.broadcast(2, memoryview(b"")) == 0.0
    for client in clients:
        assert served.packets(client, size, stream=3) == data
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_a_client_gets_nothing_from_before_it_came(make: Make) -> None:
    served = make()
    first = served.connect()
    served.server.broadcast(2, memoryview(b"before"))
    second = served.connect()
    served.server.broadcast(2, memoryview(b"after"))
    assert served.packets(first, 11) == b"beforeafter"
    assert served.packets(second, 5) == b"after"


def test_a_slow_client_gets_every_byte_and_holds_up_nobody(make: Make) -> None:
    served = make()
    quick, slow, late = served.connect(), served.connect(), None
    sent, got = bytearray(), bytearray()
    for number in range(40):
        chunk = bytes([number]) * 70_000
        sent += chunk
        assert served.server.broadcast(2, memoryview(chunk)) == 0.0
        got += served.packets(quick, len(chunk))
        if number == 20:
            late = served.connect()
            since = len(sent)
    assert got == sent
    assert late is not None
    assert served.packets(slow, len(sent)) == sent
    assert served.packets(late, len(sent) - since) == sent[since:]
    serve_until(served.loop, lambda: len(served.server._backlog) == 0)
    served.server.broadcast(2, memoryview(b"then"))
    assert served.packets(slow, 4) == b"then"
    assert wake_ups(served.loop) == 0


def test_a_packet_is_kept_once_for_all_slow_clients(make: Make) -> None:
    served = make()
    for _ in range(5):
        served.connect()
    for _ in range(20):
        served.server.broadcast(2, memoryview(bytes(100_000)))
    assert len(served.server._backlog) <= 20 * 13
    assert wake_ups(served.loop) == 0


def test_the_container_is_paced_and_the_client_then_told_of_its_loss(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "UNPACED_BEHIND", 1 * MIB)
    monkeypatch.setattr(attach, "MOST_BEHIND", 3 * MIB)
    served = make()
    slow, quick = served.connect(), served.connect()
    chunk = bytes(65536)
    pauses: list[float] = []
    while not served.diag.said:
        pauses.append(served.server.broadcast(2, memoryview(chunk)))
        served.packets(quick, len(chunk))
        assert len(pauses) < 1000
    assert pauses[0] == pauses[-1] == 0.0
    paced = [pause for pause in pauses if pause]
    assert len(paced) == pytest.approx(2 * MIB / 65536, abs=2)
    assert set(paced) == {65536 / (16 * MIB)}
    packets: list[bytes] = []

    def ended() -> bool:
        try:
            while not packets or packets[-1]:
                packets.append(slow.recv(65536))
        except BlockingIOError:
            return False
        return True

    serve_until(served.loop, ended)
    assert packets[-2] == attach.FAREWELL
    assert {packet[0] for packet in packets[:-2]} == {2}
    served.server.broadcast(2, memoryview(b"on"))
    assert served.packets(quick, 2) == b"on"


def test_a_client_that_is_gone_is_let_go(make: Make) -> None:
    served = make()
    for index in range(3):
        client = served.connect()
        if index:
            served.server.broadcast(2, memoryview(bytes(3 * MIB)))
        if index == 2:
            client.send(b"unread by us")
        client.close()
        served.server.broadcast(2, memoryview(b"x"))
        serve_until(served.loop, lambda: not served.server.has_clients)
        assert len(served.server._backlog) == 0
    assert wake_ups(served.loop) == 0


def test_a_client_that_shuts_its_reading_side_can_still_type(make: Make) -> None:
    served = make()
    client = served.connect()
    client.shutdown(socket.SHUT_RD)
    served.server.broadcast(2, memoryview(bytes(1 * MIB)))
    assert len(served.server._backlog) == 0
    client.send(b"typed")
    assert served.arrives(5) == b"typed"
    assert wake_ups(served.loop) == 0
    client.close()
    serve_until(served.loop, lambda: not served.server.has_clients)


# Input


def test_input_arrives_whole_and_packets_of_two_writers_do_not_mix(make: Make) -> None:
    served = make()
    writers = [served.connect(), served.connect()]
    total = [0, 0]
    arrived = bytearray()
    while min(total) < 3 * MIB:
        for index, writer in enumerate(writers):
            try:
                while True:
                    total[index] += writer.send(b"ab"[index : index + 1] * 8192)
            except BlockingIOError:
                pass
        served.loop.turn(0)
        served.loop.turn(0)
        try:
            arrived += os.read(served.stdin_read, 65536)
        except BlockingIOError:
            pass
    arrived += served.arrives(sum(total) - len(arrived))
    assert arrived.count(b"a") == total[0]
    assert arrived.count(b"b") == total[1]
    for at in range(0, len(arrived), 8192):
        assert len(set(arrived[at : at + 8192])) == 1


def test_a_packet_as_large_as_a_socket_takes_is_not_cut(make: Make) -> None:
    served = make()
    client = served.connect()
    data = os.urandom(200_000)
    assert client.send(data) == len(data)
    assert served.arrives(len(data)) == data


@pytest.mark.parametrize("how", ["half-close", "close", "empty packet", "close with output unread"])
def test_the_end_of_input_comes_after_the_input(make: Make, how: str) -> None:
    served = make()
    client = served.connect()
    if how == "close with output unread":
        served.server.broadcast(2, memoryview(bytes(2 * MIB)))
    data = os.urandom(
        150_000
    )  # more than the pipe holds: the client's end is there before it is read
    for at in range(0, len(data), 22_000):
        client.send(data[at : at + 22_000])
    if how == "half-close":
        client.shutdown(socket.SHUT_WR)
    elif how == "empty packet":
        client.send(b"")
    else:
        client.close()
    for _ in range(20):
        served.loop.turn(0)
    assert wake_ups(served.loop) == 0
    assert served.arrives(len(data) + 1) == data
    assert wake_ups(served.loop) == 0
    if how in ("half-close", "empty packet"):
        served.server.broadcast(2, memoryview(b"still there"))
        assert served.packets(client, 11) == b"still there"
    else:
        serve_until(served.loop, lambda: not served.server.has_clients)


def test_a_container_that_does_not_read_holds_back_its_client_only(make: Make) -> None:
    served = make()
    client = served.connect()
    sent = 0
    with pytest.raises(BlockingIOError):
        for _ in range(10_000):
            sent += client.send(bytes(8192))
            served.loop.turn(0)
    assert sent < 2 * MIB
    assert wake_ups(served.loop) == 0
    served.server.broadcast(2, memoryview(b"tick"))
    assert served.packets(client, 4) == b"tick"
    os.close(served.stdin_read)  # EPIPE: what is typed from now on is swallowed
    served.stdin_read = -1
    for _ in range(100):
        serve_until(served.loop, lambda: _sends(client, bytes(8192)))
    assert served.stdin.fd == -1
    assert wake_ups(served.loop) == 0
    client.close()
    serve_until(served.loop, lambda: not served.server.has_clients)


def test_input_for_a_container_without_stdin_is_swallowed(make: Make) -> None:
    served = make(stdin=False)
    client = served.connect()
    for _ in range(100):
        serve_until(served.loop, lambda: _sends(client, bytes(8192)))
    served.server.finish(lambda: None)
    served.ends(client)


def _sends(client: socket.socket, data: bytes) -> bool:
    try:
        return client.send(data) == len(data)
    except BlockingIOError:
        return False


def test_a_client_that_comes_and_goes_causes_no_wake_ups(make: Make) -> None:
    served = make()
    client = served.connect()
    assert wake_ups(served.loop) == 0
    client.shutdown(socket.SHUT_WR)
    assert wake_ups(served.loop) == 0
    client.close()
    assert wake_ups(served.loop) == 0
    assert not served.server.has_clients


# Who may come, and when there is no room


def test_other_users_are_refused(make: Make, tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root: nobody else can become another user")
    served = make()
    tmp_path.chmod(0o755)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(tmp_path, os.O_PATH)
        os.chmod(tmp_path / "attach", 0o777)
        os.setuid(12345)
        try:
            client.connect(f"/proc/self/fd/{directory}/attach")
            client.settimeout(20)
            os.write(write_end, b"end" if client.recv(1) == b"" else b"data")
        except BaseException as error:
            os.write(write_end, repr(error).encode())
        os._exit(0)
    os.close(write_end)
    os.set_blocking(read_end, False)

    def answer() -> bytes:
        try:
            return os.read(read_end, 100)
        except BlockingIOError:
            return b""

    got = serve_until(served.loop, answer)
    os.waitpid(pid, 0)
    os.close(read_end)
    assert got == b"end" or b"ConnectionReset" in got
    assert not served.server.has_clients


def test_without_descriptors_clients_are_turned_away(make: Make) -> None:
    served = make()
    accepted = served.connect()
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(4)]
    served.clients += waiting
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(open_descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    fillers = []
    try:
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for client in waiting:
            client.setblocking(False)
            client.connect(str(served.bundle / "attach"))
        for client in waiting:
            served.ends(client)
        assert wake_ups(served.loop) == 0
    finally:
        for fd in fillers:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(served.diag.said) == 1
    served.server.broadcast(2, memoryview(b"x"))
    assert served.packets(accepted, 1) == b"x"
    served.connect()


# The end


def test_at_the_end_clients_see_an_end_of_file(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "LONGEST_STALL", 60.0)
    monkeypatch.setattr(attach, "LONGEST_FINISH", 60.0)
    served = make()
    idle, typing, lagging = served.connect(), served.connect(), served.connect()
    data = os.urandom(2 * MIB)
    served.server.broadcast(2, memoryview(data[: 1 * MIB]))
    for client in (idle, typing):
        served.packets(client, 1 * MIB)
    served.server.broadcast(2, memoryview(data[1 * MIB :]))
    for client in (idle, typing):
        served.packets(client, 1 * MIB)
    typing.send(b"nobody reads this")
    typing.send(b"")
    late = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served.clients.append(late)
    late.setblocking(False)
    late.connect(str(served.bundle / "attach"))  # not accepted yet
    done: list[bool] = []
    served.server.finish(lambda: done.append(True))
    for client in (idle, typing, late):
        served.ends(client)
    assert not done
    with pytest.raises(ConnectionRefusedError):
        served.connect()
    assert served.packets(lagging, 2 * MIB) == data
    served.ends(lagging)
    serve_until(served.loop, lambda: done)
    assert done == [True]
    served.server.remove_socket()
    assert not (served.bundle / "attach").exists()


def test_without_clients_the_end_is_at_once(make: Make) -> None:
    served = make()
    done: list[bool] = []
    served.server.finish(lambda: done.append(True))
    assert done == [True]


def test_a_client_that_does_not_read_is_not_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "LONGEST_STALL", 0.2)
    served = make()
    client = served.connect()
    served.server.broadcast(2, memoryview(bytes(4 * MIB)))
    done: list[float] = []
    started = time.monotonic()
    served.server.finish(lambda: done.append(time.monotonic() - started))
    assert not done
    serve_until(served.loop, lambda: done)
    assert done[0] >= 0.2
    assert not served.server.has_clients
    assert client.recv(65536)[0] == 2  # what the kernel holds is still there


def test_a_client_that_reads_without_end_is_not_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "LONGEST_FINISH", 0.3)
    monkeypatch.setattr(attach, "LONGEST_STALL", 60.0)
    served = make()
    served.connect()
    served.server.broadcast(2, memoryview(bytes(4 * MIB)))
    done: list[bool] = []
    served.server.finish(lambda: done.append(True))
    serve_until(served.loop, lambda: done)
    assert done == [True]
