"""Opening a log file: the one step of logging that happens before the runtime is started.

Outsiders rely on: a log that cannot be opened is an error of the caller's command line, so it is opened
while the caller still listens. The driver behind it, which is more to import, comes later (k8s_file.py).
"""

from __future__ import annotations

import errno
import os

MODE = 0o640
# O_NONBLOCK: a log path may be a fifo, and a monitor must not hang on it. Regular files ignore it.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def open_log(path: str) -> int:
    """Open or create the log for appending. A fifo that nobody reads yet is opened as well."""
    try:
        return os.open(path, FLAGS | os.O_CREAT, MODE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    # Being its reader too keeps the fifo open; what is written stays in it until a reader comes.
    return os.open(path, FLAGS & ~os.O_WRONLY | os.O_RDWR)
