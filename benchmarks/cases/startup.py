"""How long the short things take: --version, a container of `true`, an exec of `true`."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.bench import Bench
from benchmarks.container import BenchError, Container


def version(bench: Bench) -> None:
    """Wall time of `--version` as a whole process, beside `python3 -IS -c pass`."""
    # The interpreter itself, not a virtual environment's link to it, which looks for pyvenv.cfg.
    python = [os.path.realpath(sys.executable), "-IS", "-c", "pass"]
    for name, path in bench.turns(bench.pick(40, 15, 2)):
        elapsed = _timed([path, "--version"])
        bench.results.record("--version", "wall", "ms", name, elapsed)
        if name == "pyconmon":
            bare = _timed(python)
            bench.results.record("--version", "wall", "ms", "bare python", bare)
    wall = bench.results.measures["--version", "wall"]
    ours, bare_median = wall.median("pyconmon"), wall.median("bare python")
    if ours and bare_median:
        bench.results.record(
            "--version", "wall over bare python", "", "pyconmon", ours / bare_median
        )


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - begin) * 1000


def create_to_exit(bench: Bench) -> None:
    """From the start of the monitor to the exit file, `runc create` and `runc start` included."""
    for name, path in bench.turns(bench.pick(25, 8, 1)):
        with Container(bench.space, path, bench.space.bundle(["/bin/true"])) as container:
            begin = time.perf_counter()
            container.create()
            created = time.perf_counter()
            container.start()
            if container.wait_exit() != "0":
                raise BenchError(f"{path}: /bin/true ended with {container.exit_file.read_text()}")
            end = time.perf_counter()
        case = "create to exit of true"
        bench.results.record(case, "wall", "ms", name, (end - begin) * 1000)
        bench.results.record(case, "wall of create alone", "ms", name, (created - begin) * 1000)


def exec_true(bench: Bench) -> None:
    """From the start of the monitor to its report of the exit code.

    C conmon does not speak the classic dialect any more; its API 0 stands beside ours there, as
    that is what a caller of the classic dialect would change to.
    """
    kinds = {"classic": "classic", "v0": "API 0", "v1": "API 1"}
    containers = {}
    try:
        for name, path in bench.monitors.items():
            bundle = bench.space.bundle(["/bin/sleep", "9999"])
            containers[name] = Container(bench.space, path, bundle)
            containers[name].create()
            containers[name].start()
        for dialect, title in kinds.items():
            for name, _ in bench.turns(bench.pick(20, 5, 1)):
                spoken = "v0" if dialect == "classic" and name != "pyconmon" else dialect
                begin = time.perf_counter()
                containers[name].execute(["/bin/true"], spoken)
                elapsed = (time.perf_counter() - begin) * 1000
                bench.results.record(f"exec of true, {title}", "wall", "ms", name, elapsed)
    finally:
        for container in containers.values():
            container.remove()
