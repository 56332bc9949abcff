"""`podman run --rm` of `true`, as a user would see it: wall time of the whole command."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.bench import Bench

CGROUP = f"pyconmon-bench-{os.getpid()}"


def run_true(bench: Bench) -> None:
    podman = shutil.which("podman")
    if podman is None:
        bench.results.leave_out("podman", "podman is not installed")
        return
    place = f"{bench.space.root}/podman"
    base = [
        podman, "--root", f"{place}/root", "--runroot", f"{place}/runroot",
        "--tmpdir", f"{place}/tmp", "--storage-driver", "vfs", "--runtime", "runc",
        "--cgroup-manager", "cgroupfs", "--events-backend", "none",
    ]  # fmt: skip
    command = [
        "run", "--rm", "--network", "none", "--log-driver", "k8s-file", "--cgroup-parent",
        f"/{CGROUP}", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000",
        "--rootfs", str(bench.space.rootfs), "/bin/true",
    ]  # fmt: skip
    try:
        _measure(bench, base, command)
    finally:
        _remove_cgroups()


def _measure(bench: Bench, base: list[str], command: list[str]) -> None:
    warm: set[str] = set()
    for name, path in bench.turns(bench.pick(12, 3, 1)):
        whole = [*base, "--conmon", path, *command]
        if name not in warm:
            warm.add(name)
            done = subprocess.run(whole, capture_output=True, text=True, timeout=120)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                bench.results.leave_out("podman", f"cannot run a container here: {reason}")
                return
        begin = time.perf_counter()
        subprocess.run(whole, stdout=subprocess.DEVNULL, check=True, timeout=120)
        elapsed = (time.perf_counter() - begin) * 1000
        bench.results.record("podman run --rm of true", "wall", "ms", name, elapsed)


def _remove_cgroups() -> None:
    """Podman leaves the cgroup that its monitors were in; the last exit command may be in it yet."""
    hierarchies = Path("/sys/fs/cgroup")
    for parent in [hierarchies / CGROUP, *hierarchies.glob(f"*/{CGROUP}")]:
        end = time.monotonic() + 10
        while parent.exists() and time.monotonic() < end:
            for found, _, _ in os.walk(parent, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(found)
            time.sleep(0.05)
