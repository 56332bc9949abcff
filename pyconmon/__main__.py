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

            sys.stdout.write(usage.version() if options.action == "version" else usage.help_text())
            sys.stdout.flush()
            return 0
        from pyconmon.checks import check, warnings

        options = check(options)
    except UsageError as error:
        _complain(str(error))
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

    process.protect_from_oom()
    try:
        start_pipe = fds.from_environment("_OCI_STARTPIPE")
        if start_pipe > 0:
            os.read(start_pipe, START_BYTES)  # the caller moves us to a cgroup, then lets us go on
            process.disown(start_pipe)
            if not options.exec_attach:
                start_pipe = fds.close(start_pipe)
    except (ValueError, OSError) as error:
        diag.error(f"cannot read the start pipe: {error}")
        return 1
    daemon = options.dialect == "modern"
    if daemon and not options.sync:
        process.go_to_background(options.conmon_pidfile)
    monitor = _make(options, process, logs, diag, words)
    try:
        monitor.adopt_pipes(start_pipe)
        if daemon and not logs.passthrough:
            process.leave_streams()
            diag.mute_stderr()
        process.become_parent_of_orphans(new_session=daemon)
    except (ValueError, OSError) as error:
        diag.error(str(error))
        return 1
    process.take_signals(monitor.loop, monitor.reaper.reap, monitor.forward)
    monitor.begin()
    return serve(monitor)


def _make(options: Options, process: Process, logs: Logs, diag: Diag, words: list[str]) -> Monitor:
    from pyconmon.loop import Loop
    from pyconmon.monitor import Monitor
    from pyconmon.reaper import Reaper
    from pyconmon.survival import Survival, directory_of

    directory = directory_of(options)
    survival = None if directory is None else Survival(directory, words, process, diag)
    return Monitor(options, process, Loop(diag.exception), Reaper(), logs, diag, survival)


def serve(monitor: Monitor) -> int:
    """Run the loop to the container's end, then the last act; give the exit status."""
    from pyconmon.monitor import DONE

    while monitor.phase != DONE:
        monitor.loop.run()
    last_act(monitor)
    return monitor.status


def last_act(monitor: Monitor, lost: str | None = None) -> None:
    """What comes after all reports: the exit command, then the attach link goes.

    `lost` is what could not be found out; the state file stays and tells it.
    """
    endpoints, process = monitor.endpoints, monitor.process
    process.stop_taking_signals()
    if endpoints is not None and endpoints.lingering and os.fork() == 0:
        # Clients that lag get the rest from a process of their own: they must not hold up the end.
        while endpoints.lingering:
            monitor.loop.run()
        os._exit(0)
    from pyconmon import linux

    linux.set_child_subreaper(False)
    if monitor.options.exit_command is not None:
        from pyconmon.exit_report import run_exit_command

        run_exit_command(
            monitor.options, process.environment, process.oom_score, process.mask, monitor.diag
        )
    if endpoints is not None:
        endpoints.remove_link()
    if monitor.survival is not None:
        monitor.survival.over(lost)


def _complain(text: str) -> None:
    try:
        os.write(2, f"{text}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
