"""The command: argv in, exit status out.

It decides what this process becomes (a word of help, a daemon with one monitor, a recovery) and runs the
loop. What a container's life looks like is monitor.py's matter.
"""

from __future__ import annotations

import os
import sys

from pyconmon.options import UsageError, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pyconmon.creation import Creation
    from pyconmon.diag import Diag
    from pyconmon.logs import Logs
    from pyconmon.monitor import Monitor
    from pyconmon.options import Options
    from pyconmon.process import Process

START_BYTES = 8192


def main(argv: list[str] | None = None) -> int:
    """Run the command `argv` (default: this process's); give the exit status."""
    words = sys.argv if argv is None else argv
    try:
        options = parse(words[1:])
        if options.action != "run":
            from pyconmon import usage

            _write(1, usage.version() if options.action == "version" else usage.help_text())
            return 0
        from pyconmon.checks import check, warnings

        options = check(options)
    except UsageError as error:
        _write(2, f"{error}\n")
        return 1
    from pyconmon.diag import Diag
    from pyconmon.process import Process

    process = Process()
    process.settle()
    diag = Diag(options.log_level, os.path.basename(words[0]) or "conmon")
    if options.syslog:
        diag.use_syslog(options.cid or "")
    if options.recover is not None or options.recover_under is not None:
        from pyconmon import recovery

        return recovery.main(options, process, diag)
    try:
        from pyconmon.logs import open_logs

        logs = open_logs(options, diag)
    except OSError as error:
        diag.error(f"Failed to open log file {error.filename}: {error.strerror}")
        return 1
    for text in warnings(options):
        diag.warn(text)
    return watch(options, process, logs, diag, words[1:])


def watch(options: Options, process: Process, logs: Logs, diag: Diag, words: list[str]) -> int:
    """Become the monitor of one container, from start pipe to last act."""
    from pyconmon import fds
    from pyconmon.creation import Creation

    unprotected = process.protect_from_oom()
    if unprotected is not None:
        diag.debug(f"failed to write to /proc/self/oom_score_adj: {unprotected.strerror}")
    daemon = options.dialect == "modern"
    creation = Creation(options, process, not daemon or logs.passthrough)
    try:
        start_pipe = fds.from_environment("_OCI_STARTPIPE")
        if start_pipe > 0:
            os.read(start_pipe, START_BYTES)  # the caller moves us to a cgroup, then lets us go on
            if not options.exec_attach:
                process.disown(start_pipe)
                start_pipe = fds.close(start_pipe)
    except (ValueError, OSError) as error:
        return _refuse(creation, diag, f"cannot read the start pipe: {_reason(error)}")
    if daemon and not options.sync:
        try:
            process.go_to_background(options.conmon_pidfile)
        except OSError as error:
            return _refuse(creation, diag, f"Failed to fork the create command: {_reason(error)}")
    try:
        creation.adopt_pipes(start_pipe)
    except (ValueError, OSError) as error:
        return _refuse(creation, diag, _reason(error))
    try:
        if not creation.passthrough:
            process.leave_streams()
            diag.mute_stderr()
        process.become_parent_of_orphans(new_session=daemon)
        monitor = _create(creation, logs, diag, words)
        if logs.passthrough:
            process.leave_streams()
            diag.mute_stderr()
        monitor.begin(creation)
    except Exception as error:  # no memory, no descriptors: nobody may wait for a word for ever
        diag.exception(error)
        creation.abandon(error)
        return 1
    return serve(monitor)


def _refuse(creation: Creation, diag: Diag, text: str) -> int:
    diag.error(text)
    creation.refuse(text)
    return 1


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _create(creation: Creation, logs: Logs, diag: Diag, words: list[str]) -> Monitor:
    """Start the runtime and make the monitor, which takes longer, while that is at work.

    Where somebody has to listen before the runtime may run, the monitor comes first.
    """
    options = creation.options
    monitor = console_socket = None
    try:
        creation.make_pipes(survive=not options.exec and not options.no_recovery)
        if creation.needs_listeners:
            monitor = _make(creation, logs, diag, words)
            console_socket = monitor.listen(creation)
        creation.process.hold_signals()
        creation.spawn(console_socket, diag)
    except OSError as error:
        creation.error = error
    if monitor is None:
        monitor = _make(creation, logs, diag, words)
    creation.process.release_signals()
    return monitor


def _make(creation: Creation, logs: Logs, diag: Diag, words: list[str]) -> Monitor:
    from pyconmon.loop import Loop
    from pyconmon.monitor import Monitor

    options, process = creation.options, creation.process
    survival = None
    if not options.exec:
        from pyconmon.survival import Survival  # of no use to an exec: 1 ms

        directory = options.persist_dir or options.bundle or ""
        survival = Survival(directory, words, options, process, diag)
    monitor = Monitor(options, process, Loop(diag.exception), logs, diag, survival)
    process.take_signals(monitor.loop, monitor.reaper.reap, monitor.forward)
    return monitor


def serve(monitor: Monitor) -> int:
    """Run the loop to the container's end, then the last act; give the exit status."""
    from pyconmon.monitor import DONE

    while monitor.phase != DONE:
        monitor.loop.run()
    last_act(monitor)
    return monitor.status


def last_act(monitor: Monitor) -> None:
    """What comes after all reports: the exit command, then the attach link goes."""
    endpoints, process, survival = monitor.endpoints, monitor.process, monitor.survival
    process.stop_taking_signals()
    try:
        if endpoints is not None and endpoints.lingering and os.fork() == 0:
            # Clients that lag get the rest from a process of their own: they must not hold up the end.
            if survival is not None:
                survival.let_go()  # nor a later container of this bundle
            while endpoints.lingering:
                monitor.loop.run()
            os._exit(0)
        from pyconmon import linux

        linux.set_child_subreaper(False)
    except Exception as error:
        monitor.diag.exception(error)
    if monitor.options.exit_command is not None and (survival is None or survival.owes_command):
        from pyconmon.exit_report import run_exit_command

        run_exit_command(
            monitor.options,
            process.environment,
            process.oom_score,
            process.mask,
            monitor.diag,
            survival,
        )
    if endpoints is not None:
        endpoints.remove_link()
    if survival is not None:
        survival.let_go()


def _write(fd: int, text: str) -> None:
    """Write to a stream of the caller's, who may have closed it or read no more."""
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    except OSError:
        pass


def run() -> NoReturn:
    """Be the command: as `main`, and leave at once. Tidying up an interpreter takes 2 ms of a caller's time."""
    os._exit(main())


if __name__ == "__main__":
    run()
