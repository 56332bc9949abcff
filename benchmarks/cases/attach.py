"""Output to attached clients that read as fast as they can: the monitor's CPU, no log."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from contextlib import ExitStack

from benchmarks import kernel
from benchmarks.bench import Bench
from benchmarks.cases.relay import MEGABYTE, settle, writer
from benchmarks.container import BenchError, Container, wait_for


def relay(bench: Bench) -> None:
    megabytes = bench.pick(400, 48, 1)
    for clients in (1, 5):
        case = f"attach, {clients} client{'s' if clients > 1 else ''}"
        bench.say(case)
        for name, path in bench.turns(bench.pick(3, 1, 1)):
            cpu, wall = _relay_once(bench, path, clients, megabytes * MEGABYTE)
            text = f"{megabytes} MB"
            bench.results.record(case, "monitor CPU", "s", name, cpu, text)
            bench.results.record(case, "container's wall time", "s", name, wall, text)


def _relay_once(bench: Bench, monitor: str, clients: int, total: int) -> tuple[float, float]:
    payload, expected = writer(bench, "100-byte lines", total)
    bundle = bench.space.bundle(["/bin/sh", "-c", f"{payload}; exec sleep 9999"])
    fork = multiprocessing.get_context("fork")
    counts = [fork.Value("q", 0, lock=False) for _ in range(clients)]
    with ExitStack() as stack:
        container = stack.enter_context(Container(bench.space, monitor, bundle, "none"))
        container.create()
        before = _sockets(container.monitor_pid)
        for count in counts:
            with container.attach() as client:
                process = fork.Process(target=_read_all, args=(client, count), daemon=True)
                process.start()
            stack.callback(process.join, 20)
            stack.callback(process.kill)
        # A client that has connected but is not accepted yet may miss the first output.
        wait_for(
            lambda: _sockets(container.monitor_pid) >= before + clients,
            "the clients' being accepted",
        )
        cpu = kernel.cpu_seconds(container.monitor_pid)
        begin = time.perf_counter()
        container.start()
        container.wait_program("sleep")
        wait_for(lambda: all(c.value >= expected for c in counts), "all clients to have it all")
        wall = time.perf_counter() - begin
        settle(container.monitor_pid)
        cpu = kernel.cpu_seconds(container.monitor_pid) - cpu
    if any(count.value != expected for count in counts):
        raise BenchError(f"{monitor}: a client got {[c.value for c in counts]} of {expected} bytes")
    return cpu, wall


def _sockets(pid: int) -> int:
    """How many sockets a process has open."""
    folder = f"/proc/{pid}/fd"
    return sum(os.readlink(f"{folder}/{fd}").startswith("socket:") for fd in os.listdir(folder))


def _read_all(client: socket.socket, count: object) -> None:
    room = bytearray(16384)
    total = 0
    while size := client.recv_into(room):
        total += size - 1  # the first byte names the stream
        count.value = total  # type: ignore[attr-defined]
