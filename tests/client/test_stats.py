"""What a container uses, measured on real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyconmon_client.errors import NotRunningError
from pyconmon_client.stats import Sampler, stats
from tests.helpers.bundles import rootfs, writable
from tests.helpers.drive import Drive
from tests.helpers.waiting import wait_until

Drives = Callable[..., Drive]


def test_a_busy_container_and_the_children_it_had(drives: Drives) -> None:
    # The loop runs in children that end and are waited for; their time must not vanish with them.
    script = "while :; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); done"
    container = drives("sh", "-c", script).run()
    whole, sampler = Sampler(container.pid), Sampler(container.pid)
    assert whole.sample().cpu_percent is None
    first = sampler.sample()
    seconds = [first.cpu_seconds]

    def enough() -> bool:
        seconds.append(sampler.sample().cpu_seconds)
        return seconds[-1] > seconds[0] + 0.5

    wait_until(enough, what="half a second of CPU time")
    assert seconds == sorted(seconds)
    later = whole.sample()
    assert later.cpu_percent is not None
    assert 0 < later.cpu_percent <= 100 * (os.cpu_count() or 1) * 1.5


def test_memory_and_processes(drives: Drives) -> None:
    script = "sleep 100 & sleep 101 & "
    script += "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ok; sleep 102; :"
    container = drives("sh", "-c", script).run()
    wait_until(lambda: b"ok" in container.logged(), what="the string")
    wait_until(lambda: stats(container.pid).pids == 4, what="sh and three sleeps")
    found = stats(container.pid, pss=True)
    assert found.threads == 4
    assert 20_000_000 < found.memory_rss < 100_000_000
    assert found.memory_pss is not None
    assert 20_000_000 < found.memory_pss <= found.memory_rss
    assert stats(container.pid).memory_pss is None


def test_commands_run_by_exec_and_daemons_count_too(drives: Drives) -> None:
    container = drives("sh", "-c", "(setsid sleep 100 &); exec sleep 101").run()
    wait_until(lambda: stats(container.pid).pids == 2, what="the daemon")
    command = container.exec(["sleep", "102"])
    answer = command.answer()
    assert answer is not None and answer["data"] > 0
    wait_until(lambda: stats(container.pid).pids == 3, what="the exec's process")


def test_written_bytes(drives: Drives, tmp_path: Path) -> None:
    root = rootfs(tmp_path)
    script = (
        "while [ ! -e /go ]; do usleep 1000; done; dd if=/dev/zero of=/f bs=1M count=4; sleep 99"
    )
    container = drives("sh", "-c", script, edit=writable(root)).run()
    before = stats(container.pid).write_bytes
    assert before is not None
    (root / "go").touch()
    wait_until(lambda: b"4+0 records out" in container.logged("stderr"), what="dd")
    after = stats(container.pid).write_bytes
    assert after is not None
    # dd itself has ended, and what it wrote with it: the numbers are those of living processes.
    assert after >= before


def test_a_container_that_has_ended(drives: Drives) -> None:
    container = drives("sleep", "100").run()
    sampler = Sampler(container.pid)
    assert sampler.sample().pids == 1
    container.kill()
    container.wait_exit()
    with pytest.raises(NotRunningError, match="has ended"):
        sampler.sample()
    container.wait_monitor()
    with pytest.raises(NotRunningError, match="is not running"):
        Sampler(container.pid)


def test_a_process_without_a_cgroup_of_its_own_counts_only_what_is_below_it() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "100"], {})
    try:
        wait_until(lambda: stats(pid).pids == 1, what="one process")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("pid", [-1, 2**22 + 1])
def test_no_process(pid: int) -> None:
    with pytest.raises(NotRunningError):
        stats(pid)
