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
    from pyconmon.survival import Survival


TRIES, PAUSE = 3, 0.05  # seconds


def exit_files(options: Options) -> list[tuple[str, str]]:
    """Give directory and name of each exit file, in the order in which they are to be written.

    Persist dir first: CRI-O acts on the exit dir's event and reads the persist dir's file.
    """
    places = []
    if options.dialect == "classic" and not options.exec:
        places.append((options.bundle or "", "exit"))
    if options.persist_dir is not None:
        places.append((options.persist_dir, "exit"))
    if options.exit_dir is not None:
        places.append((options.exit_dir, options.cid or ""))
    return places


def present_files(options: Options) -> dict[str, list[int] | None]:
    """Tell for each exit file's path which file is there now, by numbers; None: there is none."""
    return {(path := os.path.join(*place)): _present(path) for place in exit_files(options)}


def _present(path: str) -> list[int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return [status.st_dev, status.st_ino, status.st_mtime_ns]


def write_exit_file(
    directory: str,
    name: str,
    code: int,
    diag: Diag,
    before: dict[str, list[int] | None] | None = None,
) -> bool:
    """Write the bare number into `directory`/`name`; False (and a message) if it cannot be done.

    Callers take the file's ctime as the time of the end. So one that a monitor which has died since had
    written already is left alone: `before` is what was there (`present_files`) when nothing had been
    written yet. Times would not tell: the clock may have been set.
    """
    path, text = os.path.join(directory, name), b"%d" % code
    for left in range(TRIES, 0, -1):
        try:
            if before is not None:
                fds.remove_temporaries(path)
            if before is None or not _is_written(path, text, before):
                fds.replace_file(path, text)
            return True
        except OSError as error:
            if left == 1:
                diag.error(f"cannot write the exit file {path}: {error.strerror}")
            else:
                sleep(PAUSE)  # nothing else is worth as much as this file
    return False


def _is_written(path: str, text: bytes, before: dict[str, list[int] | None]) -> bool:
    present = _present(path)
    if present is None or path not in before or present == before[path]:
        return False
    try:
        return fds.read_status(path) == text
    except OSError:
        return False


def run_exit_command(
    options: Options,
    environment: dict[str, str],
    oom_score: bytes | None,
    mask: set[int],
    diag: Diag,
    survival: Survival | None = None,
) -> None:
    """Run the exit command, if there is one, and wait for it.

    It is the last act: it has nothing of ours but the working directory, the environment and the null
    streams, and its own children are nobody's but init's (we stop being subreaper first), or a restart
    by the command would end up below a monitor that is about to leave.

    The child itself notes in `survival` that nothing is owed any more, as its last step before it becomes
    the command, and holds the lock until then: so the command runs once, whoever is killed when. Not
    later either: the command may start the container anew, whose state would be in the same place. We
    let go of it before that: a file open in the bundle would be in the way of a command that removes it
    (on NFS it stays as long as it is open).
    """
    if options.exit_command is None:
        return
    try:
        gate, ours = os.pipe()
        pid = os.fork()
    except OSError as error:
        diag.error(f"exit command {options.exit_command} could not be run: {error.strerror}")
        return
    if pid == 0:
        try:
            os.close(ours)
            os.read(gate, 1)  # the end comes when our parent has let go, or is dead
            lock = survival.lock if survival is not None else -1
            if lock >= 0:
                os.closerange(3, lock)
            os.closerange(max(lock + 1, 3), 2**31 - 1)
            if options.exit_delay > 0:
                sleep(options.exit_delay)
            if survival is not None:
                survival.over()
            if oom_score is not None:
                restore_oom_score(oom_score)
            fresh_signals(mask)
            argv = [options.exit_command, *options.exit_command_args]
            os.execve(options.exit_command, argv, environment)
        finally:
            os._exit(127)
    if survival is not None:
        survival.let_go()
    os.close(gate)
    os.close(ours)
    ended = status = 0
    while ended != pid:  # orphans that we have adopted may end meanwhile, and would stay as zombies
        ended, status = os.waitpid(-1, 0)
    if os.WIFSIGNALED(status):
        diag.warn(f"exit command {options.exit_command} ended by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status) == 127:
        diag.error(f"exit command {options.exit_command} could not be run")
