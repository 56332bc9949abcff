"""The OCI runtime: its argv (pure), and the child that executes it.

Outsiders rely on: no shell in between, every word arrives as it was given; the runtime has the descriptors
the caller left open plus its three streams and nothing of ours; signal mask and dispositions are those of a
fresh process. What the runtime's end means is out of scope.
"""

from __future__ import annotations

import _signal
import os

from pyconmon import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.options import Options

NOT_EXECUTED = 127  # exit status of a child that could not execute the runtime
START_BYTES = 8192


def build_argv(options: Options, console_socket: str | None) -> list[str]:
    """Give the words of the runtime's command line; protocol of conmon 2.x, runc and crun alike."""
    argv = [options.runtime or ""]
    if options.exec:
        return argv + _exec_words(options, console_socket)
    if options.systemd_cgroup:
        argv.append("--systemd-cgroup")
    argv += options.runtime_args
    argv.append("create" if options.restore is None else "restore")
    argv += ["--bundle", options.bundle or "", "--pid-file", options.container_pidfile or ""]
    if options.no_pivot:
        argv.append("--no-pivot")
    if options.no_new_keyring:
        argv.append("--no-new-keyring")
    if options.restore is not None:
        argv += ["--detach", "--image-path", options.restore, "--work-path", options.bundle or ""]
    argv += options.runtime_opts
    if console_socket is not None:
        argv += ["--console-socket", console_socket]
    argv.append(options.cid or "")
    return argv


def _exec_words(options: Options, console_socket: str | None) -> list[str]:
    argv = [*options.runtime_args, "exec", "--pid-file", options.container_pidfile or ""]
    if options.dialect == "modern":
        argv += ["--process", options.exec_process_spec or ""]
    elif options.terminal:
        argv.append("--tty")  # without a process spec the runtime has it from nowhere else
    argv.append("--detach")
    argv += options.runtime_opts
    if console_socket is not None:
        argv += ["--console-socket", console_socket]
    return [*argv, options.cid or "", *options.command]


class Child:
    """What the forked child needs to become the runtime; prepared before the fork."""

    def __init__(
        self,
        argv: list[str],
        streams: tuple[int, int, int] | None,
        environment: dict[str, str],
        *,
        start_gate: int = -1,
        oom_score: bytes | None = None,
        replace_listen_pid: bool = False,
        mask: set[int] | None = None,
    ) -> None:
        self.argv = argv
        self.streams = streams
        self.environment = environment
        self.start_gate = start_gate
        self.oom_score = oom_score
        self.replace_listen_pid = replace_listen_pid
        self.mask = mask or set()

    def spawn(self) -> int:
        """Fork and execute; give the pid. Raises OSError if there is no process to be had."""
        parent = os.getpid()
        # Nothing may be handled in the child before its dispositions are its own again.
        old = _signal.pthread_sigmask(_signal.SIG_BLOCK, range(1, 32))
        try:
            pid = os.fork()
            if pid == 0:
                self._become_runtime(parent)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, old)
        return pid

    def _become_runtime(self, parent: int) -> None:
        """In the child: never returns."""
        try:
            linux.set_parent_death_signal(_signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above: nobody will tell us
                os._exit(NOT_EXECUTED)
            if self.streams is not None:
                for target, fd in enumerate(self.streams):
                    os.dup2(fd, target)
            if self.oom_score is not None:
                restore_oom_score(self.oom_score)
            self._pass_listen_pid(parent)
            if self.start_gate >= 0:
                os.read(self.start_gate, START_BYTES)
            fresh_signals(self.mask)
            os.execve(self.argv[0], self.argv, self.environment)
        except BaseException as error:
            text = getattr(error, "strerror", None) or str(error)
            line = f"cannot run the runtime {self.argv[0]}: {text}\n"
            try:
                os.write(2, line.encode("utf-8", "surrogateescape"))
            except OSError:
                pass
        os._exit(NOT_EXECUTED)

    def _pass_listen_pid(self, parent: int) -> None:
        """Socket activation names the process it is for, sd_listen_fds(3): that is the runtime now."""
        text = self.environment.get("LISTEN_PID")
        if text is None:
            return
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            os.write(2, f"LISTEN_PID must be a positive number, not {text!r}\n".encode())
            os._exit(1)
        if self.replace_listen_pid or int(text) == parent:
            self.environment["LISTEN_PID"] = str(os.getpid())


def restore_oom_score(score: bytes) -> None:
    """Put an out-of-memory score back; not being allowed to is fine."""
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(score)
    except OSError:
        pass


def fresh_signals(mask: set[int]) -> None:
    """Give a child about to execute the signal state of a fresh process.

    CPython starts with SIGPIPE and SIGXFSZ ignored, we ignore some more, and what is ignored stays so
    over an execve; handlers go by themselves.
    """
    for number in (
        _signal.SIGPIPE,
        _signal.SIGXFSZ,
        _signal.SIGHUP,
        _signal.SIGINT,
        _signal.SIGQUIT,
        _signal.SIGTERM,
        _signal.SIGALRM,
        _signal.SIGUSR1,
        _signal.SIGUSR2,
        _signal.SIGCHLD,
        _signal.SIGWINCH,
    ):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def read_pid(data: bytes) -> int:
    """Read what a runtime wrote into its pid file. Raises ValueError for anything but a positive number."""
    text = data.strip()
    if not text:
        raise ValueError("is empty")
    if not text.isdigit() or len(text) > 10 or not 0 < int(text) < 1 << 31:  # pid_t
        raise ValueError(f"holds {text[:40]!r} where a process id belongs")
    if int(text) in (1, os.getpid()):
        raise ValueError(f"holds {int(text)}, which is no container's")
    return int(text)


def no_pid(path: str, error: OSError | ValueError) -> str:
    """Say why there is no pid to be had from the pid file."""
    if isinstance(error, ValueError):
        return f"the pid file {path} {error}"
    # Callers have seen this text from GLib for years; some look for it.
    return f"Failed to open file \u201c{path}\u201d: {error.strerror}"
