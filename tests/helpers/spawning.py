"""Starts a program with exactly the descriptors that are named, as a Go or C caller would, and waits for it by pidfd.

`spawn` and `Process` are for tests that care which number a pipe has, what else is open and which signals are ignored;
subprocess decides these things by itself. What the program then does is no business of this file.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

_LIFTED = 200  # above any number that a test hands over


class Process:
    """A child of the test, known by pidfd: `wait` never takes a recycled pid for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def wait(self, seconds: float = 30) -> int:
        """The exit code; minus the signal if it was killed. AssertionError if it lives on after `seconds`."""
        if self._status is None:
            ready, _, _ = select.select([self._pidfd], [], [], seconds)
            assert ready, f"process {self.pid} did not end within {seconds} s"
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
        return self._status

    @property
    def running(self) -> bool:
        return self._status is None and not select.select([self._pidfd], [], [], 0)[0]

    def asleep(self) -> bool:
        """Whether it waits for something, as the program it was to become."""
        comm, _, rest = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")
        own = Path("/proc/self/comm").read_text().strip()
        return rest.split()[0] == "S" and comm.partition("(")[2] != own

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._status is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def end(self) -> None:
        """Clean-up: kills and reaps it if that is still to be done."""
        if self._status is None:
            self.kill()
            self.wait()


def spawn(
    argv: Sequence[str | bytes],
    *,
    env: Mapping[str, str] | Mapping[bytes, bytes],
    fds: Mapping[int, int],
    cwd: str | Path | None = None,
    new_group: bool = False,
    umask: int | None = None,
) -> Process:
    """Runs argv[0] with the descriptors `fds` (number in the child -> ours) and no others; 0-2 default to /dev/null."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    wanted = {0: null, 1: null, 2: null, **fds}
    pid = os.fork()
    if pid == 0:
        try:
            _become(argv, env, wanted, cwd, new_group, umask)
        finally:
            os._exit(127)
    os.close(null)
    return Process(pid)


def _become(
    argv: Sequence[str | bytes],
    env: Mapping[str, str] | Mapping[bytes, bytes],
    wanted: Mapping[int, int],
    cwd: str | Path | None,
    new_group: bool,
    umask: int | None,
) -> None:
    if new_group:
        os.setpgid(0, 0)
    if cwd is not None:
        os.chdir(cwd)
    if umask is not None:
        os.umask(umask)
    lifted = {n: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LIFTED) for n, fd in wanted.items()}
    os.closerange(0, _LIFTED)
    for number, fd in lifted.items():
        os.dup2(fd, number)
    os.closerange(_LIFTED, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    # Python ignores these two, and what is ignored stays so over exec: no other caller does that to a monitor.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execve(os.fsencode(argv[0]), [os.fsencode(word) for word in argv], env)
