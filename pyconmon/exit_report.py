"""What is left behind at the end: exit files and the exit command.

Outsiders rely on: each exit file appears whole; one that cannot be written costs none of the others.
The order in which the reports happen stands in monitor.py.
"""

from __future__ import annotations

import os
from time import sleep

from pyconmon import fds
from pyconmon.runtime import fresh_signals, restore_oom_score

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyconmon.diag import Diag
    from pyconmon.options import Options


def write_exit_file(directory: str, name: str, code: int, diag: Diag) -> None:
    """Write the bare number into `directory`/`name`; a failure is reported and nothing more.

    Callers take the file's ctime as the time of the end.
    """
    try:
        fds.replace_file(os.path.join(directory, name), b"%d" % code)
    except OSError as error:
        diag.error(f"cannot write the exit file {directory}/{name}: {error.strerror}")


def run_exit_command(
    options: Options,
    environment: dict[str, str],
    oom_score: bytes | None,
    mask: set[int],
    diag: Diag,
) -> None:
    """Run the exit command, if there is one, and wait for it.

    It is the last act: it has nothing of ours but the working directory, the environment and the null
    streams, and its own children are nobody's but init's (we stop being subreaper first), or a restart
    by the command would end up below a monitor that is about to leave.
    """
    if options.exit_command is None:
        return
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, 2**31 - 1)
            if options.exit_delay > 0:
                sleep(options.exit_delay)
            if oom_score is not None:
                restore_oom_score(oom_score)
            fresh_signals(mask)
            argv = [options.exit_command, *options.exit_command_args]
            os.execve(options.exit_command, argv, environment)
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        diag.warn(f"exit command {options.exit_command} ended by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status) == 127:
        diag.error(f"exit command {options.exit_command} could not be run")
