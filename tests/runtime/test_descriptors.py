"""Descriptors, environment, umask and permissions: what reaches the runtime and the container, and what must not."""

from __future__ import annotations

import os
import re
import select
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.harness import Harness, target
from tests.helpers.need import need_program
from tests.helpers.waiting import wait_until

# A program that lists its descriptors: the shell opens some of its own while it looks.
LISTER = """import os
for name in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        where = os.readlink("/proc/self/fd/" + name)
    except OSError:
        continue  # the one that listed the directory
    os.write(2, f"{name} {where}\\n".encode())
os._exit(1)
"""


def lister(harness: Harness) -> Path:
    """A stand-in runtime that fails, and says by its message what it has open."""
    return harness.script("listing", f"exec {sys.executable} -IS -c '{LISTER}'")


def numbers(message: str) -> dict[int, str]:
    pairs = (line.partition(" ") for line in message.splitlines())
    return {int(number): where for number, _, where in pairs}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", ["create", "exec"])
def test_the_runtime_gets_three_descriptors_and_what_was_left_open(
    harness: Harness, kind: str, terminal: bool
) -> None:
    container = harness.container(["true"], terminal=terminal)
    session = container.exec(["true"], terminal=terminal)
    container.runtime = session.runtime = lister(harness)
    extra = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if kind == "create":
            call = container.create(fds={7: extra})
        else:
            call = session.begin(fds={7: extra})
    finally:
        os.close(extra)
    found = numbers(call.sync.value()["message"])
    assert set(found) == {0, 1, 2, 7}
    assert found[0] == "/dev/null"
    assert found[1].startswith("/dev/null" if terminal else "pipe:")
    assert found[2].startswith("pipe:")
    assert found[7] == "/etc/passwd"


def test_stdin_of_the_runtime_is_a_pipe_with_the_option(harness: Harness) -> None:
    container = harness.container(["true"])
    container.runtime = lister(harness)
    found = numbers(container.create("-i").sync.value()["message"])
    assert found[0].startswith("pipe:")
    assert set(found) == {0, 1, 2}


@pytest.mark.parametrize("terminal", [False, True])
def test_the_container_has_its_three_streams_only(harness: Harness, terminal: bool) -> None:
    # 3 is the directory that ls itself reads.
    container = harness.container(["ls", "/proc/self/fd"], terminal=terminal)
    extra = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC)
    container.run(fds={7: extra})
    os.close(extra)
    assert container.wait_exit() == "0"
    assert {int(word) for word in container.log.text().split()} == {0, 1, 2, 3}


def test_preserved_descriptors_reach_the_container(harness: Harness) -> None:
    read, write = os.pipe()
    os.write(write, b"from outside")
    os.close(write)
    container = harness.container(["sh", "-c", "cat <&3"])
    # runc preserves 3 and up: the pipes that are the monitor's have to be elsewhere.
    options = ("--runtime-opt", "--preserve-fds", "--runtime-opt", "1")
    argv = container.create_argv(*options)
    renumber = 'exec 8<&3 3<&9 9<&-; exec "$@"'
    container.launch(
        ["/bin/sh", "-c", renumber, "sh", *argv], fds={9: read}, env={"_OCI_SYNCPIPE": "8"}
    )
    os.close(read)
    assert container.call
    assert container.call.sync.value()["data"] > 0
    container.start()
    assert container.wait_exit() == "0"
    assert container.log.text() == "from outside"


def test_preserved_descriptors_reach_an_exec(harness: Harness) -> None:
    read, write = os.pipe()
    os.write(write, b"from outside")
    os.close(write)
    session = harness.running().exec(["sh", "-c", "cat <&3"])
    argv = session.argv("--runtime-opt", "--preserve-fds", "--runtime-opt", "1")
    renumber = 'exec 8<&3 3<&9 9<&-; exec "$@"'
    session.launch(
        ["/bin/sh", "-c", renumber, "sh", *argv], fds={9: read}, env={"_OCI_SYNCPIPE": "8"}
    )
    os.close(read)
    assert session.results()[1] == 0
    assert session.log.text() == "from outside"


def test_inherited_descriptors_are_held_to_the_end_and_no_longer(harness: Harness) -> None:
    """Podman parks the sockets of published ports there: they have to be free at the exit file."""
    read, write = os.pipe()
    container = harness.container(["sleep", "1000"])
    container.run(fds={7: write})
    os.close(write)
    try:
        assert not select.select([read], [], [], 0)[0], "the monitor holds the other end"
        container.kill()
        container.wait_exit()
        assert select.select([read], [], [], 0)[0], "it was let go before the exit file"
        assert os.read(read, 1) == b""
    finally:
        os.close(read)


@pytest.mark.parametrize("options", [[], ["--exec-attach"]])
def test_the_callers_pipes_end_at_an_exec_end(harness: Harness, options: list[str]) -> None:
    read, write = os.pipe()
    session = harness.running().exec(["sh", "-c", "exit 4"])
    call = session.begin(*options, fds={7: write})
    os.close(write)
    if options:
        call.go()
        assert call.attach_pipe
        call.attach_pipe.line()
        call.go()
    assert session.results()[1] == 4
    assert select.select([read], [], [], 0)[0]
    os.close(read)
    assert call.sync.rest() == b""


def test_a_high_limit_of_descriptors_costs_no_close_calls(harness: Harness) -> None:
    strace = need_program("strace")
    container = harness.container(["true"])
    counts = harness.home / "counts"
    argv = [strace, "-f", "-c", "-e", "trace=close,close_range", "-o", str(counts)]
    limited = ["/bin/sh", "-c", 'ulimit -n 20000; exec "$@"', "sh"]
    call = container.launch([*limited, *argv, *container.create_argv("--sync")])
    assert call.sync.value(60)["data"] > 0
    container.start()
    assert call.status(60) == 0
    total = sum(
        int(m[1])
        for m in re.finditer(r"^\s*\S+\s+\S+\s+\S+\s+(\d+) .*close", counts.read_text(), re.M)
    )
    assert 0 < total < 2500, "runc's share is most of it; a loop over all numbers would be 20000"


# --- LISTEN_PID

LISTEN = 'echo "$LISTEN_PID $LISTEN_FDS $$" >&2; exit 1'


@pytest.mark.parametrize("kind", ["create", "exec"])
@pytest.mark.parametrize("asked", [True, False])
def test_listen_pid(harness: Harness, kind: str, asked: bool) -> None:
    container = harness.container(["true"])
    session = container.exec(["true"])
    container.runtime = session.runtime = harness.script("noting", LISTEN)
    options = ["--replace-listen-pid"] if asked else []
    env = {"LISTEN_PID": "12345", "LISTEN_FDS": "1"}
    if kind == "create":
        call = container.create(*options, env=env)
    else:
        call = session.begin(*options, env=env)
    listen_pid, listen_fds, own = call.sync.value()["message"].split()
    assert listen_fds == "1"
    assert listen_pid == (own if asked else "12345")


def test_listen_pid_that_is_the_monitors_becomes_the_runtimes(harness: Harness) -> None:
    container = harness.container(["true"])
    container.runtime = harness.script("noting", LISTEN)
    argv = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *container.create_argv("--sync")]
    message = container.launch(argv, env={"LISTEN_FDS": "1"}).sync.value()["message"]
    listen_pid, _, own = message.split()
    assert listen_pid == own


@pytest.mark.parametrize("value", ["abc", "0", "-3", ""])
def test_listen_pid_that_is_none_is_a_failure(harness: Harness, value: str) -> None:
    container = harness.container(["true"])
    called = harness.home / "called"
    container.runtime = harness.script("noting", f"echo >{called}; exit 1")
    env = {"LISTEN_PID": value, "LISTEN_FDS": "1"}
    answer = container.create("--replace-listen-pid", env=env).sync.value()
    assert answer["data"] == -1
    assert answer["message"]
    assert not called.exists()


# --- the environment


def test_the_environment_goes_on_unchanged(harness: Harness) -> None:
    """Python in the C locale would add LC_CTYPE to it; Podman starts monitors without LANG."""
    container = harness.container(["true"])
    container.runtime = harness.script("noting", "/usr/bin/env >&2; exit 1")
    env = {"NOTIFY_SOCKET": "/nope", "XDG_RUNTIME_DIR": "/run/user/0"}
    call = container.create(env=env)
    lines = set(call.sync.value()["message"].splitlines())
    own = {"PWD", "OLDPWD", "SHLVL", "_"}  # the shell's
    seen = {line for line in lines if line.partition("=")[0] not in own}
    assert seen == {
        f"PATH={os.environ['PATH']}",
        "_OCI_SYNCPIPE=3",
        "NOTIFY_SOCKET=/nope",
        "XDG_RUNTIME_DIR=/run/user/0",
    }


def test_the_environment_stays_out_of_the_container(harness: Harness) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["process"]["env"] = ["PATH=/bin"]

    container = harness.container(["env"], edit=edit)
    container.run(env={"SECRET": "x"})
    container.wait_exit()
    names = {line.partition("=")[0] for line in container.log.text().splitlines()}
    assert names <= {"PATH", "HOME", "SHLVL", "PWD"}


# --- permissions


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@target("2.1.6 leaves the caller's umask in force; its log is 0600")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_whatever_the_umask(harness: Harness, umask: int) -> None:
    before = Path("/dev/null").stat()
    container = harness.container(["sleep", "1000"])
    container.run(umask=umask)
    assert mode(container.directory / "attach") == 0o700
    assert mode(container.directory / "ctl") == 0o640
    assert mode(container.directory / "winsz") == 0o640
    assert mode(container.log.path) == 0o640
    container.kill()
    container.wait_exit()
    assert mode(container.exit_file) == 0o644
    assert mode(container.persist_dir / "exit") == 0o644
    assert mode(container.monitor_pidfile) & 0o022 == 0
    after = Path("/dev/null").stat()
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)


@pytest.mark.parametrize("name", ["ctl", "winsz", "attach"])
def test_a_planted_link_is_replaced_and_not_followed(harness: Harness, name: str) -> None:
    container = harness.container(["sh", "-c", "exit 3"])
    victim = harness.home / "victim"
    victim.write_text("precious")
    (container.directory / name).symlink_to(victim)
    container.run()
    assert container.wait_exit() == "3"
    assert victim.read_text() == "precious"


def test_planted_links_for_exit_files_are_replaced(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "exit 3"])
    victim = harness.home / "victim"
    victim.write_text("precious")
    container.exit_file.symlink_to(victim)
    (container.persist_dir / "exit").symlink_to(victim)
    container.run()
    wait_until(lambda: not container.exit_file.is_symlink(), what="the exit file")
    assert container.exit_file.read_text() == "3"
    assert (container.persist_dir / "exit").read_text() == "3"
    assert victim.read_text() == "precious"


@target("2.1.6 opens the new log through a link")
def test_a_planted_link_for_the_new_log_is_not_followed(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "seq 1 2000; exit 3"])
    victim = harness.home / "victim"
    victim.write_text("precious")
    container.log.path.with_name("ctr.log.tmp").symlink_to(victim)
    container.run("--log-size-max", "4000")
    assert container.wait_exit() == "3"
    assert victim.read_text() == "precious"


def test_another_user_may_reopen_the_streams(harness: Harness) -> None:
    """A process that is not root may open /dev/stdout and /dev/stderr, which are the pipes."""

    def edit(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000}

    command = "echo a >/dev/stdout; echo b >/dev/stderr"
    container = harness.running(["sh", "-c", command], edit=edit)
    assert container.wait_exit() == "0"
    assert container.log.text() == "a\n"
    assert container.log.text("stderr") == "b\n"


def test_oom_score_is_no_error(harness: Harness) -> None:
    """Where the score can't be set, not a word is said about it."""
    container = harness.container(["true"])
    container.run()
    container.wait_exit()
    assert container.call
    assert container.call.stderr == ""
    assert container.call.stdout == ""
    score = subprocess.run(["cat", "/proc/self/oom_score_adj"], capture_output=True, check=True)
    assert score.stdout == Path("/proc/self/oom_score_adj").read_bytes()


def test_an_oom_score_that_cannot_be_set_is_a_debug_message(harness: Harness) -> None:
    container = harness.container(["true"])
    container.run("--log-level", "debug")
    assert container.wait_exit() == "0"
    assert container.call
    said = "failed to write to /proc/self/oom_score_adj: Permission denied" in container.call.stderr
    assert said is not may_be_protected()


def may_be_protected() -> bool:
    """Whether a process of ours can have the score that monitors want."""
    word = "echo -1000 >/proc/self/oom_score_adj"
    return subprocess.run(["sh", "-c", word], stderr=subprocess.DEVNULL).returncode == 0
