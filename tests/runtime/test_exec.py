"""Commands in a running container: exit codes, output, time-outs and what they leave behind."""

from __future__ import annotations

import time

import pytest

from tests.helpers.harness import Container, Exec, Harness, target
from tests.helpers.waiting import wait_until

SLEEP = ("sleep", "1000")


def host_pids(container: Container) -> list[int]:
    """Host pids of all processes in the container."""
    listed = container.owner.runc("ps", "--format", "json", container.cid)
    return [int(word) for word in listed.strip("[]\n").replace("null", "").split(",") if word]


def test_streams_are_told_apart(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "echo out; echo err >&2; echo more"])
    session.begin()
    assert session.results()[1] == 0
    assert session.log.text() == "out\nmore\n"
    assert session.log.text("stderr") == "err\n"


def test_many_at_once_each_get_their_own_code(harness: Harness) -> None:
    container = harness.running(SLEEP)
    sessions = [container.exec(["sh", "-c", f"echo {n}; exit {n}"]) for n in range(20)]
    for session in sessions:
        session.begin()
    for number, session in enumerate(sessions):
        assert session.results()[1] == number
        assert session.log.text() == f"{number}\n"
        assert session.wait_exit() == str(number)


def test_one_that_ends_at_once(harness: Harness) -> None:
    container = harness.running(SLEEP)
    for code in (0, 1, 2, 77, 127, 200, 255):
        session = container.exec(["sh", "-c", f"exit {code}"])
        session.begin()
        assert session.results()[1] == code


@pytest.mark.parametrize("number", [1, 9, 11, 15])
def test_one_that_dies_of_a_signal(harness: Harness, number: int) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", f"kill -{number} $$; sleep 5; exit 4"])
    session.begin()
    assert session.results()[1] == 128 + number


def test_the_foreground_process_has_the_code_with_sync(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "exit 41"])
    assert session.begin("--sync").status() == 41
    assert not session.monitor_pidfile.exists()


def test_without_a_bundle_there_is_nothing_to_attach_to(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "echo hi; exit 5"])
    argv = session.argv("--sync")
    at = argv.index("-b")
    call = session.launch(argv[:at] + argv[at + 2 :])
    assert call.status() == 5
    assert session.log.text() == "hi\n"
    for name in ("attach", "ctl", "winsz"):
        assert not (session.directory / name).exists()


def test_stdin_is_null_without_the_option(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "cat; readlink /proc/self/fd/0"])
    session.begin()
    assert session.results()[1] == 0
    assert session.log.text() == "/dev/null\n"


def test_stdin_comes_from_the_client(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "wc -c"])
    assert session.begin("-i").sync.value()["data"] > 0
    client = session.attach()
    client.send(b"x" * 5000)
    client.half_close()
    client.read_to_end()
    assert client.stream(2).strip() == b"5000"
    assert session.wait_exit() == "0"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_process_left_behind_delays_nothing(harness: Harness, terminal: bool) -> None:
    container = harness.running(SLEEP)
    command = ["sh", "-c", "echo done; (trap '' HUP; exec sleep 4321) & exit 3"]
    session = container.exec(command, terminal=terminal)
    session.begin()
    begun = time.monotonic()
    assert session.results()[1] == 3
    assert time.monotonic() - begun < 20
    assert session.log.text().split() == ["done"]
    session.wait_monitor_gone()


# --- time-outs


def timed_out(session: Exec, seconds: str = "1") -> None:
    call = session.begin("-T", seconds)
    assert call.sync.value()["data"] > 0
    assert call.sync.value() == {"data": -1, "message": "command timed out"}
    assert call.sync.rest() == b""
    assert session.exit_file.read_text() == "-1"


def test_a_timeout_kills_the_group(harness: Harness) -> None:
    container = harness.running(SLEEP)
    timed_out(container.exec(["sh", "-c", "sleep 7711 & sleep 7712 & sleep 7713"]))
    wait_until(lambda: len(host_pids(container)) == 1, what="the end of the group")


@target("conmon kills the process group only")
def test_a_timeout_kills_a_child_with_a_session_of_its_own(harness: Harness) -> None:
    container = harness.running(SLEEP)
    timed_out(container.exec(["sh", "-c", "setsid sleep 7721 & sleep 7722"]))
    wait_until(lambda: len(host_pids(container)) == 1, what="the end of the setsid child")


def test_a_timeout_ends_one_that_ignores_it_and_floods(harness: Harness) -> None:
    container = harness.running(SLEEP)
    flood = container.exec(["sh", "-c", "trap '' TERM HUP INT; while :; do echo flood; done"])
    timed_out(flood)
    wait_until(lambda: len(host_pids(container)) == 1, what="its end")
    assert flood.log.stream("stdout").startswith(b"flood\n")


def test_a_timeout_that_is_not_reached(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "exit 12"])
    session.begin("-T", "600")
    assert session.results()[1] == 12
    session.wait_monitor_gone()


def test_a_timeout_of_the_exec_spares_the_container(harness: Harness) -> None:
    container = harness.running(SLEEP)
    timed_out(container.exec(["sleep", "7731"]))
    assert container.state() == "running"
    session = container.exec(["sh", "-c", "exit 3"])
    session.begin()
    assert session.results()[1] == 3


# --- bounds


@pytest.mark.parametrize("limit", [1000, 65536])
def test_output_is_bounded_and_read_to_the_end(harness: Harness, limit: int) -> None:
    size = 20_000_000
    command = f"head -c {size} /dev/zero | tr '\\0' B; echo END; exit 9"
    session = harness.running(SLEEP).exec(["sh", "-c", command])
    session.begin("--log-global-size-max", str(limit))
    assert session.results()[1] == 9
    assert session.log.path.stat().st_size <= limit + 8192 + 64
    assert set(session.log.stream("stdout")) == {ord("B")}


def test_options_that_concern_only_create_are_accepted(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "exit 2"])
    session.begin("-s", "--no-pivot", "--no-new-keyring")
    assert session.results()[1] == 2
