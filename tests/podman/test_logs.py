"""podman logs with every driver, followed and not, and that no line is ever lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.podman import Podman
from tests.helpers.waiting import wait_until

Compare = Callable[[Callable[[Podman], Any]], Any]
ROUNDS = int(os.environ.get("PODMAN_BURST_ROUNDS", "10"))


def test_logs_tail_since_and_a_last_line_unfinished(compare: Compare) -> None:
    script = "for i in 1 2 3 4; do echo l$i; done; echo e >&2; printf unfinished"

    def story(podman: Podman) -> Any:
        podman.start("sh", "-c", script, options=["--name", "t"])
        whole = podman.run("logs", "t")
        # tail and since on stdout's lines only: the order between the streams is nobody's promise.
        return {
            "all": (whole.status, whole.out, whole.err),
            "since an hour": podman.run("logs", "--since", "1h", "t").out,
            "since the future": podman.run("logs", "--since", "2099-01-01T00:00:00Z", "t").out,
            "until the past": podman.run("logs", "--until", "2001-01-01T00:00:00Z", "t").out,
            "last": podman.run("logs", "--tail", "0", "t").out,
        }

    whole = b"l1\nl2\nl3\nl4\nunfinished"
    found = compare(story)
    assert found["all"] == (0, whole, b"e\n")
    assert found["since an hour"] == whole
    assert found["since the future"] == found["until the past"] == found["last"] == b""


def test_tail(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.start("seq", "1", "50", options=["--name", "t"])
        return [podman.run("logs", "--tail", count, "t").out for count in ("1", "3", "100")]

    everything = b"".join(b"%d\n" % number for number in range(1, 51))
    assert compare(story) == [b"50\n", b"48\n49\n50\n", everything]


def test_follow_ends_with_the_container(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        script = "echo first; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo second"
        podman.detached("f", "sh", "-c", script, options=["--tmpfs", "/tmp"])
        follower = podman.spawn("logs", "-f", "f")
        assert follower.stdout is not None
        first = follower.stdout.readline()
        podman.must("exec", "f", "touch", "/tmp/go")
        out, _ = follower.communicate(timeout=60)
        return first, out, follower.returncode

    assert compare(story) == (b"first\n", b"second\n", 0)


def test_driver_none_keeps_nothing(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        done = podman.start("echo", "seen", options=["--log-driver", "none", "--name", "n"])
        return done.out, podman.run("logs", "n").status

    assert compare(story) == (b"seen\n", 125)


def test_driver_passthrough(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        script = "cat; echo direct; echo e >&2; exit 4"
        done = podman.run(
            "run", "--log-driver", "passthrough", *podman.place(), "--rootfs", str(podman.rootfs),
            "sh", "-c", script, stdin=b"given\n",
        )  # fmt: skip
        return done.status, done.out, done.err

    status, out, err = compare(story)
    assert (status, err) == (4, b"e\n")
    assert out.endswith(b"direct\n")


def test_driver_journald(compare: Compare) -> None:
    """A real journald in a mount namespace of the test's own; podman reads from it again."""
    daemon = Path("/lib/systemd/systemd-journald")
    script = """
        mount -t tmpfs t /run/systemd && mkdir -p /run/systemd/journal || exit 77
        mkdir -p /run/log && mount -t tmpfs t /run/log && mkdir -p /run/log/journal || exit 77
        mkdir -p /var/log/journal && mount -t tmpfs t /var/log/journal || exit 77
        "$DAEMON" & daemon=$!
        i=0; while ! [ -S /run/systemd/journal/socket ]; do
            i=$((i+1)); [ $i -lt 500 ] || exit 77; sleep 0.05; done
        "$@" run --name j --log-driver journald $PLACE --rootfs "$ROOTFS" \\
            sh -c 'echo one; echo two; printf three' >/dev/null
        i=0; while [ "$("$@" logs j 2>/dev/null | grep -c -e one -e two -e three)" != 3 ]; do
            i=$((i+1)); [ $i -lt 200 ] || break; sleep 0.1; done
        "$@" logs j
        "$@" rm -f -t 0 j >/dev/null
        kill $daemon; wait $daemon
    """

    def story(podman: Podman) -> Any:
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh",
             *podman.command()],
            env=podman.environment | {
                "DAEMON": str(daemon),
                "ROOTFS": str(podman.rootfs),
                "PLACE": " ".join(podman.place()),
            },
            capture_output=True, timeout=100,
        )  # fmt: skip
        return done.returncode, done.stdout.split()

    from tests.helpers.need import need

    need(daemon.exists(), "systemd-journald")
    status, lines = compare(story)
    need(status != 77, "a mount namespace with a journald in it")
    assert sorted(lines) == [b"one", b"three", b"two"]


def test_max_size(compare: Compare) -> None:
    """The file stays below its limit and holds the newest lines."""

    def story(podman: Podman) -> Any:
        podman.start("seq", "1", "5000", options=["--log-opt", "max-size=10kb", "--name", "m"])
        size = os.stat(podman.inspect("m", ".HostConfig.LogConfig.Path")).st_size
        lines = podman.must("logs", "m").splitlines()
        newest = [str(number) for number in range(5000 - len(lines) + 1, 5001)]
        return size <= 10_240, lines == newest, len(lines) > 50

    assert compare(story) == (True, True, True)


def test_binary_output_is_kept_byte_for_byte(compare: Compare) -> None:
    data = os.urandom(400_000).replace(b"\n", b"\r") + b"\0\xff\n\n\x1b[2J\xf0\x9f"

    def story(podman: Podman) -> Any:
        done = podman.run("run", "-i", "--name", "b", *podman.place(), "--rootfs",
                          str(podman.rootfs), "cat", stdin=data)  # fmt: skip
        return done.out == data, podman.run("logs", "b").out == data

    assert compare(story) == (True, True)


def test_a_burst_at_the_exit_is_complete(compare: Compare) -> None:
    """10,000 lines and then the end at once: the user and the log get all of them, every time."""
    expected = b"".join(b"%d\n" % number for number in range(1, 10_001))

    def story(podman: Podman) -> Any:
        lost = []
        for number in range(ROUNDS):
            done = podman.start("sh", "-c", "seq 1 10000; exit 9", options=["--name", f"b{number}"])
            logged = podman.run("logs", f"b{number}").out
            if (done.status, done.out, logged) != (9, expected, expected):
                lost.append((number, done.status, len(done.out), len(logged)))
        return lost

    assert compare(story) == []


def test_logs_of_a_container_that_waits_for_nobody(compare: Compare) -> None:
    """Detached: nobody is attached, and the log is complete when `podman wait` returns."""

    def story(podman: Podman) -> Any:
        podman.detached("d", "sh", "-c", "seq 1 20000; seq 1 500 >&2; exit 4")
        code = podman.must("wait", "d")
        done = podman.run("logs", "d")
        return code, done.out.count(b"\n"), done.err.count(b"\n")

    assert compare(story) == ("4", 20_000, 500)


def test_logs_while_it_runs(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("w", "sh", "-c", "echo now; sleep 99")
        return wait_until(lambda: podman.must("logs", "w"), what="the line in the log")

    assert compare(story) == "now"
