"""A container's life by the client's operations, with real runc, through both monitors."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyconmon_client import (
    AttachError,
    Container,
    ContainerNotFound,
    ContainerStateError,
    CreateError,
    CreateTimeout,
    ExecStartError,
    ExitFileError,
    MonitorError,
    NotRunningError,
    Runtime,
    RuntimeCommandError,
    creation,
    spawn,
)
from tests.helpers.bundles import no_pid_namespace
from tests.helpers.descriptors import descriptors
from tests.helpers.monitors import monitor
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Container]


def children() -> set[int]:
    """Our children, zombies too."""
    return {
        int(pid)
        for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    }


def test_a_whole_life(runtime: Runtime, make: Make) -> None:
    gc.collect()  # what earlier tests left to the collector does not count
    before, open_before = children(), descriptors()
    container = make("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1; done")
    with pytest.raises(ContainerStateError):
        _ = container.net_ns_path
    runtime.create_container(container)
    state = runtime.update_status(container)
    assert (state.status, state.id, state.monitored) == ("created", container.name, True)
    created = state.created
    assert created is not None and created.tzinfo is not None
    assert container.net_ns_path == f"/proc/{state.pid}/ns/net"
    runtime.start_container(container)
    state = runtime.update_status(container)
    assert state.status == "running"
    started = state.started
    assert started is not None and started >= created
    assert runtime.exec_sync(container, ["echo", "hello"]).stdout == b"hello\n"
    runtime.stop_container(container, timeout=30)
    state = runtime.update_status(container)
    assert (state.status, state.exit_code, state.exit_code_known) == ("stopped", 7, True)
    assert state.finished is not None and state.finished >= started
    assert state.finished.timestamp() == pytest.approx(
        os.stat(runtime.exit_file(container)).st_ctime, abs=0.01
    )
    assert runtime.wait(container, timeout=0) == 7
    assert runtime.container_status(container) is state
    runtime.stop_container(container)
    runtime.delete_container(container)
    with pytest.raises(ContainerNotFound, match="does not exist"):
        runtime.update_status(container)
    assert children() == before, "a process or zombie is left"
    assert descriptors() <= open_before
    assert sorted(os.listdir(container.bundle_path)) == ["config.json", "exit"]
    assert runtime.list() == []


def test_stop_kills_what_ignores_the_signal(runtime: Runtime, running: Container) -> None:
    """The first process of a pid namespace has no default action for TERM."""
    runtime.stop_container(running, timeout=0.2)
    assert runtime.update_status(running).exit_code == 128 + signal.SIGKILL


def test_stop_needs_a_container(runtime: Runtime, make: Make) -> None:
    with pytest.raises(ContainerNotFound):
        runtime.stop_container(make("true"))


@pytest.mark.parametrize("code", [0, 255])
def test_wait_gives_the_exit_code(runtime: Runtime, make: Make, code: int) -> None:
    container = make("sh", "-c", f"exit {code}")
    runtime.create_container(container)
    runtime.start_container(container)
    assert runtime.wait(container, timeout=30) == code


def test_death_by_signal(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "kill -TERM $$", edit=no_pid_namespace)
    runtime.create_container(container)
    runtime.start_container(container)
    assert runtime.wait(container, timeout=30) == 128 + signal.SIGTERM


def test_a_row_of_containers_that_end_at_once(runtime: Runtime, make: Make) -> None:
    codes = list(range(1, 11))
    for code in codes:
        container = make("sh", "-c", f"exit {code}")
        runtime.create_container(container)
        runtime.start_container(container)
        # Alternately the two ways to learn it.
        if code % 2:
            assert runtime.wait(container, timeout=30) == code
        else:
            wait_until(lambda c=container: runtime.update_status(c).status == "stopped")  # type: ignore[misc]
            assert container.state is not None and container.state.exit_code == code
        runtime.delete_container(container)


def test_killed_between_create_and_start(runtime: Runtime, make: Make) -> None:
    container = make("true")
    runtime.create_container(container)
    runtime.kill_container(container, "KILL")
    assert runtime.wait(container, timeout=30) == 128 + signal.SIGKILL
    with pytest.raises(RuntimeCommandError):
        runtime.start_container(container)


def test_output_goes_where_stdio_says(runtime: Runtime, make: Make, tmp_path: Path) -> None:
    container = make("sh", "-c", "cat; echo err >&2")
    (tmp_path / "in").write_bytes(b"input\n")
    with (
        open(tmp_path / "in", "rb") as source,
        open(tmp_path / "out", "wb") as out,
        open(tmp_path / "err", "wb") as err,
    ):
        stdio = (source.fileno(), out.fileno(), err.fileno())
        runtime.create_container(container, stdio=stdio)
    runtime.start_container(container)
    assert runtime.wait(container, timeout=30) == 0
    assert (tmp_path / "out").read_bytes() == b"input\n"
    assert (tmp_path / "err").read_bytes() == b"err\n"


@pytest.mark.parametrize("log", [False, True])
def test_create_carries_the_runtimes_reason(
    runtime: Runtime, make: Make, log: bool, tmp_path: Path
) -> None:
    before = children()
    container = make("/nope", log=log)
    with open(tmp_path / "stderr", "wb") as stderr:
        stdio = None if log else (-1, stderr.fileno(), stderr.fileno())
        with pytest.raises(CreateError, match=r"/nope.*no such file or directory"):
            runtime.create_container(container, stdio=stdio)
    assert children() == before
    with pytest.raises(ContainerNotFound):
        runtime.update_status(container)
    assert runtime.list() == []


@pytest.mark.parametrize("log", [False, True])
def test_a_runtime_that_fails_without_a_word(monitor_path: Path, make: Make, log: bool) -> None:
    silent = Runtime("/bin/false", "", monitor_path)
    container = make("true", log=log)
    with pytest.raises(CreateError, match=r"could not create container c0: \S+"):
        silent.create_container(container, stdio=None if log else (-1, -1, -1))
    with pytest.raises(ExecStartError, match=r"could not run 'true' in container c0: \S+"):
        silent.exec_sync(container, ["true"])


def test_a_runtime_that_says_odd_bytes(monitor_path: Path, make: Make, tmp_path: Path) -> None:
    odd = tmp_path / "odd-runtime"
    odd.write_text(
        "#!/bin/sh\n[ $1 = state ] && exit 1\n"
        "printf 'bad \"quote\" back\\\\slash\\ttab\\033[31mred bad \\377\\376 cut \\303' >&2\nexit 1\n"
    )
    odd.chmod(0o755)
    with pytest.raises(CreateError) as caught:
        Runtime(odd, "", monitor_path).create_container(make("true", log=True))
    assert 'bad "quote" back\\slash\ttab\x1b[31mred bad \ufffd\ufffd cut \ufffd' in str(
        caught.value
    )


def test_create_needs_a_bundle_and_a_monitor(runc: Path, runtime: Runtime, tmp_path: Path) -> None:
    nowhere = Container("x", "x", str(tmp_path / "nowhere"))
    with pytest.raises(CreateError, match=r"no bundle .*nowhere"):
        runtime.create_container(nowhere)
    nothing = Runtime(runc, "", tmp_path / "no-monitor", dialect="classic")
    with pytest.raises(MonitorError, match=r"no-monitor.*No such file"):
        nothing.create_container(Container("x", "x", str(tmp_path)))
    with pytest.raises(MonitorError, match=r"no-monitor.*No such file"):
        Runtime(runc, "", tmp_path / "no-monitor").create_container(
            Container("x", "x", str(tmp_path))
        )


def test_two_containers_of_one_name(runtime: Runtime, running: Container, make: Make) -> None:
    twin = Container(running.id, running.name, make("true").bundle_path)
    with pytest.raises(CreateError):
        runtime.create_container(twin, stdio=(-1, -1, -1))
    assert runtime.update_status(running).status == "running", "the first one must not suffer"


def test_create_time_limit(
    tmp_path: Path, make: Make, monitor_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that hangs: everything the monitor had started ends with it."""
    monkeypatch.setattr(creation, "FINISHING_SECONDS", 0.2)
    pids = tmp_path / "pids"
    hanging = tmp_path / "hanging-runtime"
    hanging.write_text(
        f"#!/bin/sh\n[ $1 = state ] && exit 1\necho $$ $PPID >{pids}\nsleep 600 & wait\n"
    )
    hanging.chmod(0o755)
    before = children()
    slow = Runtime(hanging, "", monitor_path)
    with pytest.raises(CreateTimeout, match="no pid within"):
        slow.create_container(make("true"), timeout=2, stdio=(-1, -1, -1))
    assert children() == before
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: gone(int(pid)), what=f"the end of {pid}")  # type: ignore[misc]


@pytest.mark.parametrize("how", ["late", "interrupted"])
def test_a_create_that_is_given_up_leaves_nothing(
    how: str, runtime: Runtime, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime comes to its end, so that all it has made is known, and then deleted."""
    begun, groups = tmp_path / "begun", tmp_path / "groups"
    name = f"pyconmon-test-{os.getpid()}"
    slow = tmp_path / "slow-runtime"
    slow.write_text(
        f"""#!/bin/sh
        case " $* " in *" create "*)
            touch {begun}; sleep 1; {runtime.path} "$@" || exit
            ls -d /sys/fs/cgroup/{name} /sys/fs/cgroup/*/{name} >{groups} 2>/dev/null; exit 0
        esac
        exec {runtime.path} "$@"
        """
    )
    slow.chmod(0o755)
    monkeypatch.setattr(creation, "FINISHING_SECONDS", 60.0)
    monkeypatch.setattr(creation, "LEAVING_SECONDS", 60.0)
    before = children()
    client = Runtime(slow, tmp_path / "containers", runtime.conmon_path)
    container = make("true", edit=lambda config: config["linux"].update(cgroupsPath=f"/{name}"))
    if how == "late":
        with pytest.raises(CreateTimeout, match="no pid within"):
            client.create_container(container, stdio=(-1, -1, -1), timeout=0.3)
    else:
        listen, calls = creation.Conversation.pid, list[float]()

        def interrupt(conversation: creation.Conversation, seconds: float) -> int:
            calls.append(seconds)
            if len(calls) > 1:
                return listen(conversation, seconds)
            wait_until(begun.exists, what="the runtime's start")
            raise KeyboardInterrupt

        monkeypatch.setattr(creation.Conversation, "pid", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.create_container(container, stdio=(-1, -1, -1))
    with pytest.raises(ContainerNotFound):
        client.update_status(container)
    assert not [group for group in groups.read_text().split() if os.path.exists(group)]

    def all_reaped() -> bool:
        spawn.reap()
        return children() == before

    wait_until(all_reaped, what="the end of all processes")
    assert client.list() == []


def test_a_foreign_exit_file_is_named(runtime: Runtime, make: Make) -> None:
    container = make("true")
    runtime.create_container(container)
    runtime.start_container(container)
    runtime.wait(container, timeout=30)
    for content in (b"", b"12x", b"7\n", b"\xff"):
        Path(runtime.exit_file(container)).write_bytes(content)
        with pytest.raises(ExitFileError, match=str(runtime.exit_file(container))):
            runtime.update_status(container)


def test_a_stale_exit_file_is_not_believed(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "sleep 0.2; exit 4")
    Path(runtime.exit_file(container)).write_text("99")
    runtime.create_container(container)
    runtime.start_container(container)
    assert runtime.wait(container, timeout=30) == 4


def test_a_block_cleans_up_after_an_error(runtime: Runtime, make: Make) -> None:
    container = make("sleep", "600")
    with pytest.raises(ZeroDivisionError), runtime.running(container, stdio=(-1, -1, -1)):
        assert runtime.update_status(container).status == "running"
        raise ZeroDivisionError
    with pytest.raises(ContainerNotFound):
        runtime.update_status(container)
    assert runtime.list() == []


def test_terminal_containers(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "stty size; read x; echo got $x; exit 3", terminal=True, log=True)
    runtime.create_container(container, stdin=True)
    with runtime.attach(container) as attachment:
        runtime.resize(container, 40, 90)
        runtime.start_container(container)
        attachment.send(b"word\n")
        text = b"".join(piece.data for piece in attachment)
    assert runtime.wait(container, timeout=30) == 3
    assert b"got word\r\n" in text
    assert b"".join(line.data for line in runtime.logs(container)).endswith(b"got word\r\n")


def test_a_dead_monitor_does_not_hang_anybody(runtime: Runtime, make: Make) -> None:
    container = make("sleep", "600", log=True)
    calls: list[Callable[[], object]] = [
        lambda: runtime.attach(container),
        lambda: runtime.resize(container, 10, 10),
        lambda: runtime.reopen_logs(container),
    ]

    def refused() -> None:
        for call in calls:
            begun = time.monotonic()
            with pytest.raises((NotRunningError, AttachError)):
                call()
            assert time.monotonic() - begun < 5  # a second, on a machine that is not overloaded

    refused()
    runtime.create_container(container)
    runtime.start_container(container)
    runtime.stop_container(container, timeout=0)
    runtime.wait(container, timeout=30)
    assert container.monitor is not None
    monitor = container.monitor
    wait_until(lambda: not monitor.alive(), what="the monitor's end")
    refused()


def test_classic_terminal(runc: Path, make: Make, tmp_path: Path) -> None:
    """Without a log the monitor copies between the terminal and the caller's stdio."""
    classic = Runtime(runc, "", monitor("pyconmon"), dialect="classic")
    container = make("sh", "-c", "tty; exec sleep 600", terminal=True)
    with open(tmp_path / "out", "w+b") as out:
        classic.create_container(container, stdio=(-1, out.fileno(), out.fileno()))
    classic.start_container(container)
    wait_until(lambda: b"/dev/pts" in (tmp_path / "out").read_bytes(), what="its output")
    result = classic.exec_sync(container, ["sh", "-c", "tty; echo err >&2; exit 3"], check=False)
    assert result.stdout.endswith(b"\r\nerr\r\n")
    assert result.stdout.startswith(b"/dev/pts/")
    assert result.exit_code == 3
    classic.stop_container(container, timeout=0)
    assert classic.wait(container, timeout=60) == 137


def test_bare_names_and_relative_paths(
    make: Make, monitor_path: Path, runc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{runc.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(runc.parent)
    runtime = Runtime(runc.name, "", os.path.relpath(monitor_path))
    assert runtime.path == str(runc)
    made = make("sh", "-c", "exit 2")
    container = Container("c0", "c0", os.path.relpath(made.bundle_path))
    assert container.bundle_path == made.bundle_path
    runtime.create_container(container)
    runtime.start_container(container)
    assert runtime.wait(container, timeout=60) == 2


def test_a_monitor_that_is_killed_while_creating(
    make: Make, monitor_path: Path, tmp_path: Path
) -> None:
    """What it has started ends with it; a created container carries no trace of how that is known."""
    pids = tmp_path / "pids"
    killing = tmp_path / "killing-runtime"
    killing.write_text(
        "#!/bin/sh\n[ $1 = state ] && exit 1\nsetsid sleep 600 >/dev/null 2>&1 </dev/null &\n"
        f"echo $! >{pids}; kill -KILL $PPID; sleep 600\n"
    )
    killing.chmod(0o755)
    with pytest.raises(CreateError):
        Runtime(killing, "", monitor_path).create_container(make("true"), stdio=(-1, -1, -1))
    for pid in pids.read_text().split():
        assert gone(int(pid))


def test_no_mark_stays(runtime: Runtime, running: Container) -> None:
    assert running.init is not None and running.monitor is not None
    for pid in (running.init.pid, running.monitor.pid):
        assert "Max file locks            unlimited" in Path(f"/proc/{pid}/limits").read_text()


def test_cpu_percent_is_that_since_the_call_before(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "while :; do :; done")
    for _ in range(2):  # the second time it is another one of that name
        with runtime.running(container, stdio=(-1, -1, -1)):
            assert runtime.stats(container).cpu_percent is None
            again = runtime.reload(container.name)
            assert runtime.stats(again).cpu_percent is not None
            wait_until(lambda: (runtime.stats(container).cpu_percent or 0) > 0, what="CPU time")


@pytest.mark.parametrize("leave_open", [True, False])
def test_input_of_several_clients(runtime: Runtime, make: Make, leave_open: bool) -> None:
    container = make("cat", log=True)
    with runtime.running(container, stdin=True, leave_stdin_open=leave_open):
        for word in (b"one\n", b"two\n") if leave_open else (b"one\n",):
            with runtime.attach(container) as attachment:
                attachment.send(word)
                answer = attachment.recv(30)
                assert answer is not None and answer.data == word
        if leave_open:
            assert runtime.update_status(container).status == "running"
        else:
            assert runtime.wait(container, timeout=30) == 0


def test_logs_events_and_stats(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "echo one; echo two >&2; exec sleep 600", log=True)
    with runtime.events() as events:
        runtime.create_container(container)
        runtime.start_container(container)
        with runtime.logs(container, follow=True) as lines:
            first = {next(lines).data, next(lines).data}
            assert first == {b"one\n", b"two\n"}
            assert runtime.stats(container).pids == 1
            runtime.kill_container(container)
            assert list(lines) == [], "following ends with the container"
        event = events.wait(60)
        assert event is not None
        assert (event.container_id, event.exit_code) == (container.name, 137)
    assert runtime.wait(container, timeout=60) == 137
    with pytest.raises(NotRunningError):
        runtime.stats(container)
