"""Many containers: memory as their number grows, wake-ups while idle, CPU while half of them talk.

The containers of all monitors live side by side. They do nothing but sleep, so that the monitors
are all there is to see; the lines of the busy ones come from the harness, straight into their
pipes. Once that has been measured there are made as many more as a large machine has.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import kernel
from benchmarks.bench import Bench
from benchmarks.container import Container

MEGABYTE = 1_000_000


def crowd(bench: Bench) -> None:
    number = bench.pick(100, 6, 1)
    most = bench.pick(500, 10, 2)
    seconds = bench.pick(60, 5, 1)
    crowds: dict[str, list[Container]] = {name: [] for name in bench.monitors}
    try:
        for count in range(1, number + 1):
            bench.say(f"crowd: {count} of {number}")
            for container in _newcomers(bench, crowds, 1):
                _begin(container)
            if count in (1, 10, 100):
                _growth(bench, crowds, count)
        bench.say(f"crowd: idle for {seconds} s")
        _idle(bench, crowds, seconds)
        _busy(bench, crowds)
        bench.say(f"crowd: growing to {most}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_begin, _newcomers(bench, crowds, most - number)))
        _growth(bench, crowds, most)
    finally:
        bench.say("crowd: clearing away")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(Container.remove, [c for cs in crowds.values() for c in cs]))


def _newcomers(bench: Bench, crowds: dict[str, list[Container]], count: int) -> list[Container]:
    """So many more containers of each monitor, the monitors in turn; they are still to be made."""
    found = []
    for _ in range(count):
        for name, path in bench.monitors.items():
            found.append(Container(bench.space, path, bench.space.bundle(["/bin/sleep", "9999"])))
            crowds[name].append(found[-1])
    return found


def _begin(container: Container) -> None:
    container.create()
    container.start()


def _growth(bench: Bench, crowds: dict[str, list[Container]], count: int) -> None:
    case = f"growth, {count} container{'s' if count > 1 else ''}"
    for name, containers in crowds.items():
        total = sum(kernel.memory(c.monitor_pid)["pss"] for c in containers)
        bench.results.record(case, "PSS a container", "MB", name, total / count / MEGABYTE)


def _idle(bench: Bench, crowds: dict[str, list[Container]], seconds: int) -> None:
    time.sleep(2 if not bench.tiny else 0.2)  # let the last one settle
    before = {c: kernel.wake_ups(c.monitor_pid) for cs in crowds.values() for c in cs}
    time.sleep(seconds)
    text = f"{len(next(iter(crowds.values())))} containers, {seconds} s"
    for name, containers in crowds.items():
        for container in containers:
            found = kernel.memory(container.monitor_pid)
            for key, what in (("private_dirty", "private dirty"), ("pss", "PSS"), ("rss", "RSS")):
                bench.results.record("idle", what, "MB", name, found[key] / MEGABYTE, text)
            woken = kernel.wake_ups(container.monitor_pid) - before[container]
            bench.results.record("idle", "wake-ups", "", name, woken, text)


def _busy(bench: Bench, crowds: dict[str, list[Container]]) -> None:
    """100 lines a second in each of 50 containers; the monitors in turn."""
    seconds = bench.pick(8, 2, 1)
    busy = min(50, len(next(iter(crowds.values()))))
    line = b"w" * 79 + b"\n"
    for name, _ in bench.turns(bench.pick(2, 1, 1)):
        bench.say(f"crowd: {busy} busy, {name}")
        containers = crowds[name][:busy]
        pipes = [container.stdout() for container in containers]
        before = sum(kernel.cpu_seconds(c.monitor_pid) for c in containers)
        begin = time.monotonic()
        for tick in range(seconds * 100):
            for pipe in pipes:
                os.write(pipe, line)
            time.sleep(max(0.0, begin + (tick + 1) / 100 - time.monotonic()))
        for pipe in pipes:
            os.close(pipe)
        used = sum(kernel.cpu_seconds(c.monitor_pid) for c in containers) - before
        bench.results.record(
            f"{busy} containers, 100 lines/s each", "monitors' CPU", "s", name, used, f"{seconds} s"
        )
