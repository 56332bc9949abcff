"""podman exec: status, streams, detached, with a terminal, and many at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.helpers.podman import Podman
from tests.helpers.waiting import wait_until

Compare = Callable[[Callable[[Podman], Any]], Any]
AT_ONCE = int(os.environ.get("PODMAN_EXECS", "20"))


def test_status(compare: Compare) -> None:
    commands = [["true"], ["false"], ["/nope"], ["/etc"], ["sh", "-c", "kill -9 $$"]]

    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        return [podman.run("exec", "e", *command).status for command in commands]

    assert compare(story) == [0, 1, 127, 126, 137]


def test_the_message_of_a_failure(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        return b"no such file or directory" in podman.run("exec", "e", "/nope").err

    assert compare(story) is True


def test_streams(compare: Compare) -> None:
    data = os.urandom(1_000_000)

    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        split = podman.run("exec", "e", "sh", "-c", "echo out; echo err >&2")
        through = podman.run("exec", "-i", "e", "cat", stdin=data)
        return split.out, split.err, through.status, through.out == data

    assert compare(story) == (b"out\n", b"err\n", 0, True)


def test_environment_directory_and_user(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        options = ["--env", "A=b c", "--workdir", "/tmp", "--user", "7:8"]
        done = podman.run("exec", *options, "e", "sh", "-c", 'echo "$A"; pwd; id -u; id -g')
        return done.status, done.out.split(b"\n")

    assert compare(story) == (0, [b"b c", b"/tmp", b"7", b"8", b""])


def test_a_terminal(compare: Compare) -> None:
    """-t without one of our own: the command sees a terminal, lines end as on one."""

    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        done = podman.run("exec", "-t", "e", "sh", "-c", "tty; exit 6")
        return done.status, done.out

    status, out = compare(story)
    assert status == 6
    assert out.startswith(b"/dev/pts/") and out.endswith(b"\r\n")


def test_detached(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99", options=["--tmpfs", "/run"])
        session = podman.must("exec", "-d", "e", "sh", "-c", "echo done >/run/mark")
        wait_until(
            lambda: podman.run("exec", "e", "cat", "/run/mark").out == b"done\n", what="its mark"
        )
        return len(session)

    assert compare(story) == 64


def test_a_background_process_does_not_hold_up_the_exec(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        done = podman.run("exec", "e", "sh", "-c", "sleep 50 & echo back; exit 3", seconds=30)
        return done.status, done.out

    assert compare(story) == (3, b"back\n")


def test_many_at_once(compare: Compare) -> None:
    """Each gets its own output and its own status."""

    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")

        def one(number: int) -> tuple[int, bytes]:
            done = podman.run(
                "exec", "e", "sh", "-c", f"seq {number} {number + 500}; exit {number}"
            )
            return done.status, done.out

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(one, range(1, AT_ONCE + 1)))
        left = podman.inspect("e", "len .ExecIDs")
        return found, left

    found, left = compare(story)
    assert left == "0"
    for number, (status, out) in enumerate(found, 1):
        assert status == number
        assert out == b"".join(b"%d\n" % value for value in range(number, number + 501))


def test_sessions_end_with_their_container(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("e", "sleep", "99")
        running = podman.spawn("exec", "e", "sh", "-c", "echo up; sleep 99")
        assert running.stdout is not None
        first = running.stdout.readline()
        podman.must("kill", "e")
        running.communicate(timeout=60)
        return first, running.returncode

    assert compare(story) == (b"up\n", 137)
