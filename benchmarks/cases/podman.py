"""`podman run --rm` of `true`, as a user would see it: wall time of the whole command."""

from __future__ import annotations

import shutil
import subprocess
import time

from benchmarks.bench import Bench


def run_true(bench: Bench) -> None:
    podman = shutil.which("podman")
    if podman is None:
        bench.results.leave_out("podman", "podman is not installed")
        return
    base = [
        podman, "--root", f"{bench.space.root}/podman/root",
        "--runroot", f"{bench.space.root}/podman/runroot",
        "--tmpdir", f"{bench.space.root}/podman/tmp", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
        "--storage-driver", "vfs",
    ]  # fmt: skip
    command = [
        "run", "--rm", "--network", "none", "--log-driver", "k8s-file",
        "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--rootfs", str(bench.space.rootfs), "/bin/true",
    ]  # fmt: skip
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
