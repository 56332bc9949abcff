"""What belongs to this run of the tests, and what it left behind.

Everything a test makes carries the token of the run: its files lie under SESSION_DIR, its cgroups
under a parent named by the token. So what is left over can be told from what other sessions of the
same machine do at the same time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from functools import partial
from pathlib import Path

from tests.helpers.waiting import wait_until

TOKEN = f"pyconmon-test-{secrets.token_hex(4)}"
# Short, and not below TMPDIR: unix socket paths have room for 107 bytes.
SESSION_DIR = Path("/tmp") / TOKEN
CGROUP_PARENT = f"/{TOKEN}"
_CGROUPS = Path("/sys/fs/cgroup")
_NEEDLE = os.fsencode(SESSION_DIR)


def processes() -> dict[int, str]:
    """Pid -> command line of every process that names our directory, or stands in it."""
    found = {}
    mine = _ancestors()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in mine:
            continue
        with contextlib.suppress(OSError):
            command = Path("/proc", name, "cmdline").read_bytes()
            state = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[0]
            if state in (b"Z", b"X"):
                continue
            directory = os.fsencode(os.readlink(f"/proc/{name}/cwd"))
            if _NEEDLE in command or directory.startswith(_NEEDLE):
                found[int(name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _ancestors() -> set[int]:
    """This process and those above it: pytest may have been told our directory by name."""
    pids = set()
    pid = os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            pid = int(stat.rpartition(b")")[2].split()[1])
    return pids


def mounts() -> list[str]:
    """Mount points at or below our directory, the innermost first."""
    with open("/proc/self/mountinfo", "rb") as table:
        points = [line.split()[4] for line in table]
    return [os.fsdecode(point) for point in reversed(points) if point.startswith(_NEEDLE)]


def cgroups() -> list[Path]:
    """The cgroups below our parents, the innermost first; empty parents are removed on the way."""
    left = []
    roots = [_CGROUPS, *(_CGROUPS.iterdir() if _CGROUPS.is_dir() else [])]
    for root in roots:
        parent = root / TOKEN
        if not parent.is_dir():
            continue
        left += [
            Path(found) for found, _, _ in os.walk(parent, topdown=False) if found != str(parent)
        ]
        with contextlib.suppress(OSError):
            parent.rmdir()
    return left


def containers() -> list[Path]:
    """State that a runtime still keeps below one of our private roots."""
    return [
        state.parent
        for pattern in ("*/state.json", "*/status", "*/config.json")
        for root in SESSION_DIR.glob("**/runtime-root")
        for state in root.glob(pattern)
    ]


def leftovers() -> list[str]:
    """One line for everything of ours that is still there; the empty list is what we want."""
    return (
        [f"process {pid}: {command}" for pid, command in processes().items()]
        + [f"mount {point}" for point in mounts()]
        + [f"cgroup {path}" for path in cgroups()]
        + [f"container {path}" for path in containers()]
    )


def check() -> None:
    """AssertionError if anything of this run is still there; it gets a few seconds to go."""
    try:
        wait_until(lambda: not leftovers(), seconds=10, what="the end of what the tests started")
    except AssertionError:
        found = leftovers()
        if found:
            raise AssertionError("the tests left behind:\n  " + "\n  ".join(found)) from None


def sweep() -> None:
    """Take away what is left, so that one bad run does not spoil the machine for the next."""
    for pid in processes():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for point in mounts():
        os.system(f"umount -l '{point}' 2>/dev/null")
    for path in cgroups():
        with contextlib.suppress(OSError, ValueError):
            for line in (path / "cgroup.procs").read_text().split():
                os.kill(int(line), signal.SIGKILL)
            wait_until(partial(_empty, path), seconds=5)
        with contextlib.suppress(OSError, AssertionError):
            path.rmdir()


def _empty(cgroup: Path) -> bool:
    return not (cgroup / "cgroup.procs").read_text()
