"""What belongs to the process as a whole: umask, inherited descriptors, daemon, signals, subreaper.

Outsiders rely on: the environment and the descriptors that the caller gave reach the runtime unchanged,
and signals only wake the loop. A container is out of scope: a process could hold several monitors.
"""

from __future__ import annotations

import _signal
import os

from pyconmon import fds, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.loop import Loop

SCORE = "/proc/self/oom_score_adj"
FORWARDED = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT)
# HUP, USR2 and ALRM kill C conmon and leave its container unmonitored; nobody can want that.
HARMLESS = (_signal.SIGHUP, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM, _signal.SIGPIPE)


class Process:
    """This process: what it was given, and what it has become."""

    def __init__(self) -> None:
        self.mask: set[int] = set(_signal.pthread_sigmask(_signal.SIG_BLOCK, ()))
        self.inherited = _inherited_descriptors()
        self.environment = _original_environment()
        self.oom_score: bytes | None = None
        self._wake_fd = -1

    def settle(self) -> None:
        """The first steps, which hold whatever is to come: umask, streams, an early end by SIGTERM."""
        os.umask(0o022)
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
            except OSError:
                # A caller that closed it: what is opened next must not become a stream of the container.
                os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)
        _signal.signal(_signal.SIGTERM, _end_at_once)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # CPython's own way is a traceback
        # A caller may ignore SIGCHLD (then the kernel keeps no exit status) or block what we live by.
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.pthread_sigmask(
            _signal.SIG_UNBLOCK, (*FORWARDED, _signal.SIGCHLD, _signal.SIGWINCH)
        )

    def protect_from_oom(self) -> OSError | None:
        """Be the last that the kernel kills; the runtime gets the old score back. Best effort: gives why not."""
        try:
            with open(SCORE, "rb", buffering=0) as file:
                self.oom_score = file.read(16)
            with open(SCORE, "wb", buffering=0) as file:
                file.write(b"-1000")
        except OSError as error:
            self.oom_score = None
            return error
        return None

    def go_to_background(self, pid_file: str | None) -> None:
        """Return in the child; the parent writes the pid file and leaves. Raises OSError if it cannot fork.

        The parent stays until the pid file has its name, since callers read it right after.
        """
        # A signal that reaches the child before CPython has tidied up after the fork would be forgotten.
        self.hold_signals()
        pid = os.fork()
        self.release_signals()
        if pid == 0:
            return
        try:
            if pid_file is not None:
                fds.replace_file(pid_file, b"%d" % pid)
        except OSError as error:
            line = f"[conmon:e]: Failed to write conmon pidfile {pid_file}: {error.strerror}\n"
            os.write(2, line.encode("utf-8", "surrogateescape"))
            os._exit(1)
        os._exit(0)

    def leave_streams(self) -> None:
        """Point the standard streams to /dev/null, so that nobody waits for us to close them."""
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)

    def become_parent_of_orphans(self, *, new_session: bool) -> None:
        """Have every orphan below us become our child. Raises OSError where the kernel refuses."""
        if new_session:
            try:
                os.setsid()
            except (
                OSError
            ):  # a group leader already, as with --sync under a caller that used setpgid
                pass
        linux.set_child_subreaper(True)

    def hold_signals(self) -> None:
        """A signal from here to `release_signals` waits: it is for a runtime that is being started."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, FORWARDED)

    def release_signals(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, FORWARDED)

    def take_signals(
        self, loop: Loop, on_child: Callable[[], None], forward: Callable[[int], None]
    ) -> None:
        """From now on signals wake the loop: dead children, and what is to be passed on."""
        from pyconmon.loop import READABLE  # the loop is made after the runtime has been started

        read_end, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(self._wake_fd, warn_on_full_buffer=False)
        for number in (*FORWARDED, *HARMLESS, _signal.SIGCHLD, _signal.SIGWINCH):
            _signal.signal(number, _only_wake)

        def woken(revents: int) -> None:
            numbers = set(os.read(read_end, 512))
            for number in sorted(numbers):
                if number in FORWARDED or number == _signal.SIGWINCH:
                    forward(number)
            on_child()  # also for USR1: "look at your children"

        loop.watch(read_end, READABLE, woken)
        os.write(self._wake_fd, b"\0")  # a child may have ended before we listened

    def stop_taking_signals(self) -> None:
        """The loop is over: nothing may end us half-way any more."""
        _signal.set_wakeup_fd(-1)
        for number in (*FORWARDED, *HARMLESS):
            _signal.signal(number, _signal.SIG_IGN)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)

    def close_inherited(self, keep: int) -> None:
        """Close what the caller left open (Podman parks reserved ports there), but for `keep`."""
        start = stop = -1
        for fd in [*(fd for fd in self.inherited if fd != keep), -1]:
            if fd != stop:
                if start >= 0:
                    os.closerange(start, stop)  # one call a run: there may be thousands
                start = fd
            stop = fd + 1
        self.inherited = []

    def disown(self, fd: int) -> None:
        """`fd` was inherited, and somebody else closes it now."""
        if fd in self.inherited:
            self.inherited.remove(fd)


def _inherited_descriptors() -> list[int]:
    """What was open, and not close-on-exec, when we started; to be called before anything is opened."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:  # the listing's own
            pass
    found.sort()
    return found


def _original_environment() -> dict[str, str]:
    """The environment as the caller gave it.

    Under the C locale CPython puts LC_CTYPE=C.UTF-8 into its own (PEP 538), which must not reach the
    container's runtime; the kernel's copy of what we were started with tells.
    """
    environment = dict(os.environ)
    if environment.get("LC_CTYPE") == "C.UTF-8":
        with open("/proc/self/environ", "rb") as file:
            _, given, value = (b"\0" + file.read()).partition(b"\0LC_CTYPE=")
        if given:
            environment["LC_CTYPE"] = os.fsdecode(value.partition(b"\0")[0])
        else:
            del environment["LC_CTYPE"]
    return environment


def _end_at_once(number: int, frame: object) -> None:
    os._exit(1)


def _only_wake(number: int, frame: object) -> None:
    """The number has gone into the wake-up pipe; the loop does the rest."""
