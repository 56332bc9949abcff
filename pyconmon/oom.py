"""Notices that the kernel killed something in the container's cgroup for want of memory.

Callers rely on an empty file `oom` in the persist directory (Podman looks there) and in the bundle
(CRI-O), there before the exit file is, also when the killed process was not the main one. A cgroup
that cannot be watched, or goes away, is worth one debug message and never holds the container up.
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.diag import Diag
    from pyconmon.loop import Loop

NAME = "oom"
CGROUP_ROOT = "/sys/fs/cgroup"
LONGEST_FILE = 65536
COUNTERS = (b"oom", b"oom_kill")
V1, V2 = 1, 2


def find_memory_cgroup(text: bytes, cgroup_root: str) -> tuple[int, str] | None:
    """Where the memory controller has the process whose /proc/PID/cgroup is `text`.

    Returns (V1 or V2, directory), or None if it is under no memory controller that we can see. The
    line of the memory controller counts, wherever it stands: with a hybrid layout every controller
    has its own, and conmon once watched the root cgroup because it took the first.
    """
    unified = None
    for line in text.split(b"\n"):
        number, found, rest = line.partition(b":")
        controllers, found, path = rest.partition(b":")
        # A path with ".." is outside of what our own cgroup namespace shows; one without "/" is
        # none.
        if not found or not path.startswith(b"/") or b".." in path.split(b"/"):
            continue
        if b"memory" in controllers.split(b","):
            return V1, os.path.join(cgroup_root, "memory") + os.fsdecode(path).rstrip("/")
        if number == b"0" and not controllers:
            unified = os.fsdecode(path).rstrip("/")
    if unified is not None:
        for root in (cgroup_root, os.path.join(cgroup_root, "unified")):
            if os.path.exists(os.path.join(root, "cgroup.controllers")):
                return V2, root + unified
    return None


def count_ooms(text: bytes) -> int:
    """The sum of `oom` and `oom_kill` in memory.events (v2) or memory.oom_control (v1)."""
    total = 0
    for line in text.split(b"\n"):
        name, _, number = line.partition(b" ")
        if name in COUNTERS and number.isdigit():
            total += int(number[:20])
    return total


class OomWatch:
    """Watches the cgroup of `pid` and puts the files into `directories`.

    `fresh`: the cgroup was made for this container, so that every kill in it counts. Without that
    (an exec in a container that has had one) only those since start() do.
    """

    def __init__(
        self,
        loop: Loop,
        diag: Diag,
        pid: int,
        directories: list[str],
        cgroup_root: str = CGROUP_ROOT,
        proc: str = "/proc",
        *,
        fresh: bool = True,
    ) -> None:
        self._loop = loop
        self._diag = diag
        self._pid = pid
        self._directories = directories
        self._cgroup_root = cgroup_root
        self._proc = proc
        self._fresh = fresh
        self._counters_fd = -1  # memory.events, or memory.oom_control
        self._event_fd = -1
        self._removal_mark = ""  # a file that is gone as soon as the cgroup is
        self._seen = 0
        self._reported = False

    def start(self) -> None:
        """Begin to watch; what stands in the way of it is a debug message."""
        try:
            found = find_memory_cgroup(
                read_file(f"{self._proc}/{self._pid}/cgroup"), self._cgroup_root
            )
            if found is None:
                self._diag.debug(f"process {self._pid} has no memory cgroup: cannot watch for OOM")
                return
            version, directory = found
            if version == V2:
                self._watch_v2(directory)
            else:
                self._watch_v1(directory)
            self._compare()
        except OSError as error:
            self._diag.debug(f"cannot watch for OOM: {error}")
            self.close()

    def check_now(self) -> None:
        """Look at once: at the end a kill may not have been reported yet."""
        if self._event_fd >= 0:
            self._event(select.POLLIN)
        if self._counters_fd >= 0:
            self._compare()

    def close(self) -> None:
        """Stop watching. May be called twice."""
        for fd in (self._counters_fd, self._event_fd):
            if fd >= 0:
                self._loop.forget(fd)
                os.close(fd)
        self._counters_fd = self._event_fd = -1

    def _watch_v2(self, directory: str) -> None:
        self._open_counters(os.path.join(directory, "memory.events"))
        # A change of a kernfs file is POLLPRI until the file is read again, so no inotify is
        # needed. An ordinary file in its place is read at the end only.
        if pollable(self._counters_fd):
            self._loop.watch(self._counters_fd, select.POLLPRI, self._counters_changed)

    def _watch_v1(self, directory: str) -> None:
        control = os.path.join(directory, "cgroup.event_control")
        self._open_counters(os.path.join(directory, "memory.oom_control"))
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        registrar = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(registrar, b"%d %d" % (self._event_fd, self._counters_fd))
        finally:
            os.close(registrar)
        self._removal_mark = control
        self._loop.watch(self._event_fd, select.POLLIN, self._event)

    def _open_counters(self, path: str) -> None:
        self._counters_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if not self._fresh:
            self._seen = count_ooms(os.pread(self._counters_fd, LONGEST_FILE, 0))

    def _counters_changed(self, _events: int) -> None:
        if self._counters_fd >= 0:
            self._compare()

    def _compare(self) -> None:
        try:
            count = count_ooms(os.pread(self._counters_fd, LONGEST_FILE, 0))
        except OSError as error:  # ENODEV: the cgroup is gone, which would wake us for ever
            self._diag.debug(f"the memory cgroup cannot be read any more: {error.strerror}")
            self.close()
            return
        if count > self._seen:
            self._report()
        self._seen = count

    def _event(self, _events: int) -> None:
        if self._event_fd < 0:
            return
        try:
            number = os.eventfd_read(self._event_fd)
        except OSError:
            return
        # The removal of a cgroup is one event, too.
        if number == 1 and not os.path.exists(self._removal_mark):
            self.close()
            return
        self._report()

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            self._diag.info("the container ran out of memory")
        for directory in self._directories:
            try:
                make_empty(os.path.join(directory, NAME))
            except OSError as error:
                self._diag.debug(f"cannot make {directory}/{NAME}: {error.strerror}")


def make_empty(path: str) -> None:
    """Make an empty file; one that is there stays as it is. OSError, also for a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    os.close(os.open(path, flags, 0o644))


def read_file(path: str) -> bytes:
    """The beginning of a file in /proc: 64 KiB at most. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, LONGEST_FILE)
    finally:
        os.close(fd)


def pollable(fd: int) -> bool:
    """Changes of this file can be waited for: not so with an ordinary one."""
    with select.epoll() as poller:
        try:
            poller.register(fd, select.EPOLLPRI)
        except OSError:
            return False
    return True
