"""Describes the machine a run was made on, so that its numbers can be judged."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from pathlib import Path


def describe() -> dict[str, str]:
    """Processor, memory, kernel, distribution, Python and runc, as text."""
    return {
        "processor": _processor(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "memory": _memory(),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "python": platform.python_version(),
        "runc": first_line(["runc", "--version"]),
        "logs on": _file_system(tempfile.gettempdir()),
        "load at start": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def first_line(command: list[str]) -> str:
    """The first line a command prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not available ({error.__class__.__name__})"
    return (done.stdout.splitlines() or ["no answer"])[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: str) -> str:
    command = ["stat", "-f", "-c", "%T", directory]
    return {"ext2/ext3": "ext4"}.get(kind := first_line(command), kind)


def _memory() -> str:
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    return f"{kilobytes / 1024 / 1024:.1f} GiB"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"
