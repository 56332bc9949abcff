"""podman run: status, output, options of every kind, and what a container gets."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.need import need
from tests.helpers.podman import Podman
from tests.helpers.waiting import wait_until

Compare = Callable[[Callable[[Podman], Any]], Any]


def test_streams_and_status(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        done = podman.start("sh", "-c", "echo out; echo err >&2; exit 3")
        return done.status, done.out, done.err

    assert compare(story) == (3, b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 255"], 255),
        (["/nope"], 127),
        (["/etc"], 126),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -15 $$"], 143),
    ],
)
def test_exit_status(compare: Compare, words: list[str], status: int) -> None:
    """In the machine's pid namespace, as the first process of another is deaf to its own signals."""

    def story(podman: Podman) -> Any:
        done = podman.start(*words, options=["--rm", "--pid", "host"])
        return done.status, podman.containers()

    assert compare(story) == (status, [])


def test_error_of_the_runtime_reaches_the_user(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        return b'exec: "/nope": stat /nope: no such file or directory' in podman.start("/nope").err

    assert compare(story) is True


def test_stdin_is_relayed_to_the_last_byte(compare: Compare) -> None:
    data = os.urandom(3_000_000)

    def story(podman: Podman) -> Any:
        done = podman.run("run", "--rm", "-i", *podman.place(), "--rootfs", str(podman.rootfs),
                          "cat", stdin=data)  # fmt: skip
        return done.status, done.out == data

    assert compare(story) == (0, True)


def test_hostile_arguments_and_environment(compare: Compare) -> None:
    """All that podman itself can carry: it replaces bytes that are no UTF-8."""
    words = [b"a b", b"", b"q\"'$(id)`id`", b"new\nline", "ä€😀".encode(), b"--", b"-x", b"{{.}}"]
    value = 'a\nb "c" ä\''.encode()

    def story(podman: Podman) -> Any:
        printed = podman.run("run", "--name", "a.b_c-d", *podman.place(), b"--env", b"X=" + value,
                             "--rootfs", str(podman.rootfs),
                             "sh", "-c", 'printf "%s|" "$X" "$@"', "sh", *words)  # fmt: skip
        return (
            printed.status,
            printed.out,
            podman.must("logs", "a.b_c-d").encode(errors="surrogateescape"),
        )

    expected = b"|".join([value, *words]) + b"|"
    assert compare(story) == (0, expected, expected)


def test_a_directory_with_hostile_letters(compare: Compare) -> None:
    """Log and pid file in a place whose name has blanks, quotes and dollars."""

    def story(podman: Podman) -> Any:
        return _log_in(podman, podman.directory / "pl ace '$x`;&")

    assert compare(story) == (0, [[b"stdout", b"F", b"kept"]], True)


def test_a_directory_with_letters_beyond_ascii(engines: dict[str, Podman]) -> None:
    """Podman starts the monitor without LANG: C conmon takes no such letters then, pyconmon does."""
    podman = engines["pyconmon"]
    found = _log_in(podman, podman.directory / "plätze €")
    podman.clean()
    assert found == (0, [[b"stdout", b"F", b"kept"]], True)


def _log_in(podman: Podman, place: Path) -> tuple[int, list[list[bytes]], bool]:
    """A container whose log and conmon pid file are in that place: status, records, pid found."""
    place.mkdir(exist_ok=True)
    done = podman.start("echo", "kept", options=[
        "--log-opt", f"path={place}/log", "--conmon-pidfile", f"{place}/conmon.pid", "--name", "h"
    ])  # fmt: skip
    records = [line.split(b" ", 3)[1:] for line in (place / "log").read_bytes().splitlines()]
    return done.status, records, (place / "conmon.pid").read_text().isdigit()


def test_rm_of_a_detached_container(compare: Compare) -> None:
    """Nobody but the monitor's exit command can remove it."""

    def story(podman: Podman) -> Any:
        podman.detached("gone", "sleep", "0.2", options=["--rm"])
        wait_until(lambda: podman.run("container", "exists", "gone").status == 1, what="removal")
        return podman.containers()

    assert compare(story) == []


def test_a_timeout_ends_the_container(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        done = podman.start("sleep", "99", options=["--timeout", "1", "--name", "late"])
        state = [podman.inspect("late", f".State.{field}") for field in ("Status", "ExitCode")]
        return done.status, state

    assert compare(story) == (255, ["exited", "-1"])


def test_an_init_process(compare: Compare, tmp_path: Path) -> None:
    """--init, with a stand-in where the usual one is not installed."""
    init = Path("/usr/libexec/podman/catatonit")
    if not init.exists():
        init = tmp_path / "init"
        init.write_text('#!/bin/sh\n[ "$1" = -- ] && shift\n"$@" &\nwait $!\n')
        init.chmod(0o755)

    def story(podman: Podman) -> Any:
        script = "tr '\\0' ' ' </proc/1/cmdline; exit 5"
        done = podman.start("sh", "-c", script, options=["--init", "--init-path", str(init)])
        return done.status, b"init" in done.out

    assert compare(story) == (5, True)


def test_preserved_descriptors(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        readers = []
        for text in (b"three\n", b"four\n"):
            reader, writer = os.pipe()
            os.write(writer, text)
            os.close(writer)
            readers.append(reader)
        # They have to be 3 and 4 in podman, whatever they are here: a shell moves them.
        script = f'exec 3<&{readers[0]} 4<&{readers[1]}; exec "$@"'
        command = podman.command(
            "run", "--rm", "--preserve-fds", "2", *podman.place(), "--rootfs", str(podman.rootfs),
            "sh", "-c", "read a <&3; read b <&4; echo $a-$b; ls /proc/self/fd | wc -l",
        )  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", script, "bash", *command], pass_fds=readers, env=podman.environment,
            capture_output=True, timeout=60,
        )  # fmt: skip
        for reader in readers:
            os.close(reader)
        return done.returncode, done.stdout

    # ls: 0, 1, 2, the two preserved ones, and the directory itself.
    assert compare(story) == (0, b"three-four\n6\n")


def test_a_reserved_port_is_free_again_at_the_end(compare: Compare) -> None:
    """Podman parks listening sockets in the monitor; they must be gone with the container."""

    def story(podman: Podman) -> Any:
        with socket.socket() as parked:
            parked.bind(("127.0.0.1", 0))
            parked.listen()
            port = parked.getsockname()[1]
            number = parked.fileno()
            command = podman.command(
                "run", "-d", "--name", "port", "--preserve-fds", "1", *podman.place(),
                "--rootfs", str(podman.rootfs), "sh", "-c", "exec 3>&-; sleep 99",
            )  # fmt: skip
            subprocess.run(
                ["bash", "-c", f'exec 3<&{number}; exec "$@"', "bash", *command],
                pass_fds=[number], env=podman.environment, check=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60,
            )  # fmt: skip
        # The container has closed its copy, so whoever still holds it is the monitor.
        held = _bindable(port)
        podman.must("kill", "port")
        podman.must("wait", "port")
        return held, wait_until(lambda: _bindable(port), what="a free port")

    assert compare(story) == (False, True)


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_the_end_by_lack_of_memory(engines: dict[str, Podman]) -> None:
    """Podman looks for the file `oom` in the bundle, where C conmon has it only since 2.1.13."""
    podman = engines["pyconmon"]
    try:
        limits = ["--memory", "20m", "--memory-swap", "20m", "--name", "big"]
        done = podman.start("sh", "-c", "exec tail /dev/zero", options=limits)
        need(b"memory" not in done.err, "a memory cgroup")
        assert done.status == 137
        assert podman.inspect("big", ".State.OOMKilled") == "true"
    finally:
        podman.clean()


@pytest.mark.parametrize("mode", ["conmon", "container", "ignore"])
def test_sdnotify(compare: Compare, mode: str, tmp_path: Path) -> None:
    """What arrives at the socket of the service manager, but for the number of the pid."""
    python = Path("/usr/bin/python3")
    need(python.exists(), "/usr/bin/python3, for a program that sends READY=1")
    rootfs = tmp_path / "host"
    for folder in ("usr", "proc", "sys", "dev", "run", "tmp", "etc"):
        (rootfs / folder).mkdir(parents=True)
    for link in ("bin", "lib", "lib64"):
        (rootfs / link).symlink_to(f"usr/{link}")
    program = (
        "import os, socket, sys\n"
        "path = os.environ.get('NOTIFY_SOCKET')\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "path and sock.sendto(b'READY=1', path)\n"
        "print('set' if path else 'unset')\n"
        "import time; time.sleep(99)\n"
    )

    def story(podman: Podman) -> Any:
        path = podman.directory / "notify"
        path.unlink(missing_ok=True)
        messages: list[str] = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            path.chmod(0o777)
            reader = threading.Thread(target=_collect, args=(manager, messages), daemon=True)
            reader.start()
            started = podman.run(
                "run", "-d", "--name", "n", "--sdnotify", mode, *podman.place(),
                "-v", "/usr:/usr:ro", "--rootfs", str(rootfs), str(python), "-u", "-c", program,
                env={"NOTIFY_SOCKET": str(path)},
            )  # fmt: skip
            assert started.status == 0, started.err
            wait_until(lambda: podman.must("logs", "n"), what="the container's line")
            if mode != "ignore":
                wait_until(lambda: "READY=1" in messages, what="READY=1")
            podman.must("rm", "-f", "-t", "0", "n")
            manager.shutdown(socket.SHUT_RDWR)
            reader.join(20)
        return sorted(message for message in messages if not message.startswith("MAINPID=")), any(
            message.startswith("MAINPID=") for message in messages
        )

    ready, main_pid = compare(story)
    assert set(ready) == ({"READY=1"} if mode != "ignore" else set())
    assert main_pid is (mode != "ignore")


def _collect(manager: socket.socket, messages: list[str]) -> None:
    while data := manager.recv(8192):
        messages += data.decode().splitlines()


def test_the_log_is_not_for_everybody(compare: Compare) -> None:
    def story(podman: Podman) -> Any:
        podman.start("echo", "x", options=["--name", "m"])
        mode = os.stat(podman.inspect("m", ".HostConfig.LogConfig.Path")).st_mode
        return stat.S_IMODE(mode) & 0o007

    assert compare(story) == 0
