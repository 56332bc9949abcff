"""The few kernel facts that have no call in the standard library.

python-prctl lives here: its C half (`_prctl`) is what is imported, since its Python half costs 0.8 ms at
each start and adds only names. Nothing here knows of containers.
"""

from __future__ import annotations

import fcntl
import os

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), linux/pidfd.h
PIDFD_INFO_EXIT = 1 << 3
PIDFD_INFO_SIZE = 64
FIONREAD = 0x541B
F_SETPIPE_SZ = 1031
F_GETPIPE_SZ = 1032


def set_child_subreaper(on: bool) -> None:
    """Become (or stop being) the parent of every orphan below us; prctl(2). Raises OSError."""
    import _prctl

    _prctl.prctl(PR_SET_CHILD_SUBREAPER, int(on))


def set_parent_death_signal(signal: int) -> None:
    """Have the kernel send us `signal` when our parent (thread) ends; prctl(2). Raises OSError."""
    import _prctl

    _prctl.prctl(PR_SET_PDEATHSIG, signal)


def pidfd_exit_status(pidfd: int) -> int | None:
    """Give the wait status of a process that has ended, also if it is not our child and has been reaped.

    None where the kernel does not tell: before Linux 6.15, and while the process lives.
    """
    info = bytearray(PIDFD_INFO_SIZE)
    info[0:8] = PIDFD_INFO_EXIT.to_bytes(8, "little")
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info, True)
    except OSError:
        return None
    if not int.from_bytes(info[0:8], "little") & PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(info[60:64], "little", signed=True)


def zombie_status(pid: int, proc: str = "/proc") -> int | None:
    """Give the wait status of a process that has ended and whose parent has not reaped it yet.

    proc_pid_stat(5), the last field; it is shown to those who may trace the process, and reads 0 to
    others, which must not be taken for an exit code. None: not known.
    """
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        if fields[0] != b"Z":
            return None
        status = int(fields[49])
    except (OSError, IndexError, ValueError):
        return None
    return status if status != 0 or _may_trace(pid, proc) else None


def _may_trace(pid: int, proc: str) -> bool:
    """Its namespaces may be read by those who may trace it, namespaces(7); a zombie has none any more."""
    try:
        os.readlink(f"{proc}/{pid}/ns/net")
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def bytes_waiting(fd: int) -> int:
    """Say how many bytes can be read from a pipe, socket or terminal; FIONREAD, pipe(7)."""
    answer = bytearray(4)
    fcntl.ioctl(fd, FIONREAD, answer, True)
    return int.from_bytes(answer, "little")


def enlarge_pipe(fd: int, size: int) -> int:
    """Ask for a pipe of `size` bytes and give what it has; a refusal (limits of the user) is fine."""
    try:
        return int(fcntl.fcntl(fd, F_SETPIPE_SZ, size))
    except OSError:
        return int(fcntl.fcntl(fd, F_GETPIPE_SZ))


def start_time(pid: int, proc: str = "/proc") -> int:
    """Give the start of a process in clock ticks since boot: with the pid it names one process for good.

    0 where there is no such process. proc_pid_stat(5), field 22; the name before it may hold anything,
    so the fields are counted from its last bracket.
    """
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def boot_id() -> str:
    """Name this run of the kernel: start times of processes count from its beginning; random(4)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().strip().decode("ascii", "replace")
    except OSError:
        return ""


def pidfd_open(pid: int) -> int:
    """Open a pidfd; -1 where the process is gone or the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
