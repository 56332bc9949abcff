"""THE STORY: one container's life (or one exec'ed command's), top to bottom.

It reads in the order in which things happen. The monitor is an object on a loop: it never blocks, never
exits, and holds nothing that belongs to the process as a whole. Rooms do not know each other; where two
meet, this module hands one a callable of the other.
"""

from __future__ import annotations

import _signal
import os

from pyconmon import fds, linux
from pyconmon.container import ContainerProcess
from pyconmon.exit_report import exit_files, write_exit_file
from pyconmon.fds import describe
from pyconmon.loop import READABLE
from pyconmon.reaper import UNKNOWN, Reaper, exit_status
from pyconmon.runtime import no_pid, read_pid
from pyconmon.stdio import Reader
from pyconmon.streams import Streams
from pyconmon.sync_pipe import SyncPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyconmon.creation import Creation
    from pyconmon.diag import Diag
    from pyconmon.endpoints import Endpoints
    from pyconmon.logs import Logs
    from pyconmon.loop import Loop
    from pyconmon.oom import OomWatch
    from pyconmon.options import Options
    from pyconmon.process import Process
    from pyconmon.survival import Survival

CREATING, RUNNING, DRAINING, DONE = "creating", "running", "draining", "done"
TIMED_OUT = b"command timed out"  # CRI-O compares this text
SECOND_TRY = 0.5  # seconds
NO_TERMINAL = b"Runtime did not set up terminal"


class Monitor:
    """Watches one container (or exec'ed command) from before its creation to after its end.

    `status` is the exit status for the process once `phase` is DONE: that of the container, 255 for an
    unknown one, 1 if there was no container to watch; always 0 in the classic dialect after success.
    """

    def __init__(
        self,
        options: Options,
        process: Process,
        loop: Loop,
        logs: Logs,
        diag: Diag,
        survival: Survival | None = None,
    ) -> None:
        self.options = options
        self.process = process
        self.loop = loop
        self.reaper = Reaper()
        self.logs = logs
        self.diag = diag
        self.survival = survival
        self.phase = CREATING
        self.status = 1
        self.container: ContainerProcess | None = None
        self.code = UNKNOWN
        self.timed_out = False
        self.endpoints: Endpoints | None = None
        self._classic = options.dialect == "classic"
        self._key = "data" if options.api_version else "exit_code" if options.exec else "pid"
        self._sync = SyncPipe(-1)
        self._runtime_pid = -1
        self._runtime_fd = -1
        self._runtime_status: int | None = None
        self._early_signals: list[int] = []
        self._oom: OomWatch | None = None
        logs.use_loop(loop)
        self.streams = Streams(options, loop, logs, Reader(), diag)

    # ---- before there is a container ----

    def listen(self, creation: Creation) -> str | None:
        """Be there for those who use us before the container runs; give the console socket's path.

        Raises OSError. A client of an exec with attach connects first, and only then lets the runtime
        start by the start pipe.
        """
        path = self.streams.listen(self._terminal_failed) if self.options.terminal else None
        if creation.attach_fd >= 0 or self.options.sdnotify_socket is not None:
            self.streams.take(creation.ours)
            creation.ours = {}
            self._open_endpoints()
        creation.tell_attached()
        return path

    def begin(self, creation: Creation) -> None:
        """The runtime is at work: take over its streams, open the endpoints, wait for its end."""
        self._sync = SyncPipe(creation.sync_fd)
        self._runtime_pid = creation.runtime_pid
        self.streams.take(creation.ours)
        try:
            if creation.error is not None:
                raise creation.error
            self.reaper.watch(self._runtime_pid, self._runtime_ended)
            self._runtime_fd = linux.pidfd_open(self._runtime_pid)
            if self._runtime_fd >= 0:  # besides SIGCHLD, so that one which got lost costs nothing
                self.loop.watch(self._runtime_fd, READABLE, lambda revents: self._look_for_end())
            self._open_endpoints()
        except OSError as error:
            self._give_up(describe(error))
        except Exception as error:
            self._give_up_after(error)

    def _give_up_after(self, error: Exception) -> None:
        """A fault of ours, or of the machine: the caller must not wait for a word for ever."""
        self.diag.exception(error)
        self._give_up(f"internal error: {type(error).__name__}: {error}".encode())

    def _open_endpoints(self) -> None:
        """Sockets and fifos in the bundle; they are there before the caller hears of the container."""
        if self.endpoints is None and not self._classic:
            # Most of a monitor's code: not before the fork.
            from pyconmon.endpoints import Endpoints

            self.endpoints = Endpoints(self.options, self.loop, self.diag, self.streams, self.logs)
            self.endpoints.open()

    # ---- the runtime has returned ----

    def _look_for_end(self) -> None:
        self._forget_runtime_fd()
        self.reaper.reap()

    def _forget_runtime_fd(self) -> None:
        self.loop.forget(self._runtime_fd)
        self._runtime_fd = fds.close(self._runtime_fd)

    def _runtime_ended(self, wait_status: int) -> None:
        self._forget_runtime_fd()
        self._runtime_pid = -1
        self._runtime_status = exit_status(wait_status)
        try:
            self.streams.serve_pending_terminal()
            self._await_runtime()
        except Exception as error:  # a fault of ours, or of the machine
            self._give_up_after(error)

    def _terminal_failed(self, text: str) -> None:
        self._give_up(text.encode())

    def _await_runtime(self) -> None:
        """Find out whether there is a container, and which process it is."""
        if self.phase != CREATING:
            return
        self.streams.take_messages()
        status = self._runtime_status
        if status and not self.options.exec:
            self._give_up(self._runtime_said(f"exited with status {status}"))
            return
        if status == 0 and not self.streams.terminal_ready:
            self._give_up(NO_TERMINAL)
            return
        path = self.options.container_pidfile or ""
        try:
            pid = read_pid(fds.read_status(path))
        except (OSError, ValueError) as error:
            self._give_up(self._runtime_said(f"exited with status {status}: {no_pid(path, error)}"))
            return
        if not self.streams.terminal_ready:
            self._give_up(NO_TERMINAL)
            return
        self._announce(pid)

    def _runtime_said(self, otherwise: str) -> bytes:
        """What the runtime wrote to stderr, or failing that what can be said of its end."""
        said = self.streams.messages()
        if said:
            return said
        return f"runtime {self.options.runtime} {otherwise}".encode("utf-8", "surrogateescape")

    def _give_up(self, message: bytes) -> None:
        """There is no container: say so, and leave no process behind."""
        if self.phase != CREATING:
            return
        text = message.decode("utf-8", "surrogateescape")
        if self._classic:
            # A classic client takes any message with a pid in it for success.
            self.diag.error(text.rstrip("\n"))
        else:
            self.diag.error(f"Failed to create container: {text}")
            self._sync.send(self._key, UNKNOWN, message)
        if self.endpoints is not None:
            self.endpoints.close()
        self.streams.close()
        self._forget_runtime_fd()
        self._end_leftovers()
        self._finish(1)

    def _end_leftovers(self) -> None:
        from pyconmon import processes  # only where something went wrong

        if self._runtime_pid > 0:
            self.reaper.forget(self._runtime_pid)
        processes.kill_children(self.reaper)

    # ---- the container runs ----

    def _announce(self, pid: int) -> None:
        """The caller hears of the container, and it is watched from here on.

        What the caller has heard of is never lost: our successor can find it before that.
        """
        self.container = ContainerProcess(self.loop, self.reaper, pid, self._end)
        self.phase = RUNNING
        self.diag.debug(f"container pid {pid}")
        self._become_survivable(pid)
        if self._key != "exit_code":
            self._sync.send(self._key, pid)
        self._watch_container()
        if self.phase != RUNNING:  # it has ended already
            return
        if self.options.timeout > 0:
            self.limit_time(self.options.timeout)
        for number in self._early_signals:
            self.container.send_signal(number)
        self._succeeds(self.streams.flow)
        if not self._classic and not self.options.exec:
            self._succeeds(self._watch_memory)

    def _watch_container(self) -> None:
        """Tried twice: what fails now (no descriptor, no memory) may work in a moment."""
        if self.container is not None and not self._succeeds(self.container.watch):
            self.loop.call_after(SECOND_TRY, self.container.watch)

    def limit_time(self, seconds: float) -> None:
        """End the container unless it ends by itself before that."""
        from pyconmon import processes  # noqa: F401  (by then an upgrade may have taken its file)

        self.loop.call_after(seconds, self._time_is_up)

    def _become_survivable(self, pid: int) -> None:
        """Keep what another monitor needs to go on, should we be killed."""
        if self.survival is None:
            return
        try:
            reader = self.survival.container_created(pid, self.streams.inodes, self.logs)
            if reader is not None and not self.options.terminal:
                self.streams.read_with(reader)
        except Exception as error:  # then it cannot be recovered; it is watched all the same
            self.diag.exception(error)

    def resume(self, pid: int, pidfd: int) -> None:
        """Take the place of a dead monitor: the container runs, its streams have been adopted."""
        self.container = ContainerProcess(self.loop, self.reaper, pid, self._end, pidfd)
        self.phase = RUNNING
        try:
            self._open_endpoints()
        except OSError as error:  # the bundle may be gone, or elsewhere
            self.diag.error(f"clients cannot attach: {describe(error).decode(errors='replace')}")
        except Exception as error:
            self.diag.exception(error)
        self._succeeds(self._watch_memory)
        self._watch_container()

    def owe(self, pid: int, pidfd: int, code: int, *, timed_out: bool) -> None:
        """Take the place of a dead monitor whose container has ended too: report what it owed.

        `pidfd` is -1 where the process is gone.
        """
        if pidfd >= 0:
            self.container = ContainerProcess(self.loop, self.reaper, pid, self._end, pidfd)
        self.phase = RUNNING
        self.timed_out = timed_out
        self._end(code)

    def already_reported(self, code: int) -> None:
        """Take the place of a dead monitor that had reported everything: the exit command is left."""
        self.code = code
        self._finish(code if code >= 0 else 255)

    def _watch_memory(self) -> None:
        from pyconmon.oom import OomWatch  # after the pid has been told: nobody waits for this

        directories = [d for d in (self.options.persist_dir, self.options.bundle) if d]
        pid = self.container.pid if self.container is not None else -1
        self._oom = OomWatch(self.loop, self.diag, pid, directories)
        self._oom.start()

    def forward(self, number: int) -> None:
        """Pass a signal on: to the container, or to the runtime while it creates one."""
        if number == _signal.SIGWINCH:
            self.streams.window_changed()
        elif self.container is not None:
            self.container.send_signal(number)
        elif self._runtime_pid > 0:
            os.kill(self._runtime_pid, number)
            # It may shrug it off (runc does), with an exec'ed command at work already.
            if number not in self._early_signals:
                self._early_signals.append(number)

    def _time_is_up(self) -> None:
        self.reaper.reap()
        if self.phase != RUNNING:
            return
        self.timed_out = True
        self._end(UNKNOWN)

    # ---- the end ----

    def _end(self, code: int) -> None:
        """The container has ended with `code` (-1: nobody can know), or its time is up."""
        if self.phase != RUNNING:
            return
        self.phase = DRAINING
        self.code = code
        self.wind_down()

    def wind_down(self) -> None:
        """The end, in the order that callers rely on; each step happens whatever became of the others."""
        steps = [
            self._note_the_end,
            self._last_look_at_memory,
            self._collect_output,
            self._stop_overdue,
            self._close,
            self._report,
        ]
        # What fails is tried once more: by then descriptors and memory have been given back.
        for step in [step for step in steps if not self._succeeds(step)]:
            if not self._succeeds(step) and step == self._report and self.survival is not None:
                self.survival.unwritten.append("all reports")
        self._finish(0 if self._classic else self.code if self.code >= 0 else 255)

    def _succeeds(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:
            self.diag.exception(error)
            return False
        return True

    def _note_the_end(self) -> None:
        if self.container is not None and not self.timed_out:
            self.diag.info(f"container {self.container.pid} exited with status {self.code}")
        if self.survival is not None:
            self.survival.container_ended(self.code, self.timed_out)

    def _last_look_at_memory(self) -> None:
        if self._oom is not None:
            self._oom.check_now()
            self._oom.close()

    def _collect_output(self) -> None:
        """All that the container wrote before its end is in the log when the exit file appears."""
        self.streams.drain()
        self.logs.finish(flush_partial=not self.timed_out, sync=not self.options.no_sync_log)

    def _stop_overdue(self) -> None:
        if self.timed_out and self.container is not None:
            from pyconmon import processes

            outputs = [inode for stream, inode in self.streams.inodes.items() if stream > 0]
            processes.kill_overdue(self.container, outputs, self.reaper)

    def _close(self) -> None:
        """The ports that a caller parked with us are free, and clients see the end, before the exit file."""
        self.process.close_inherited(keep=self._sync.fd)
        self.streams.close()
        if self.endpoints is not None:
            self.endpoints.finish()

    def _report(self) -> None:
        for directory, name in exit_files(self.options):
            before = self.survival.before if self.survival is not None else None
            written = write_exit_file(directory, name, self.code, self.diag, before)
            if not written and self.survival is not None:
                self.survival.unwritten.append(f"{directory}/{name}")
        if self.options.exec:
            self._sync.send(self._key, self.code, TIMED_OUT if self.timed_out else b"")
        if self.endpoints is not None:
            self.endpoints.remove()

    def _finish(self, status: int) -> None:
        self.status = status
        self.phase = DONE
        self.loop.stop()
        self._sync.close()  # before the exit command starts: callers wait for this end
        self.logs.close()
        if self.container is not None:
            self.container.close()
        if self.survival is not None:
            self.survival.reported()
