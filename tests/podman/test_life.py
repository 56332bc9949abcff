"""The life of a container: stop, kill, wait, restart, pause, health, pods, events, attach."""

from __future__ import annotations

import json
import os
import pty
import select
import termios
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.podman import Podman
from tests.helpers.waiting import gone, wait_until

Compare = Callable[[Callable[[Podman], Any]], Any]
OBEDIENT = "trap 'exit 11' TERM; echo up; while :; do sleep 0.05; done"


def state(podman: Podman, name: str) -> tuple[str, int]:
    found = json.loads(podman.must("inspect", name))[0]["State"]
    return found["Status"], found["ExitCode"]


def up(podman: Podman, name: str) -> None:
    """The container's script has set its traps."""
    wait_until(lambda: "up" in podman.must("logs", name), what="the container's first line")


def test_stop(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("s", "sh", "-c", OBEDIENT)
        up(podman, "s")
        podman.must("stop", "-t", "30", "s")
        return state(podman, "s")

    assert compare(story) == ("exited", 11)


def test_stop_of_one_that_does_not_listen(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("s", "sleep", "99")
        podman.must("stop", "-t", "0", "s")
        return state(podman, "s")

    assert compare(story) == ("exited", 137)


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("TERM", 11)])
def test_kill_and_wait(compare: Compare, name: str, code: int) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("k", "sh", "-c", OBEDIENT)
        up(podman, "k")
        waiter = podman.spawn("wait", "k")
        podman.must("kill", "-s", name, "k")
        out, _ = waiter.communicate(timeout=60)
        return out, state(podman, "k")

    assert compare(story) == (b"%d\n" % code, ("exited", code))


def test_the_monitor_goes_with_its_container(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("m", "sleep", "99")
        pid = int(podman.inspect("m", ".State.ConmonPid"))
        before = gone(pid)
        podman.must("kill", "m")
        podman.must("wait", "m")
        wait_until(lambda: gone(pid), what="the end of the monitor")
        return before

    assert compare(story) is False


def test_restart_policy_on_failure(compare: Compare) -> None:
    """The exit command of the monitor restarts it, so all of its work is in this number."""

    def story(podman: Podman) -> Any:
        podman.detached("r", "sh", "-c", "echo x; exit 1", options=["--restart", "on-failure:3"])
        wait_until(lambda: podman.must("logs", "r").count("x") == 4, what="three restarts")
        wait_until(lambda: state(podman, "r") == ("exited", 1), what="the last end")
        return podman.inspect("r", ".RestartCount")

    assert compare(story) == "3"


def test_restart_policy_always(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("r", "sh", "-c", "echo x; exit 0", options=["--restart", "always"])
        wait_until(lambda: podman.must("logs", "r").count("x") >= 3, what="restarts")
        # Stopping it is not tested: podman's own stop and restart race for it.
        return True

    assert compare(story) is True


def test_start_again_and_restart(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.start("sh", "-c", "echo once; exit 2", options=["--name", "again"])
        second = podman.run("start", "--attach", "again")
        podman.detached("other", "sleep", "99")
        first_pid = podman.inspect("other", ".State.Pid")
        podman.must("restart", "-t", "0", "other")
        return (
            second.status,
            second.out,
            podman.must("logs", "again"),
            state(podman, "other")[0],
            podman.inspect("other", ".State.Pid") != first_pid,
        )

    assert compare(story) == (2, b"once\n", "once\nonce", "running", True)


def test_pause(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("p", "sh", "-c", OBEDIENT)
        up(podman, "p")
        podman.must("pause", "p")
        paused = state(podman, "p")[0]
        podman.must("unpause", "p")
        podman.must("stop", "-t", "30", "p")
        return paused, state(podman, "p")

    assert compare(story) == ("paused", ("exited", 11))


def test_health_check(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        options = ["--health-cmd", "test -e /run/ok", "--health-interval", "disable"]
        podman.detached("h", "sleep", "99", options=[*options, "--tmpfs", "/run"])
        first = podman.run("healthcheck", "run", "h").status
        podman.must("exec", "h", "touch", "/run/ok")
        second = podman.run("healthcheck", "run", "h").status
        return first, second, podman.inspect("h", ".State.Health.Status")

    assert compare(story) == (1, 0, "healthy")


def test_pod(compare: Compare) -> None:
    """Without an infra container, as that needs an image."""

    def story(podman: Podman) -> Any:
        parent = podman.place()
        podman.must("pod", "create", "--infra=false", "--name", "pod", *parent)
        for name in ("one", "two"):
            podman.must("create", "--pod", "pod", "--name", name, "--rootfs", str(podman.rootfs),
                        "sh", "-c", OBEDIENT)  # fmt: skip
        podman.must("pod", "start", "pod")
        up(podman, "one")
        up(podman, "two")
        podman.must("pod", "stop", "-t", "30", "pod")
        states = [state(podman, name) for name in ("one", "two")]
        podman.must("pod", "rm", "-f", "pod")
        return states, podman.containers()

    assert compare(story) == ([("exited", 11)] * 2, [])


def test_events(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.start("sh", "-c", "exit 3", options=["--rm", "--name", "ev"])
        form = "{{.Status}} {{.ContainerExitCode}}"

        def listed() -> list[str]:
            command = ["events", "--stream=false", "--filter", "container=ev", "--format", form]
            return podman.must(*command).splitlines()

        # Who removes it, podman or the monitor's exit command, is a race, and so is whether there
        # is a "cleanup" of its own; attach and start come from two threads, in either order.
        wait_until(lambda: "remove 0" in listed(), what="the removal's event")
        return sorted(line for line in listed() if not line.startswith("cleanup"))

    names = ["create 0", "init 0", "start 0", "attach 0", "died 3", "remove 0"]
    assert compare(story) == sorted(names)


def test_attach_gives_input_and_output(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.detached("a", "sh", "-c", "read a; echo got $a; cat >/dev/null; exit 6",
                        options=["-i"])  # fmt: skip
        done = podman.run("attach", "a", stdin=b"hello\n")
        return done.out.strip(), podman.must("wait", "a")

    assert compare(story) == (b"got hello", "6")


def test_detach_keys_and_attach_again(compare: Compare) -> None:
    """With a terminal: leave by the keys, come back, go on typing, end it."""

    def story(podman: Podman) -> Any:
        script = (
            "stty -echo; echo ready; while read l; do echo got:$l; [ $l = end ] && exit 5; done"
        )
        first = Terminal(podman, "run", "-it", "--name", "d", "--detach-keys", "ctrl-x",
                         *podman.place(), "--rootfs", str(podman.rootfs),
                         "sh", "-c", script)  # fmt: skip
        first.expect(b"ready")
        first.type(b"one\n")
        first.expect(b"got:one")
        # Podman knows a sequence of keys only if each of them comes in a read of its own.
        first.type(b"\x18")
        left = first.wait(), state(podman, "d")[0]
        second = Terminal(podman, "attach", "--detach-keys", "ctrl-x", "d")
        # What is typed before the client is attached is kept by the terminal.
        second.type(b"end\n")
        second.expect(b"got:end")
        # What podman attach makes of the code depends on who sees the end first.
        second.wait()
        return left, podman.must("wait", "d")

    assert compare(story) == ((0, "running"), "5")


def test_window_size(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        script = "echo ready; while read l; do stty size; [ $l = end ] && exit; done"
        user = Terminal(podman, "run", "-it", "--name", "w", *podman.place(),
                        "--rootfs", str(podman.rootfs), "sh", "-c", script)  # fmt: skip
        user.expect(b"ready")
        user.resize(33, 101)
        # The size goes its own way, so it may come after the line that was typed later.
        for _ in range(200):
            user.type(b"x\n")
            if user.expect(b"33 101", seconds=0.3, must=False):
                break
        else:
            raise AssertionError(f"{podman.name}: the size did not arrive: {user.seen!r}")
        user.type(b"end\n")
        return user.wait()

    assert compare(story) == 0


class Terminal:
    """podman in a terminal of its own, as a person would have it."""

    def __init__(self, podman: Podman, *words: str) -> None:
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            command = podman.command(*words)
            try:
                os.execvpe(command[0], command, podman.environment | {"TERM": "xterm"})
            finally:
                os._exit(127)

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def resize(self, rows: int, columns: int) -> None:

        termios.tcsetwinsize(self.fd, (rows, columns))

    def expect(self, text: bytes, seconds: float = 30, must: bool = True) -> bool:
        """Reads until text comes, and forgets everything up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                assert not must, f"waited {seconds} s for {text!r}, saw {self.seen!r}"
                return False
            try:
                self.seen += os.read(self.fd, 4096)
            except OSError:
                raise AssertionError(f"it ended before {text!r}: {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]
        return True

    def wait(self, seconds: float = 30) -> int:
        """The exit status; what is still printed is read meanwhile, so that nobody blocks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            ready, _, _ = select.select([self.fd], [], [], 0.05)
            if ready:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    time.sleep(0.01)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"podman did not end in {seconds} s; it printed {self.seen!r}")
