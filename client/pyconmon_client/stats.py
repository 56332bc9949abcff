"""What a container uses: CPU, memory, io and processes, summed over its processes.

Callers rely on `Sampler` (one container, sampled again and again, gives CPU percent) and on
`stats()` (once). The processes are those below the container's first one, and the members of its
cgroup if it has one of its own, so that commands run in it by exec count too. No limits and nothing
per process: see the cgroup or psutil for those.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import psutil

from .errors import NotRunningError
from .monitor import ProcessId

_CGROUPS = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Stats:
    """One sample.

    cpu_seconds: user and system time since the start, with that of ended children that were waited
    for. cpu_percent: of one CPU, since the sampler's sample before (the kernel counts in 10 ms, so
    close samples give coarse numbers); None in the first. memory_rss: bytes, where shared pages
    count in each process; memory_pss: bytes, where they are divided (None unless asked for).
    read_bytes, write_bytes: what living processes read from and wrote to storage, None if it may
    not be seen. time: Unix time.
    """

    time: float
    cpu_seconds: float
    cpu_percent: float | None
    memory_rss: int
    memory_pss: int | None
    read_bytes: int | None
    write_bytes: int | None
    pids: int
    threads: int


class Sampler:
    """Samples the container whose first process is `pid`, as seen from here.

    Raises NotRunningError when there is no such process, and once it has ended, also if its number
    was reused.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._first = psutil.Process(pid)
        except (psutil.NoSuchProcess, ValueError):
            raise NotRunningError(f"could not measure process {pid}: it is not running") from None
        self._cgroup = _own_cgroup(pid)
        self._known: dict[int, psutil.Process] = {}
        self._before: tuple[float, float] | None = None

    def sample(self, *, pss: bool = False) -> Stats:
        """A sample of now. pss: the proportional memory as well, which costs a walk over all page
        tables.
        """
        cpu = 0.0
        rss = pss_sum = pids = threads = 0
        read: int | None = 0
        write: int | None = 0
        for process in self._processes():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    memory = process.memory_info().rss
                    count = process.num_threads()
                    pss_sum += process.memory_full_info().pss if pss else 0
                    # Of the living and of those they waited for: what was counted once stays
                    # counted.
                    cpu += times.user + times.system + times.children_user + times.children_system
                    rss += memory
                    threads += count
                    pids += 1
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                pss_sum = 0
                pss = False
                continue
            try:
                io = process.io_counters()
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                read = write = None
                continue
            if read is not None and write is not None:
                read += io.read_bytes
                write += io.write_bytes
        now = time.monotonic()
        percent = None
        if self._before is not None:
            then, counted = self._before
            # A process that ends between our looks at it and at its parent, or is waited for from
            # outside, takes its seconds along. What was counted once stays counted.
            cpu = max(cpu, counted)
            if now > then:
                percent = (cpu - counted) / (now - then) * 100
        self._before = (now, cpu)
        return Stats(
            time.time(), cpu, percent, rss, pss_sum if pss else None, read, write, pids, threads
        )

    def _processes(self) -> list[psutil.Process]:
        try:
            if not self._first.is_running() or self._first.status() == psutil.STATUS_ZOMBIE:
                raise psutil.NoSuchProcess(self.pid)
            found = {self.pid: self._first}
            found.update((child.pid, child) for child in self._first.children(recursive=True))
        except psutil.NoSuchProcess:
            raise NotRunningError(f"could not measure process {self.pid}: it has ended") from None
        for pid in _members(self._cgroup) if self._cgroup else ():
            if pid in found:
                continue
            try:
                found[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                continue
        return list(found.values())


class Samplers:
    """Samplers of containers by name, for any thread: each sample's CPU percent is that since the
    one before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samplers: dict[str, tuple[ProcessId, Sampler]] = {}

    def sample(self, name: str, first: ProcessId) -> Stats:
        """Of the container with that first process; NotRunningError."""
        with self._lock:
            known = self._samplers.get(name)
            try:
                if known is None or known[0] != first:
                    known = self._samplers[name] = (first, Sampler(first.pid))
                return known[1].sample()
            except NotRunningError:
                self._samplers.pop(name, None)
                raise

    def drop(self, name: str) -> None:
        """Of a container that is gone."""
        with self._lock:
            self._samplers.pop(name, None)


def stats(pid: int, *, pss: bool = False) -> Stats:
    """One sample of the container whose first process is `pid`; `Sampler` says more.
    NotRunningError if it's gone.
    """
    return Sampler(pid).sample(pss=pss)


def _own_cgroup(pid: int) -> str | None:
    """The directory of a cgroup that only this container's processes are in, or None."""
    ours = _cgroups(os.getpid())
    for controller, path in sorted(_cgroups(pid).items()):
        # Where it is in the same group as we are, or in the root, the members are others' as well.
        if path == "/" or path == ours.get(controller) or ".." in path.split("/"):
            continue
        for mount in (
            (f"{_CGROUPS}/{controller}", _CGROUPS)
            if controller
            else (_CGROUPS, f"{_CGROUPS}/unified")
        ):
            directory = mount + path
            if pid in _members(directory):
                return directory
    return None


def _cgroups(pid: int) -> dict[str, str]:
    """Controller (or "" for version 2) to path, from /proc/PID/cgroup."""
    found = {}
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file.read().splitlines():
                _, controllers, path = line.split(":", 2)
                found[controllers.removeprefix("name=")] = path
    except (OSError, ValueError):
        return {}
    return found


def _members(directory: str) -> set[int]:
    """The pids in a cgroup and the groups below it."""
    pids: set[int] = set()
    for where, _, files in os.walk(directory):
        if "cgroup.procs" in files:
            try:
                with open(os.path.join(where, "cgroup.procs"), encoding="ascii") as file:
                    pids.update(int(line) for line in file)
            except (OSError, ValueError):
                continue
    return pids - {0}
