"""What goes over the sync and attach pipes, byte for byte, in every situation and both API versions."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.call import Call
from tests.helpers.harness import Container, Harness, target
from tests.helpers.need import need_program
from tests.helpers.spawning import spawn
from tests.helpers.waiting import wait_until

SLEEP = ("sleep", "1000")
both_apis = pytest.mark.parametrize("api", [0, 1])
both_kinds = pytest.mark.parametrize("kind", ["create", "exec"])


def key(api: int, kind: str) -> str:
    return "data" if api else "pid" if kind == "create" else "exit_code"


def begin(harness: Harness, runtime: str | Path, api: int, kind: str, *options: str) -> Call:
    """A create, or an exec, with a stand-in for the runtime; no container is needed for either."""
    container = harness.container(["true"])
    session = container if kind == "create" else container.exec(["true"])
    session.runtime, session.api = runtime, api
    if isinstance(session, Container):
        return session.create(*options)
    return session.begin(*options)


# --- all goes well


@both_apis
def test_create_reports_the_pid_and_then_ends(harness: Harness, api: int) -> None:
    container = harness.container(["sh", "-c", "exit 3"])
    container.api = api
    call = container.create()
    assert call.status() == 0
    assert call.sync.line() == b'{"%s": %d}\n' % (
        key(api, "create").encode(),
        container.container_pid(),
    )
    assert call.sync.silent()
    container.start()
    assert container.wait_exit() == "3"
    assert call.sync.rest() == b""


@both_apis
@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137)])
def test_exec_reports_its_code(harness: Harness, api: int, command: str, code: int) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", command])
    session.api = api
    call = session.begin()
    if api:
        assert call.sync.line() == b'{"data": %d}\n' % session.container_pid()
    assert call.sync.rest() == b'{"%s": %d}\n' % (key(api, "exec").encode(), code)
    assert len(call.sync.writes) == 1 + api, "one write for each message"
    assert session.wait_exit() == str(code)
    assert call.status() == 0


def test_version_0_is_silent_until_an_exec_has_ended(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sleep", "500"])
    session.api = 0
    call = session.begin()
    pid = wait_until(session.container_pid_if_known, what="the exec's pid file")
    assert call.sync.silent()
    os.kill(pid, 9)
    assert call.sync.rest() == b'{"exit_code": 137}\n'


def test_exec_with_attach_goes_step_by_step(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "echo early; read x; echo got:$x; exit 4"])
    call = session.begin("--exec-attach", "-i")
    assert call.attach_pipe
    assert call.attach_pipe.silent()
    assert not (session.directory / "attach").exists()
    call.go()
    assert call.attach_pipe.line() == b'{"data": 0}\n'
    assert (session.directory / "ctl").is_fifo()
    assert (session.directory / "winsz").is_fifo()
    client = session.attach(accepted=False)
    assert call.status() == 0
    assert call.sync.silent()
    assert not session.pidfile.exists(), "the command waits for the second byte"
    call.go()
    assert call.sync.line() == b'{"data": %d}\n' % session.container_pid()
    client.read_until(b"early\n")
    client.send(b"word\n")
    client.read_to_end()
    assert client.stream(2) == b"early\ngot:word\n"
    assert call.attach_pipe.rest() == b""
    assert call.sync.rest() == b'{"data": 4}\n'
    assert session.exit_file.read_text() == "4"


def test_a_closed_start_pipe_lets_an_exec_with_attach_go_on(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["true"])
    call = session.begin("--exec-attach")
    call.go()
    assert call.attach_pipe
    assert call.attach_pipe.value() == {"data": 0}
    assert call.start_fd is not None
    os.close(call.start_fd)
    call.start_fd = None
    assert session.results()[1] == 0


# --- time-outs


@both_apis
def test_exec_timeout(harness: Harness, api: int) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "echo before; sleep 600"])
    session.api = api
    call = session.begin("--timeout", "1")
    if api:
        assert call.sync.value() == {"data": session.container_pid()}
    expected = b'{"%s": -1, "message": "command timed out"}\n' % key(api, "exec").encode()
    assert call.sync.rest() == expected
    assert session.exit_file.read_text() == "-1"
    assert session.log.text() == "before\n"


def test_create_timeout_ends_the_pipe(harness: Harness) -> None:
    container = harness.container(SLEEP)
    pid = container.run("-T", "1")
    assert container.call
    assert container.call.sync.rest() == b""
    assert container.wait_exit() == "-1"
    assert (container.persist_dir / "exit").read_text() == "-1"
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the container's end")


# --- the runtime fails


@both_apis
@both_kinds
def test_runtime_fails_with_a_message(harness: Harness, api: int, kind: str) -> None:
    runtime = harness.script("failing", r'printf "boom \"x\" \\\\ \ttab\n" >&2; exit 1')
    call = begin(harness, runtime, api, kind)
    expected = rb'{"%s": -1, "message": "boom \"x\" \\ \ttab\n"}' % key(api, kind).encode()
    assert call.sync.rest() == expected + b"\n"
    assert call.status() == 0


@both_kinds
@target("2.1.6 does not escape the slash")
def test_a_slash_is_escaped(harness: Harness, kind: str) -> None:
    runtime = harness.script("failing", "echo a/b >&2; exit 1")
    call = begin(harness, runtime, 1, kind)
    assert call.sync.rest() == b'{"data": -1, "message": "a\\/b\\n"}\n'


SILENT = {
    "exits 1": "exit 1",
    "killed": "kill -9 $$",
    "no pid file": "exit 0",
    "empty pid file": ": >PIDFILE",
    "garbage": "echo abc >PIDFILE",
    "zero": "echo 0 >PIDFILE",
    "negative": "echo -5 >PIDFILE",
    "minus one": "echo -1 >PIDFILE; exit 1",
}
FIND_PIDFILE = 'while [ "$1" != --pid-file ]; do shift; done; p=$2; '


@pytest.mark.parametrize(("api", "kind"), [(1, "create"), (0, "exec")])
@pytest.mark.parametrize("how", list(SILENT))
@target("2.1.6 closes the pipe without a word, or takes the garbage for a pid")
def test_runtime_fails_without_a_word(harness: Harness, api: int, kind: str, how: str) -> None:
    runtime = harness.script("failing", FIND_PIDFILE + SILENT[how].replace("PIDFILE", '"$p"'))
    call = begin(harness, runtime, api, kind)
    value = call.sync.value()
    assert value[key(api, kind)] == -1
    assert value.get("message"), "an engine shows this to its user"
    assert call.sync.rest() == b""
    assert len(call.sync.writes) == 1


@both_apis
@both_kinds
@target("2.1.6 closes the pipe without a word")
def test_runtime_cannot_be_executed(harness: Harness, api: int, kind: str) -> None:
    folder = harness.home / "folder"  # access(X_OK) is content with it
    folder.mkdir()
    call = begin(harness, folder, api, kind)
    value = call.sync.value()
    assert value[key(api, kind)] == -1
    assert call.sync.rest() == b""


@both_apis
@both_kinds
@target("2.1.6 closes the pipe without a word")
def test_no_terminal_arrives(harness: Harness, api: int, kind: str) -> None:
    call = begin(harness, harness.script("lazy", "exit 0"), api, kind, "-t")
    value = call.sync.value()
    assert value == {key(api, kind): -1, "message": "Runtime did not set up terminal"}
    assert call.sync.rest() == b""


@both_kinds
@pytest.mark.parametrize("terminal", [False, True])
def test_a_failure_with_sync_is_the_status(harness: Harness, kind: str, terminal: bool) -> None:
    options = ["--sync", *(["-t"] if terminal else [])]
    call = begin(harness, harness.script("failing", "echo why >&2; exit 3"), 1, kind, *options)
    assert call.sync.value() == {"data": -1, "message": "why\n"}
    assert call.status() == 1


@both_kinds
@pytest.mark.parametrize("terminal", [False, True])
@target("2.1.6 does not read while the runtime runs: above 64 KiB both wait for ever")
@pytest.mark.parametrize("stream", [1, 2])
def test_a_talkative_runtime_is_read(
    harness: Harness, kind: str, terminal: bool, stream: int
) -> None:
    runtime = harness.script(
        "big",
        f"echo FIRST >&2; head -c 300000 /dev/zero | tr '\\0' Q >&{stream}; echo LAST >&2; exit 1",
    )
    call = begin(harness, runtime, 1, kind, *(["-t"] if terminal else []))
    value = call.sync.value()
    assert value["data"] == -1
    assert value["message"].startswith("FIRST")
    assert value["message"].endswith("LAST\n"), "the reason is often the last line"
    assert len(value["message"]) <= 8191
    assert call.sync.rest() == b""


@target("2.1.6 waits for the end of the runtime's stderr")
@both_kinds
def test_a_grandchild_that_holds_stderr_delays_nothing(harness: Harness, kind: str) -> None:
    runtime = harness.script("leaky", f"(sleep 100 & echo $! >{harness.home}/holder); exit 1")
    call = begin(harness, runtime, 1, kind)
    holder = wait_until(lambda: (harness.home / "holder").read_text(), what="the grandchild")
    try:
        assert call.sync.value(10)["data"] == -1
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have been ended as a leftover
            os.kill(int(holder), 9)


@both_kinds
@target("2.1.6 sends bytes that are no UTF-8, and 0x1f, as they are")
@pytest.mark.parametrize(
    "text",
    [
        b'bad "quote" back\\slash\ttab\nnewline \x1b[31mred\x07 \xe2\x80\xa8 bad \xff\xfe cut \xc3',
        bytes(range(1, 256)),
        b"before\0after",
        b"\n\n\n",
        b"\xc3\xa4" * 40000,
        b"\0",
    ],
    ids=["nasty", "every byte", "NUL", "newlines", "cut in a character", "only NUL"],
)
def test_a_message_is_json_whatever_the_runtime_says(
    harness: Harness, kind: str, text: bytes
) -> None:
    said = harness.home / "said"
    said.write_bytes(text)
    call = begin(harness, harness.script("nasty", f"cat {said} >&2; exit 1"), 1, kind)
    line = call.sync.line()
    value = json.loads(line.decode("utf-8"))
    assert value["data"] == -1
    said_text = text.partition(b"\0")[0]
    if 0 < len(said_text) <= 8191:
        assert value["message"] == said_text.decode(errors="replace")
    elif said_text:
        assert value["message"].startswith("\xe4" * 1000)
        assert len(value["message"].encode()) <= 8191 + 6  # two cut characters at most
    assert call.sync.rest() == b""


# --- pid files that lie


def test_a_stale_pid_file_is_never_believed(harness: Harness) -> None:
    bystander = spawn(["/bin/sleep", "1000"], env={}, fds={})
    try:
        container = harness.container(["true"])
        session = container.exec(["true"])
        session.runtime = harness.script("failing", "echo no >&2; exit 1")
        for each in (container, session):
            each.pidfile.write_text(str(bystander.pid))
        container.runtime = session.runtime
        overdue = partial(session.begin, "-T", "1")
        for begin in (container.create, session.begin, overdue):  # one after the other: one bundle
            call = begin()
            assert call.sync.value() == {"data": -1, "message": "no\n"}
            assert call.sync.rest() == b""
        assert bystander.running
    finally:
        bystander.end()


@target("2.1.6 ends without a message where another one was quicker")
def test_execs_of_one_bundle_at_the_same_time(harness: Harness) -> None:
    """They compete for the names of sockets and fifos; each has its own answer all the same."""
    session = harness.container(["true"]).exec(["true"])
    session.runtime = harness.script("failing", "echo no >&2; exit 1")
    for _ in range(4):
        for call in [session.begin() for _ in range(8)]:
            assert call.sync.value() == {"data": -1, "message": "no\n"}


@both_apis
def test_an_empty_pid_file_made_beforehand_hides_no_failure(harness: Harness, api: int) -> None:
    session = harness.running(SLEEP).exec(["/nope"])
    session.api = api
    session.pidfile.touch()
    call = session.begin()
    value = call.sync.value()
    assert value[key(api, "exec")] == -1
    assert "no such file or directory" in value["message"]
    assert call.sync.rest() == b""


@target("2.1.6 goes by the runtime's status")
def test_an_exec_that_has_begun_outranks_the_runtimes_status(harness: Harness) -> None:
    session = harness.container(["true"]).exec(["true"])
    session.runtime = harness.script(
        "grumpy", FIND_PIDFILE + '(sleep 0.3; exit 5) & echo $! >"$p"; echo grump >&2; exit 1'
    )
    call = session.begin()
    assert call.sync.value()["data"] == session.container_pid()
    assert call.sync.rest() == b'{"data": 5}\n'


# --- what runc says


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("command", "reason"),
    [("/nope", "no such file or directory"), ("/etc", "permission denied")],
)
@both_kinds
def test_a_command_that_cannot_run(
    harness: Harness, kind: str, terminal: bool, command: str, reason: str
) -> None:
    if kind == "create":
        call = harness.container([command], terminal=terminal).create()
    else:
        call = harness.running(SLEEP).exec([command], terminal=terminal).begin()
    value = call.sync.value()
    assert value["data"] == -1
    assert f'exec: "{command}"' in value["message"].replace("\\", "")
    assert reason in value["message"]
    assert call.sync.rest() == b""


def test_an_error_of_the_bundle_is_told_with_a_terminal_too(harness: Harness) -> None:
    def edit(config: dict[str, object]) -> None:
        config["process"]["cwd"] = "relative"  # type: ignore[index]

    value = harness.container(["true"], terminal=True, edit=edit).create().sync.value()
    assert value["data"] == -1
    assert "relative" in value["message"] or "cwd" in value["message"].lower()


# --- the caller and its pipes


@target("2.1.6 exits, and leaves the container without a monitor")
def test_nobody_reads_the_sync_pipe(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "exit 3"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.close()
    read, write = os.pipe()
    os.close(read)
    try:
        call = container.create(fds={6: theirs.fileno()}, env={"_OCI_SYNCPIPE": "6"})
        assert call.status() == 0
        wait_until(lambda: container.state() == "created", what="the container")
        container.start()
        assert container.wait_exit() == "3"
        running = harness.running(SLEEP)
        session = running.exec(["sh", "-c", "exit 4"])
        assert session.begin(fds={6: write}, env={"_OCI_SYNCPIPE": "6"}).status() == 0
        assert session.wait_exit() == "4"
    finally:
        theirs.close()
        os.close(write)


def test_a_caller_that_leaves_after_the_pid_hurts_no_exec(harness: Harness) -> None:
    session = harness.running(SLEEP).exec(["sh", "-c", "read x; exit 6"])
    call = session.begin("-i")
    assert call.sync.value()["data"] > 0
    call.sync.close()
    client = session.attach()
    client.send(b"go\n")
    assert session.wait_exit() == "6"
    session.wait_monitor_gone()


def test_without_a_sync_pipe(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "exit 9"])
    argv = container.create_argv()
    call = container.launch(["/usr/bin/env", "-u", "_OCI_SYNCPIPE", *argv])
    assert call.status() == 0
    wait_until(lambda: container.state() == "created", what="the container")
    container.start()
    assert container.wait_exit() == "9"


@target("2.1.6 takes the empty text for descriptor 0")
def test_an_empty_variable_names_no_pipe(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "exit 9"])
    call = container.create("--sync", env={"_OCI_SYNCPIPE": "", "_OCI_STARTPIPE": ""})
    wait_until(lambda: container.state() == "created", what="the container")
    container.start()
    assert call.status() == 9


@pytest.mark.parametrize("value", ["abc", "77"])
def test_a_sync_pipe_that_is_none_is_an_error(harness: Harness, value: str) -> None:
    container = harness.container(["true"])
    call = container.create("--sync", env={"_OCI_SYNCPIPE": value})
    assert call.status() == 1
    assert call.stderr
    assert not container.pidfile.exists()


def test_no_process_to_be_had_is_an_error(harness: Harness) -> None:
    options = '-qq -o /dev/null -e inject=clone,fork,vfork:error=EAGAIN:when=1 "$@"'
    failing = harness.script("failing", f"exec {need_program('strace')} {options}")
    container = harness.container(["true"])
    call = container.launch([str(failing), *container.create_argv()])
    assert call.status() == 1
    assert call.stderr.startswith("[conmon:e]: Failed to fork the create command")
    assert "Resource temporarily unavailable" in call.stderr
    assert call.stderr.count("\n") == 1
    assert not container.pidfile.exists()


def test_exec_attach_without_an_attach_pipe_is_an_error(harness: Harness) -> None:
    session = harness.container(["true"]).exec(["true"])
    call = session.launch(session.argv("--exec-attach", "--sync"))
    assert call.status() == 1
    assert "_OCI_ATTACHPIPE was not" in call.stderr


# --- the start pipe


def test_nothing_happens_before_the_start_byte(harness: Harness) -> None:
    container = harness.container(["true"])
    called = harness.home / "called"
    container.runtime = harness.script("noting", f"echo >{called}; echo no >&2; exit 1")
    call = container.create(start_pipe=True)
    wait_until(lambda: call.process.asleep(), what="the monitor's wait for the byte")
    assert not called.exists()
    assert not container.monitor_pidfile.exists()
    assert call.sync.silent()
    call.go()
    assert call.status() == 0
    assert call.sync.value()["data"] == -1
    assert called.exists()


def test_a_start_pipe_that_ends_lets_create_go_on(harness: Harness) -> None:
    container = harness.container(["sh", "-c", "exit 2"])
    call = container.create(start_pipe=True)
    assert call.start_fd is not None
    os.close(call.start_fd)
    call.start_fd = None
    assert call.sync.value()["data"] > 0
    container.start()
    assert container.wait_exit() == "2"


@pytest.mark.parametrize("value", ["abc", "77"])
def test_a_start_pipe_that_is_none_is_an_error(harness: Harness, value: str) -> None:
    container = harness.container(["true"])
    call = container.create(env={"_OCI_STARTPIPE": value})
    assert call.status() == 1
    assert call.stderr
    assert not container.pidfile.exists()


@target("conmon says it to standard error alone, and ends the pipe")
@pytest.mark.parametrize("what", ["no descriptor", "a directory", "no attach pipe"])
def test_why_there_will_be_no_runtime_is_told(harness: Harness, what: str) -> None:
    container = harness.container(["true"])
    directory = os.open("/", os.O_RDONLY)
    try:
        if what == "no attach pipe":
            session = container.exec(["true"])
            call, reason = session.launch(session.argv("--exec-attach")), "_OCI_ATTACHPIPE"
        else:
            number, reason = ("77", "not open") if what == "no descriptor" else ("9", "directory")
            call = container.create(env={"_OCI_STARTPIPE": number}, fds={9: directory})
    finally:
        os.close(directory)
    value = call.sync.value()
    assert value["data"] == -1
    assert reason in value["message"]
    assert call.sync.rest() == b""
    assert not container.pidfile.exists()


# --- the order at the end of a failure


@target("2.1.6 gives nothing to wait for")
@both_kinds
def test_the_pipe_ends_before_the_exit_command_runs(harness: Harness, kind: str) -> None:
    hold = harness.home / "hold"
    os.mkfifo(hold)
    command = harness.script("last", f"read x <{hold}")
    options = ("--exit-command", str(command))
    call = begin(harness, harness.script("failing", "exit 1"), 1, kind, *options)
    assert call.sync.value()["data"] == -1
    assert call.sync.rest() == b"", "podman would wait for this end, and the command for podman"
    wait_until(lambda: release(hold), what="the exit command")


def release(fifo: Path) -> bool:
    """Lets the reader of the FIFO go on, once there is one."""
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"go\n")
    os.close(fd)
    return True
