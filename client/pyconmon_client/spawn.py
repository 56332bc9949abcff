"""Starting a monitor: argv, exact environment, working directory, process group, descriptors.

The monitor gets descriptors 0, 1, 2 and, from 3 on, those it is given, in that order and no others.
`Child` is a started process: a pidfd to poll, and reaping that never takes another's child.
subprocess.Popen cannot give a child a descriptor under a number that is busy in the caller, and a
function run between fork and exec is unsafe in programs with threads; posix_spawn can do all of it.
Python's os.posix_spawn lacks the working directory, hence the C library's own through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Mapping, Sequence

from .deadline import readable
from .errors import InvalidArgumentError, MonitorError

_SETPGROUP, _SETSIGDEF, _SETSIGMASK = 0x02, 0x04, 0x08
# Larger than the opaque structures of any C library (glibc's largest has 336 bytes).
_OPAQUE = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_unreaped: set[Child] = set()


class Child:
    """A started process. `pidfd` becomes readable when it ends; `close()` gives the pidfd back."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.lost = False
        """Whether somebody else has reaped it; returncode is 255 then."""
        self.pidfd = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Reap it if it has ended; its exit status, negative for a signal, or None."""
        with self._lock:
            if self.returncode is None and self.pidfd >= 0:
                try:
                    found = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
                except ChildProcessError:
                    # The program ignores SIGCHLD or reaps everything: the status is lost.
                    found, self.returncode, self.lost = None, 255, True
                if found is not None:
                    code = found.si_status
                    self.returncode = code if found.si_code == os.CLD_EXITED else -code
            return self.returncode

    def wait(self, seconds: float | None) -> int | None:
        """Wait until it ends, `seconds` at most; like poll()."""
        if self.poll() is None:
            readable(self.pidfd, seconds)
        return self.poll()

    def send_signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is None and self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Give the pidfd back. A process that still runs is left alone (and not reaped)."""
        with self._lock:
            pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def leave(self) -> None:
        """For a process that outlives this call: reaped by a later `reap()` when it has ended."""
        if self.poll() is None:
            _unreaped.add(self)
        else:
            self.close()


def reap() -> None:
    """Reap every left child that has ended, so that none stays a zombie."""
    for child in tuple(_unreaped):
        if child.poll() is not None:
            _unreaped.discard(child)
            child.close()


def start(
    path: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    descriptors: Sequence[int],
    cwd: str | None = None,
    new_group: bool = False,
) -> Child:
    """Start `path` with descriptors[i] as its descriptor i. The caller's descriptors stay open.

    Raises MonitorError naming the program and the reason.
    """
    try:
        return _start(path, argv, environment, descriptors, cwd, new_group)
    except OSError as error:
        raise MonitorError(f"could not start the monitor {path}: {error.strerror}") from error


def _start(
    path: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    descriptors: Sequence[int],
    cwd: str | None,
    new_group: bool,
) -> Child:
    words = [os.fsencode(word) for word in (path, *argv)]
    variables = [os.fsencode(f"{key}={value}") for key, value in environment.items()]
    if any(b"\0" in word for word in words + variables):
        raise InvalidArgumentError(
            f"words for {path}: one holds a NUL character, which the kernel can't pass on"
        )
    actions = ctypes.create_string_buffer(_OPAQUE)
    attributes = ctypes.create_string_buffer(_OPAQUE)
    copies: list[int] = []
    _check(_libc.posix_spawn_file_actions_init(actions))
    _check(_libc.posix_spawnattr_init(attributes))
    try:
        for number, fd in enumerate(descriptors):
            # A copy above all targets: no dup2 can overwrite the source of a later one.
            copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(descriptors) + 3))
            _check(_libc.posix_spawn_file_actions_adddup2(actions, copies[-1], number))
        if hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np"):
            _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, len(descriptors)))
        if cwd is not None:
            _check(_libc.posix_spawn_file_actions_addchdir_np(actions, os.fsencode(cwd)))
        _set_attributes(attributes, new_group)
        pid = ctypes.c_int(0)
        error = _libc.posix_spawn(
            ctypes.byref(pid), words[0], actions, attributes, _strings(words), _strings(variables)
        )
        if error:
            raise MonitorError(_why(path, cwd, error))
        try:
            return Child(pid.value)
        except OSError as failure:
            # Out of descriptors: what nobody can watch must not run.
            os.kill(pid.value, signal.SIGKILL)
            os.waitpid(pid.value, 0)
            raise MonitorError(f"could not watch the monitor {path}: {failure.strerror}") from None
    finally:
        for copy in copies:
            os.close(copy)
        _libc.posix_spawn_file_actions_destroy(actions)
        _libc.posix_spawnattr_destroy(attributes)


def _set_attributes(attributes: ctypes.Array[ctypes.c_char], new_group: bool) -> None:
    flags = _SETSIGDEF | _SETSIGMASK
    if new_group:
        flags |= _SETPGROUP
        _check(_libc.posix_spawnattr_setpgroup(attributes, 0))
    # Ignored signals survive an exec. Python ignores two, and a monitor or runtime that never hears
    # of its children's end can't do its work. The rest stay as the program has them.
    defaults = _signal_set([signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD])
    _check(_libc.posix_spawnattr_setsigdefault(attributes, defaults))
    _check(_libc.posix_spawnattr_setsigmask(attributes, _signal_set([])))
    _check(_libc.posix_spawnattr_setflags(attributes, ctypes.c_short(flags)))


def _signal_set(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_char]:
    signals = ctypes.create_string_buffer(_OPAQUE)
    _libc.sigemptyset(signals)
    for number in numbers:
        _libc.sigaddset(signals, number)
    return signals


def _strings(words: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


def _why(path: str, cwd: str | None, error: int) -> str:
    # posix_spawn does not say which step failed.
    if cwd is not None and not os.path.isdir(cwd):
        return f"could not start the monitor {path}: no directory {cwd} to start it in"
    hint = " (not on this machine?)" if error == errno.ENOENT else ""
    return f"could not start the monitor {path}: {os.strerror(error)}{hint}"


def kill_pidfd(pidfd: int, seconds: float) -> bool:
    """Kill the process of a pidfd, whatever has happened to its pid; whether it has ended."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return readable(pidfd, seconds)
