"""Creation: everything up to the runtime's start, and nothing that could wait until after it.

Outsiders rely on: the caller waits for the runtime, so what is imported and done here is what the runtime
needs; the monitor itself (monitor.py) is made while the runtime is at work. It takes over the descriptors.
"""

from __future__ import annotations

import os

from pyconmon import fds
from pyconmon.runtime import Child, build_argv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.diag import Diag
    from pyconmon.options import Options
    from pyconmon.process import Process

STDIN, STDOUT, STDERR = 0, 1, 2


class Creation:
    """The pipes to the caller and to the container, and the runtime that is to create it.

    `ours` has our ends of the container's pipes by stream; `runtime_pid` is -1 until `spawn`, and stays
    so if that failed: `error` says why.
    """

    def __init__(self, options: Options, process: Process, passthrough: bool) -> None:
        self.options = options
        self.process = process
        self.passthrough = passthrough
        self.sync_fd = self.attach_fd = self.start_fd = -1
        self.ours: dict[int, int] = {}
        self.runtime_pid = -1
        self.error: OSError | None = None
        self._theirs: tuple[int, int, int] | None = None

    @property
    def needs_listeners(self) -> bool:
        """Somebody has to listen before the runtime may run: for a terminal, a client, a notification."""
        options = self.options
        return options.terminal or options.exec_attach or options.sdnotify_socket is not None

    def adopt_pipes(self, start_fd: int) -> None:
        """Take over the caller's pipes. Raises ValueError for one that is missing or not open."""
        self.start_fd = start_fd
        self.sync_fd = fds.from_environment("_OCI_SYNCPIPE")
        self.process.disown(self.sync_fd)
        if self.options.exec_attach:
            self.attach_fd = fds.from_environment("_OCI_ATTACHPIPE")
            if self.attach_fd < 0:
                raise ValueError("--attach specified but _OCI_ATTACHPIPE was not")

    def tell_attached(self) -> None:
        """Clients can connect now; a caller that has gone meanwhile does not stop the command."""
        if self.attach_fd >= 0:
            from pyconmon.sync_pipe import encode

            try:
                os.write(self.attach_fd, encode("data", 0))
            except OSError:
                pass

    def make_pipes(self, *, survive: bool) -> None:
        """Make the container's streams, unless it has the caller's. Raises OSError.

        With `survive` the container itself keeps its pipes alive should we die: its ends are opened for
        reading too. Only for one whose processes all end with its first: see survival.py.
        """
        if self.passthrough:
            return
        options = self.options
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        stdin = stdout = null
        if options.stdin and not options.terminal:
            stdin, self.ours[STDIN] = os.pipe2(os.O_CLOEXEC)
            os.fchmod(stdin, 0o777)
        survive = survive and not options.terminal and has_own_pid_namespace(options.bundle or "")
        if not options.terminal:
            stdout = self._output_pipe(STDOUT, survive)
        self._theirs = (stdin, stdout, self._output_pipe(STDERR, survive))

    def _output_pipe(self, stream: int, survive: bool) -> int:
        self.ours[stream], theirs = os.pipe2(os.O_CLOEXEC)
        # The container's user may open /dev/stdout anew, so the pipe has to let everybody.
        os.fchmod(theirs, 0o777)
        if survive:
            both = os.open(f"/proc/self/fd/{theirs}", os.O_RDWR | os.O_CLOEXEC)
            os.close(theirs)
            return both
        return theirs

    def spawn(self, console_socket: str | None, diag: Diag) -> None:
        """Fork the runtime; from now on it, or its container, may end at any moment. Never raises."""
        options = self.options
        try:
            forget_old_pid(options.container_pidfile or "")
            child = Child(
                build_argv(options, console_socket),
                self._theirs,
                self.process.environment,
                start_gate=self.start_fd if options.exec_attach else -1,
                oom_score=self.process.oom_score,
                replace_listen_pid=options.replace_listen_pid,
                mask=self.process.mask,
            )
            diag.trace("runtime: " + " ".join(child.argv))
            self.runtime_pid = child.spawn()
        except OSError as error:
            self.error = error
        if self._theirs is not None:
            for fd in set(self._theirs):
                os.close(fd)

    def refuse(self, text: str) -> None:
        """Tell the caller, whose pipes may not have been adopted yet, that there will be no container."""
        from pyconmon.sync_pipe import SyncPipe

        options = self.options
        if options.dialect != "modern":
            return
        try:
            if self.sync_fd < 0:
                self.sync_fd = fds.from_environment("_OCI_SYNCPIPE")
        except ValueError:
            return
        key = "data" if options.api_version else "exit_code" if options.exec else "pid"
        SyncPipe(self.sync_fd).send(key, -1, text.encode("utf-8", "surrogateescape"))

    def abandon(self, error: Exception) -> None:
        """No monitor can be had: tell the caller, and leave nothing of what was begun."""
        from pyconmon import processes
        from pyconmon.reaper import Reaper

        self.refuse(f"the monitor could not be started: {error or type(error).__name__}")
        processes.kill_children(Reaper())


def has_own_pid_namespace(bundle: str) -> bool:
    """Say whether all of a container's processes end with its first one.

    Only then may it hold the reading end of its own pipes: a process that outlives the container (and us)
    would otherwise block for ever on a full pipe that nobody reads, where it should get EPIPE. A look at
    the text of config.json is enough, and what is unclear counts as no; a JSON parser costs 5 ms.
    """
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            text = file.read(1 << 20)
    except OSError:
        return False
    for rest in text.split(b'"namespaces"')[1:]:
        if rest.lstrip().startswith(b":"):  # the key, and no word of a command
            entries = rest.partition(b"[")[2].partition(b"]")[0].split(b"}")
            return any(b'"pid"' in entry and b'"path"' not in entry for entry in entries)
    return False


def forget_old_pid(path: str) -> None:
    """A stale pid must never be believed. An empty file is left alone: CRI-O makes it beforehand."""
    try:
        if os.stat(path).st_size > 0:
            os.unlink(path)
    except OSError:
        pass
