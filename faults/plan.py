"""Which system calls a monitor makes in a container's life, and which of them are to fail how.

A call site is the so-manieth call of a name, counted from the beginning: what strace's `when=` takes.
Calls before the umask is set are the interpreter's own start, of which a few samples are enough.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KILLED = "KILL"  # instead of an errno: the monitor is killed at that call

# What each call can really fail with. EINTR is retried by the interpreter: cheap to check that it is so.
ERRNOS = {
    "accept4": ["EMFILE", "ECONNABORTED"],
    "bind": ["EACCES", "EADDRINUSE"],
    "clone": ["EAGAIN", "ENOMEM"],
    "clone3": ["EAGAIN", "ENOMEM"],
    "close": ["EIO", "EINTR"],
    "connect": ["ECONNREFUSED"],
    "dup": ["EMFILE"],
    "dup2": ["EMFILE", "EINTR"],
    "epoll_create1": ["EMFILE", "ENOMEM"],
    "epoll_ctl": ["ENOMEM", "ENOSPC"],
    "epoll_wait": ["EINTR"],
    "fallocate": ["ENOSPC", "EOPNOTSUPP"],
    "fchmod": ["EPERM", "EROFS"],
    "fcntl": ["EINVAL", "EMFILE"],
    "flock": ["EAGAIN", "ENOLCK"],
    "fork": ["EAGAIN", "ENOMEM"],
    "fstat": ["EIO", "ENOMEM"],
    "fsync": ["EIO", "ENOSPC"],
    "ftruncate": ["EIO"],
    "getdents64": ["EIO"],
    "getrandom": ["EINTR"],
    "getsockopt": ["ENOMEM"],
    "ioctl": ["EIO", "EINVAL"],
    "listen": ["EADDRINUSE"],
    "lseek": ["ESPIPE"],
    "mknod": ["ENOSPC", "EACCES"],
    "mknodat": ["ENOSPC", "EACCES"],
    "mmap": ["ENOMEM"],
    "newfstatat": ["EACCES", "EIO", "ENOMEM"],
    "open": ["EMFILE", "EACCES"],
    "openat": ["EMFILE", "ENFILE", "ENOMEM", "EACCES", "EIO"],
    "pidfd_open": ["EMFILE", "ENOSYS"],
    "pipe2": ["EMFILE", "ENFILE"],
    "prctl": ["EINVAL"],
    "pread64": ["EIO"],
    "read": ["EIO", "EINTR", "ENOMEM"],
    "readlink": ["EACCES"],
    "readv": ["EIO", "EINTR", "ENOMEM"],
    "rename": ["EACCES", "ENOSPC"],
    "rt_sigaction": ["EINVAL"],
    "rt_sigprocmask": ["EINVAL"],
    "sendto": ["EPIPE", "ENOBUFS"],
    "setsid": ["EPERM"],
    "setsockopt": ["ENOMEM"],
    "shutdown": ["ENOTCONN"],
    "socket": ["EMFILE", "ENOBUFS"],
    "splice": ["ENOMEM", "EINVAL"],
    "symlink": ["EACCES"],
    "unlink": ["EACCES", "EROFS"],
    "unlinkat": ["EACCES", "EROFS"],
    "vfork": ["EAGAIN"],
    "wait4": ["EINTR"],
    "waitid": ["EINTR", "EINVAL"],
    "write": ["ENOSPC", "EIO", "EINTR"],
    "writev": ["ENOSPC", "EIO", "EINTR"],
}


@dataclass(frozen=True)
class Job:
    """One injection: the `when`-th call of that name fails with that errno (or the monitor is killed)."""

    call: str
    errno: str
    when: int

    @property
    def inject(self) -> str:
        """strace's expression."""
        how = "signal=SIGKILL" if self.errno == KILLED else f"error={self.errno}"
        return f"{self.call}:{how}:when={self.when}"


def sites(trace: Path) -> dict[str, list[int]]:
    """The call sites in a strace output, by name, from the umask on."""
    counts: dict[str, int] = {}
    found: dict[str, list[int]] = {}
    started = False
    for line in trace.read_text(errors="replace").splitlines():
        match = re.match(r"(?:\d+ +)?([a-z_0-9]+)\(", line)
        if match is None:
            continue
        name = match[1]
        counts[name] = counts.get(name, 0) + 1
        started = started or name == "umask"
        if started and name in ERRNOS:
            found.setdefault(name, []).append(counts[name])
    return found


def all_jobs(found: dict[str, list[int]], dice: random.Random) -> list[Job]:
    """Every site with every errno of its call, and a kill; in an order that soon has met all names."""
    columns: list[list[Job]] = []
    for call, whens in sorted(found.items()):
        for errno in [*ERRNOS[call], KILLED]:
            column = [Job(call, errno, when) for when in [*whens, *_before(whens)]]
            dice.shuffle(column)
            columns.append(column)
    return list(_in_turn(columns))


def _before(whens: list[int]) -> list[int]:
    """Three samples of the interpreter's own start."""
    first = whens[0]
    return sorted({1, first // 2, first - 1} & set(range(1, first)))


def _in_turn(columns: list[list[Job]]) -> Iterator[Job]:
    depth = max(map(len, columns), default=0)
    for level in range(depth):
        for column in columns:
            if level < len(column):
                yield column[level]


def few_jobs(found: dict[str, list[int]], count: int, dice: random.Random) -> list[Job]:
    """So many jobs with all names among them before any comes twice, for a quick look."""
    names = sorted(found)
    dice.shuffle(names)
    jobs: list[Job] = []
    while len(jobs) < count:
        for call in names[: count - len(jobs)]:
            jobs.append(Job(call, dice.choice([*ERRNOS[call], KILLED]), dice.choice(found[call])))
    return jobs
