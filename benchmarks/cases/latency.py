"""Small writes, one by one: how soon a line is in the log, and what single bytes cost.

The harness opens the write end of the container's stdout for itself, so nothing lies between its
write and the monitor's read but the pipe.
"""

from __future__ import annotations

import os
import statistics
import time

from benchmarks import kernel
from benchmarks.bench import Bench
from benchmarks.cases.relay import settle
from benchmarks.container import BenchError, Container


def line_latency(bench: Bench) -> None:
    """From the write of a 100-byte line to the growth of the log, one line each 2 ms."""
    lines = bench.pick(1500, 300, 20)
    for name, path in bench.turns(bench.pick(3, 1, 1)):
        bundle = bench.space.bundle(["/bin/sleep", "9999"])
        with Container(bench.space, path, bundle) as container:
            container.create()
            container.start()
            times = sorted(_latencies(container, lines))
        case = "line latency, write to log"
        bench.results.record(case, "p50", "ms", name, statistics.median(times) * 1000)
        bench.results.record(case, "p99", "ms", name, times[int(len(times) * 0.99)] * 1000)


def _latencies(container: Container, lines: int) -> list[float]:
    line = b"y" * 99 + b"\n"
    pipe = container.stdout()
    log = os.open(container.log, os.O_RDONLY)
    times = []
    try:
        size = os.fstat(log).st_size
        for _ in range(lines):
            begin = time.perf_counter()
            os.write(pipe, line)
            while os.fstat(log).st_size == size:
                if time.perf_counter() - begin > 10:
                    raise BenchError(f"{container.monitor}: a line is not in the log after 10 s")
            times.append(time.perf_counter() - begin)
            size = os.fstat(log).st_size
            time.sleep(0.002)
    finally:
        os.close(pipe)
        os.close(log)
    return times


def trickle(bench: Bench) -> None:
    """Single bytes, one write each, about one a millisecond."""
    count = bench.pick(5000, 1000, 20)
    for name, path in bench.turns(bench.pick(3, 1, 1)):
        bundle = bench.space.bundle(["/bin/sleep", "9999"])
        with Container(bench.space, path, bundle) as container:
            container.create()
            container.start()
            settle(container.monitor_pid)
            before = kernel.cpu_seconds(container.monitor_pid)
            pipe = container.stdout()
            for number in range(count):
                os.write(pipe, b"\n" if number % 50 == 49 else b"z")
                time.sleep(0.001)
            os.close(pipe)
            settle(container.monitor_pid)
            used = kernel.cpu_seconds(container.monitor_pid) - before
        cost = used / count * 1e6
        bench.results.record("trickle of 1-byte writes", "monitor CPU a write", "us", name, cost)
