"""A gigabyte of output through the monitor: its CPU, the container's wall time, its peak memory.

The container writes a file's bytes with `dd` in blocks of 64 KiB, then turns into `sleep`, which
tells that it is done; the relay is over when its pipes are empty. CPU counts from the container's
creation to that moment, so neither the start nor the end of the monitor is in it.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from benchmarks import kernel
from benchmarks.bench import Bench
from benchmarks.container import Container, wait_for
from benchmarks.journal import JournalSink

MEGABYTE = 1_000_000
BLOB = 32 * MEGABYTE
SHAPES = {
    "2-byte lines": b"x\n",
    "100-byte lines": b"x" * 99 + b"\n",
    "16 KiB lines": b"x" * 16383 + b"\n",
    "no newlines": b"x" * 65536,
}


def k8s_file(bench: Bench) -> None:
    """Every shape into a log file; then both streams at once."""
    full = {"2-byte lines": 50, "100-byte lines": 1000, "16 KiB lines": 1000, "no newlines": 1000}
    quick = {"2-byte lines": 6, "100-byte lines": 128, "16 KiB lines": 128, "no newlines": 128}
    for shape in SHAPES:
        amount = bench.pick(full[shape], quick[shape], 1)
        _relay(bench, f"relay k8s-file, {shape}", "k8s-file", shape, amount)
    amount = bench.pick(1000, 128, 1)
    _relay(bench, "relay k8s-file, both streams", "k8s-file", "100-byte lines", amount, both=True)


def no_log(bench: Bench) -> None:
    for shape in SHAPES:
        _relay(bench, f"relay none, {shape}", "none", shape, bench.pick(1000, 128, 1))


def journald(bench: Bench) -> None:
    """One datagram an entry, so the amounts are smaller."""
    if not JournalSink.possible():
        bench.results.leave_out("journald", "needs root and a private mount namespace")
        return
    full = {
        "2-byte lines": 0.4,
        "100-byte lines": 20.0,
        "16 KiB lines": 200.0,
        "no newlines": 200.0,
    }
    sink = JournalSink()
    sink.start()
    try:
        for shape in SHAPES:
            amount = full[shape] * (0.01 if bench.tiny else 0.1 if bench.quick else 1)
            _relay(bench, f"relay journald, {shape}", "journald", shape, amount, sink=sink)
    finally:
        sink.stop()


def _relay(
    bench: Bench,
    case: str,
    driver: str,
    shape: str,
    megabytes: float,
    both: bool = False,
    sink: JournalSink | None = None,
) -> None:
    bench.say(case)
    total = int(megabytes * MEGABYTE)
    text = f"{megabytes:g} MB"
    for name, path in bench.turns(bench.pick(3, 1, 1)):
        cpu, wall, peak = relay_once(bench, path, driver, shape, total, both, sink)
        bench.results.record(case, "monitor CPU", "s", name, cpu, text)
        bench.results.record(case, "container's wall time", "s", name, wall, text)
        bench.results.record(case, "peak RSS over idle", "MB", name, peak, text)


def relay_once(
    bench: Bench,
    monitor: str,
    driver: str,
    shape: str,
    total: int,
    both: bool = False,
    sink: JournalSink | None = None,
) -> tuple[float, float, float]:
    """One container that writes `total` bytes: CPU (s), wall time (s), peak RSS over idle (MB)."""
    payload, written = writer(bench, shape, total // 2 if both else total)
    script = f"{payload} >&2 & {payload}; wait" if both else payload
    bundle = bench.space.bundle(["/bin/sh", "-c", f"{script}; exec sleep 9999"])
    with ExitStack() as stack:
        container = stack.enter_context(Container(bench.space, monitor, bundle, driver))
        container.create()
        pipes = [os.open(f"/proc/{container.pid}/fd/{n}", os.O_WRONLY) for n in (1, 2)]
        for pipe in pipes:
            stack.callback(os.close, pipe)
        idle = kernel.memory(container.monitor_pid)["rss"]
        kernel.reset_peak(container.monitor_pid)
        cpu = kernel.cpu_seconds(container.monitor_pid)
        # The last entry may wait for the end of its line.
        received = written - 8192 + (sink.received if sink else 0)
        begin = time.perf_counter()
        container.start()
        container.wait_program("sleep")
        wait_for(lambda: not any(kernel.unread(pipe) for pipe in pipes), "empty pipes")
        wall = time.perf_counter() - begin
        wait_for(lambda: sink is None or sink.received >= received, "the journal's entries")
        settle(container.monitor_pid)
        cpu = kernel.cpu_seconds(container.monitor_pid) - cpu
        peak = max(0, kernel.peak_rss(container.monitor_pid) - idle) / MEGABYTE
    return cpu, wall, peak


def writer(bench: Bench, shape: str, total: int) -> tuple[str, int]:
    """Shell words for a container that writes about `total` bytes of that shape; how many exactly."""
    pattern = SHAPES[shape]
    times = -(-total // BLOB)
    size = max(1, total // times // len(pattern)) * len(pattern)
    blob = bench.space.blob(f"blob-{len(pattern)}-{size}", pattern, size)
    words = f"{{ for i in $(seq {times}); do dd if={blob} bs=65536 2>/dev/null; done; }}"
    return words, times * size


def settle(pid: int) -> None:
    """Waits until the process sleeps: what it read last has been written then."""
    last = -1.0
    while (now := kernel.cpu_seconds(pid)) != last:
        last = now
        time.sleep(0.005)
