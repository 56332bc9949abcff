"""When the monitor dies, when another process started the container, when the program restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyconmon_client import Container, MonitorError, RecordError, Runtime, WaitTimeout
from pyconmon_client.monitor import ProcessId
from tests.helpers.monitors import ROOT, monitor
from tests.helpers.waiting import gone, wait_until

Make = Callable[..., Container]


def kill_monitor(container: Container) -> None:
    assert container.monitor is not None
    monitor_process = container.monitor
    assert monitor_process.send_signal(signal.SIGKILL)
    wait_until(lambda: not monitor_process.alive(), what="the monitor's end")


def test_status_without_monitor(runtime: Runtime, running: Container) -> None:
    assert runtime.update_status(running).monitored is True
    kill_monitor(running)
    state = runtime.update_status(running)
    assert (state.status, state.monitored) == ("running", False)
    assert runtime.exec_sync(running, ["echo", "x"]).stdout == b"x\n"


def test_no_wait_for_an_exit_file_that_will_not_come(
    runtime: Runtime, running: Container, make: Make
) -> None:
    kill_monitor(running)
    assert running.init is not None
    with pytest.raises(WaitTimeout):
        runtime.wait(running, timeout=0.1)
    assert running.init.send_signal(signal.SIGKILL)
    init = running.init.pid
    wait_until(lambda: gone(init), what="the container's end")
    begun = time.monotonic()
    assert runtime.wait(running, timeout=60) == -1
    assert time.monotonic() - begun < 30
    state = runtime.update_status(running)
    assert (state.status, state.exit_code, state.exit_code_known) == ("stopped", -1, False)


def test_wait_sees_the_end_of_an_unmonitored_container(
    runtime: Runtime, running: Container
) -> None:
    kill_monitor(running)
    with runtime.watch_exit(running) as watch:
        assert watch.check() is None
        runtime.kill_container(running)
        ended = watch.wait(60)
    # Newer kernels keep the wait status for whoever holds a pidfd.
    assert (ended.code, ended.known) in ((137, True), (-1, False))


def test_stop_and_delete_without_monitor(runtime: Runtime, running: Container) -> None:
    kill_monitor(running)
    runtime.stop_container(running, timeout=0.1)
    assert runtime.update_status(running).status == "stopped"
    runtime.delete_container(running)
    assert runtime.list() == []


def test_recovery_gives_the_exit_code(runc: Path, tmp_path: Path, make: Make) -> None:
    runtime = Runtime(runc, tmp_path / "containers", monitor("pyconmon"))
    container = make("sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done", log=True)
    runtime.create_container(container)
    runtime.start_container(container)
    assert runtime.recover(container) is False
    kill_monitor(container)
    assert runtime.recover(container) is True
    assert container.monitor is not None
    assert runtime.update_status(container).monitored is True
    runtime.stop_container(container, timeout=30)
    assert runtime.wait(container, timeout=60) == 9


def test_c_conmon_cannot_recover(runc: Path, make: Make) -> None:
    runtime = Runtime(runc, "", monitor("conmon"))
    container = make("sleep", "600")
    runtime.create_container(container, stdio=(-1, -1, -1))
    kill_monitor(container)
    with pytest.raises(MonitorError, match="could not recover"):
        runtime.recover(container)


def test_a_container_of_another_process(
    runtime: Runtime, make: Make, monitor_path: Path, tmp_path: Path
) -> None:
    """Started by a program that has left; known to us by name and bundle only."""
    container = make("sh", "-c", "read x </dev/null; sleep 1; exit 6")
    program = (
        "import sys; from pyconmon_client import Container, Runtime\n"
        "runtime = Runtime(sys.argv[1], sys.argv[2], sys.argv[3])\n"
        "container = Container('c0', 'c0', sys.argv[4])\n"
        "runtime.create_container(container)\n"
        "runtime.start_container(container)\n"
    )
    words = [runtime.path, "", str(monitor_path), container.bundle_path]
    subprocess.run(
        [sys.executable, "-c", program, *words],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    assert runtime.wait(container, timeout=60) == 6


def test_wait_in_several_threads(runtime: Runtime, make: Make) -> None:
    container = make("sh", "-c", "sleep 0.5; exit 8")
    runtime.create_container(container, stdio=(-1, -1, -1))
    codes: list[int] = []
    waiters = [
        threading.Thread(target=lambda: codes.append(runtime.wait(container, timeout=60)))
        for _ in range(4)
    ]
    for waiter in waiters:
        waiter.start()
    runtime.start_container(container)
    for waiter in waiters:
        waiter.join(60)
    assert codes == [8] * 4


def test_found_again_after_a_restart(
    runtime: Runtime, make: Make, runc: Path, monitor_path: Path
) -> None:
    container = make("sleep", "600", log=True, labels={"a": "b"}, metadata={"n": [1]}, sandbox="s")
    runtime.create_container(container)
    runtime.start_container(container)
    again = Runtime(runc, runtime.container_dir, monitor_path)
    (found,) = again.list()
    for attribute in ("id", "name", "bundle_path", "log_path", "labels", "metadata", "sandbox"):
        assert getattr(found, attribute) == getattr(container, attribute)
    assert (found.init, found.monitor) == (container.init, container.monitor)
    assert (found.init, found.monitor) != (None, None)
    assert again.update_status(found).status == "running"
    assert found.state is not None and container.state is not None
    assert found.state.started == container.state.started
    assert again.exec_sync(found, ["echo", "x"]).stdout == b"x\n"
    again.stop_container(found, timeout=0.1)
    assert again.wait(found, timeout=60) == 137
    again.delete_container(found)
    assert again.list() == []


@pytest.mark.parametrize("name", [b") Z 1 1", b"a b) (", b"new\nline", b"\xff)"])
def test_a_process_may_have_any_name(name: bytes) -> None:
    """It stands in /proc/PID/stat as it is; a zombie it is only once it has ended."""
    script = f"open('/proc/self/comm', 'wb').write({name!r}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-ISc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            known = ProcessId.of(process.pid)
            assert known is not None
            assert process.stdout is not None and process.stdout.readline() == b"\n"
            assert Path(f"/proc/{process.pid}/comm").read_bytes() == name + b"\n"
            assert known.alive() and ProcessId.of(process.pid) == known
        finally:
            process.kill()
        pid = process.pid
        wait_until(lambda: gone(pid), what="its end")
        assert not known.alive()


def test_records_that_cannot_be_used(runtime: Runtime, running: Container) -> None:
    path = Path(runtime.container_dir, "other.json")
    for text in ("", "[]", "{}", "{", '{"pyconmon_client": 1}'):
        path.write_text(text)
        with pytest.raises(RecordError, match=r"other\.json"):
            runtime.reload("other")
        assert [each.name for each in runtime.list()] == [running.name]
    with pytest.raises(RecordError, match=r"missing\.json"):
        runtime.reload("missing")


def test_process_ids_of_an_earlier_boot_do_not_count(runtime: Runtime, running: Container) -> None:
    path = Path(runtime.container_dir, f"{running.name}.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "boot_id": "another"}))
    found = runtime.reload(running.name)
    assert (found.init, found.monitor) == (None, None)
    assert found.state is not None and found.state.pid == 0


def test_a_stranger_with_a_pid_of_the_containers_is_left_alone(
    runtime: Runtime, running: Container
) -> None:
    """Pids are used again: the record's time of start tells that it is another process."""
    path = Path(runtime.container_dir, f"{running.name}.json")
    record = json.loads(path.read_text())
    runtime.stop_container(running, timeout=0.1)
    runtime.wait(running, timeout=30)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        try:
            for role in ("init", "monitor"):
                record[role] = [stranger.pid, record[role][1]]
            path.write_text(json.dumps(record))
            found = runtime.reload(running.name)
            assert found.init is not None and found.init.pid == stranger.pid
            assert not found.init.alive() and not found.init.send_signal(signal.SIGKILL)
            runtime.stop_container(found, timeout=0.1)
            assert runtime.update_status(found).status == "stopped"
            runtime.delete_container(found, force=True)
            assert stranger.poll() is None
        finally:
            stranger.kill()
