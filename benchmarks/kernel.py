"""What the kernel says about a process: CPU time, memory, context switches; and two small calls.

All functions read /proc of a live process and raise FileNotFoundError or ProcessLookupError when it
is gone. Linux only.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of the process alone, without its children, in seconds.

    /proc/PID/stat counts in ticks of 10 ms, but the scheduler's own sum of run time in
    /proc/PID/task/*/schedstat has nanoseconds, and the two agree; the finer one is used where the
    kernel offers it.
    """
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return (
            sum(
                int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
                for task in tasks
            )
            / 1e9
        )
    except (FileNotFoundError, IndexError):
        return cpu_ticks(pid)


def cpu_ticks(pid: int) -> float:
    """utime + stime of /proc/PID/stat, in seconds (10 ms steps)."""
    # The command's name may hold blanks and brackets: fields count from the last bracket.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory(pid: int) -> dict[str, int]:
    """`private_dirty`, `pss` and `rss` of the process in bytes, from /proc/PID/smaps_rollup."""
    names = {"Rss": "rss", "Pss": "pss", "Private_Dirty": "private_dirty"}
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in names:
            found[names[key]] = int(value.split()[0]) * 1024
    return found


def peak_rss(pid: int) -> int:
    """The highest resident size since start or `reset_peak`, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def reset_peak(pid: int) -> None:
    """Makes `peak_rss` count from now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def wake_ups(pid: int) -> int:
    """How often the process gave up a CPU to wait; all but the last were followed by a wake-up."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def unread(descriptor: int) -> int:
    """Bytes that wait in a pipe."""
    answer = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, answer)
    return answer[0]


def command_name(pid: int) -> str:
    """The name the kernel shows for the process: that of its latest program."""
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
