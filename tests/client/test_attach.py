"""Attaching: bytes both ways, long paths, and monitors that are dead, stopped or mute."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconmon_client.attach import Attachment, SendTimeout, attach, connect, decode, packets
from pyconmon_client.control import reopen_logs, resize, resize_message
from pyconmon_client.errors import (
    AttachError,
    InvalidArgumentError,
    NotRunningError,
    WaitTimeout,
)
from tests.helpers.descriptors import descriptors
from tests.helpers.drive import Drive
from tests.helpers.waiting import gone, wait_until

Drives = Callable[..., Drive]

BLOB = random.Random(1).randbytes(300_000)


def refused(call: Callable[[], object], error: type[Exception], words: str | None = None) -> None:
    """Calls that fail as they should, and within a second: the fastest of three, as machines are
    busy.
    """
    took = []
    for _ in range(3):
        begun = time.monotonic()
        with pytest.raises(error, match=words):
            call()
        took.append(time.monotonic() - begun)
    assert min(took) < 1


# --- pure parts


def test_decode() -> None:
    assert decode(b"") is None
    assert decode(b"\x02out") == ("stdout", b"out")
    assert decode(b"\x03\0\xff") == ("stderr", b"\0\xff")
    for packet in (b"\x01in", b"\x00", b"2text"):
        with pytest.raises(AttachError, match="which there is not"):
            decode(packet)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_no_packet_makes_the_decoder_fail_otherwise_than_it_says(packet: bytes) -> None:
    try:
        output = decode(packet)
    except AttachError:
        assert packet[0] not in (2, 3)
    else:
        assert (output is None) == (packet == b"")
        assert output is None or output.data == packet[1:]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(min_value=0, max_value=200_000))
def test_input_is_cut_into_packets_that_arrive_whole(size: int) -> None:
    data = BLOB[:size]
    cut = [bytes(packet) for packet in packets(data)]
    assert b"".join(cut) == data
    assert all(0 < len(packet) <= 32768 for packet in cut)


@pytest.mark.parametrize("size", [(-1, 80), (24, 1001), (True, 80), (24.0, 80)])
def test_sizes_that_are_none(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="0 to 1000"):
        resize(tmp_path, *size)


def test_resize_message() -> None:
    assert resize_message(40, 132) == b"1 40 132\n"


# --- with real containers


def test_everything_written_after_attaching_arrives(drives: Drives) -> None:
    script = r"printf 'a\0\377'; echo err >&2; head -c 100000 /dev/zero; exit 3"
    container = drives("sh", "-c", script).create()
    with attach(container.directory) as attachment:
        container.start()
        streams: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        for name, data in attachment:
            streams[name] += data
        assert attachment.ended
        assert attachment.recv() is None
    assert streams == {"stdout": b"a\0\377" + bytes(100_000), "stderr": b"err\n"}
    assert container.wait_exit() == 3


def test_communicate_passes_much_input_and_output(drives: Drives) -> None:
    container = drives("sh", "-c", "tee /dev/stderr | sha256sum", stdin=True).create()
    with attach(container.directory) as attachment:
        container.start()
        streams = attachment.communicate(BLOB * 4, timeout=60)
    digest = hashlib.sha256(BLOB * 4).hexdigest().encode()
    assert streams.stdout == digest + b"  -\n"
    assert streams.stderr == BLOB * 4
    assert not streams.truncated
    assert container.wait_exit() == 0


def test_communicate_keeps_no_more_than_its_limit(drives: Drives) -> None:
    container = drives("sh", "-c", "seq 50000; seq 3 >&2; exit 4").create()
    with attach(container.directory) as attachment:
        container.start()
        streams = attachment.communicate(limit=100, timeout=60)
    assert streams.truncated
    assert len(streams.stdout) == 100 and streams.stdout.startswith(b"1\n2\n3\n")
    assert streams.stderr == b"1\n2\n3\n"
    assert container.wait_exit() == 4


def test_a_container_that_ignores_its_input(drives: Drives) -> None:
    container = drives("sh", "-c", "echo done", stdin=True).create()
    with attach(container.directory) as attachment:
        container.start()
        assert attachment.communicate(BLOB, timeout=60).stdout == b"done\n"


def test_sending_waits_for_a_container_that_does_not_read(drives: Drives) -> None:
    container = drives("sh", "-c", "sleep 1000", stdin=True).run()
    with attach(container.directory) as attachment:
        with pytest.raises(SendTimeout) as caught:
            attachment.send(bytes(10_000_000), timeout=0.3)
        assert 0 < caught.value.sent < 5_000_000
        assert str(caught.value.sent) in str(caught.value)
        with pytest.raises(WaitTimeout, match="no output"):
            attachment.recv(timeout=0.05)


def test_half_closing_ends_the_input_and_not_the_output(drives: Drives) -> None:
    container = drives("sh", "-c", "cat; echo after", stdin=True).run()
    with attach(container.directory) as attachment:
        attachment.send(b"")  # nothing: an empty packet would be the end already
        attachment.send(b"hello\n")
        output = attachment.recv(timeout=30)
        assert output is not None and output.data == b"hello\n"
        attachment.close_stdin()
        rest = b"".join(data for _, data in attachment)
    assert rest == b"after\n"


def test_sending_after_the_end(drives: Drives) -> None:
    container = drives("cat", stdin=True).run()
    with attach(container.directory) as attachment:
        container.kill()
        assert list(attachment) == []
        with pytest.raises(NotRunningError, match="its input has ended"):
            attachment.send(b"x")
        attachment.close_stdin()


def test_two_clients_see_the_same(drives: Drives) -> None:
    container = drives("cat", stdin=True).run()
    with attach(container.directory) as one, attach(container.directory) as other:
        one.send(b"both\n")
        assert one.recv(30) == other.recv(30) == ("stdout", b"both\n")


def test_paths_longer_than_a_socket_address(drives: Drives, tmp_path: Path) -> None:
    container = drives("cat", stdin=True, name="n" * 120)
    assert len(str(container.directory / "attach")) > 107
    container.run()
    with attach(container.directory) as attachment:
        attachment.send(b"far\n")
        assert attachment.recv(30) == ("stdout", b"far\n")
        attachment.reopen_logs()


def test_resizing_a_terminal(drives: Drives) -> None:
    script = """
        while [ "$(stty size)" != "33 77" ]; do usleep 2000; done; echo ready
        while [ "$(stty size)" != "44 132" ]; do usleep 2000; done; echo changed
    """
    container = drives("sh", "-c", script, terminal=True, stdin=True).create()
    with attach(container.directory) as attachment:
        attachment.resize(33, 77)
        container.start()
        seen = b""

        def see(what: bytes) -> None:
            nonlocal seen
            while what not in seen:
                output = attachment.recv(30)
                assert output is not None, seen
                seen += output.data

        see(b"ready\r\n")
        attachment.resize(44, 132)
        see(b"changed\r\n")


def test_reopening_the_log(drives: Drives) -> None:
    container = drives("cat", stdin=True).run()
    with attach(container.directory) as attachment:
        attachment.send(b"old\n")
        wait_until(lambda: container.logged() == b"old\n", what="the line in the log")
        container.log.rename(container.log.with_name("moved"))
        reopen_logs(container.directory)
        wait_until(container.log.exists, what="the new log")
        attachment.send(b"new\n")
        wait_until(lambda: container.logged() == b"new\n", what="the line in the new log")


# --- monitors that don't answer


def test_a_container_that_never_was(tmp_path: Path) -> None:
    for call in (
        lambda: attach(tmp_path),
        lambda: attach(tmp_path / "no/where"),
        lambda: resize(tmp_path, 1, 1),
        lambda: reopen_logs(tmp_path),
        lambda: reopen_logs(tmp_path / "no/where"),
    ):
        refused(call, NotRunningError, "could not")


def test_a_dead_monitor(drives: Drives) -> None:
    container = drives("sleep", "1000", terminal=True).run()
    os.kill(container.monitor_pid, signal.SIGKILL)
    wait_until(lambda: gone(container.monitor_pid), what="the monitor's end")
    # The files are there still: a plain open of ctl would block for ever.
    assert stat.S_ISFIFO((container.directory / "ctl").stat().st_mode)
    for call in (
        lambda: attach(container.directory),
        lambda: resize(container.directory, 30, 90),
        lambda: reopen_logs(container.directory),
    ):
        refused(call, NotRunningError)


def test_a_monitor_that_ended_well(drives: Drives) -> None:
    container = drives("true").run()
    container.wait_exit()
    container.wait_monitor()
    refused(lambda: reopen_logs(container.directory), NotRunningError)
    refused(lambda: attach(container.directory), NotRunningError)


def test_a_stopped_monitor(drives: Drives) -> None:
    container = drives("sleep", "1000", terminal=True).run()
    os.kill(container.monitor_pid, signal.SIGSTOP)
    attached: list[Attachment] = []

    def attach_until_full() -> None:
        while len(attached) < 1000:
            attached.append(attach(container.directory))

    def resize_until_full() -> None:
        for _ in range(100_000):
            resize(container.directory, 50, 90)

    try:
        with pytest.raises(AttachError):
            attach_until_full()
        with pytest.raises(AttachError):
            resize_until_full()
        refused(attach_until_full, AttachError, "doesn't answer")
        refused(resize_until_full, AttachError, "doesn't read")
        with pytest.raises(WaitTimeout):
            attached[0].recv(timeout=0.1)
    finally:
        for each in attached:
            each.close()
        os.kill(container.monitor_pid, signal.SIGCONT)


def test_a_monitor_that_dies_ends_the_connection(drives: Drives) -> None:
    container = drives("sleep", "1000").run()
    with attach(container.directory) as attachment:
        timer = threading.Timer(0.05, os.kill, (container.monitor_pid, signal.SIGKILL))
        timer.start()
        assert attachment.recv(timeout=30) is None
        timer.join()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "ctl").write_text("precious")
    with pytest.raises(AttachError, match="not a FIFO"):
        resize(tmp_path, 1, 1)
    assert (tmp_path / "ctl").read_text() == "precious"
    (tmp_path / "attach").write_text("")
    with pytest.raises(NotRunningError):
        attach(tmp_path)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with stream:
        stream.bind(str(tmp_path / "stream"))
        stream.listen()
        with pytest.raises(AttachError):
            connect(str(tmp_path / "stream"))


def test_nothing_stays_open(drives: Drives, tmp_path: Path) -> None:
    container = drives("sleep", "1000").run()
    before = descriptors()
    for _ in range(20):
        with attach(container.directory) as attachment:
            attachment.reopen_logs()
        with pytest.raises(NotRunningError):
            attach(tmp_path / "none")
        attachment.close()
    assert descriptors() <= before
