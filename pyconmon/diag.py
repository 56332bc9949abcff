"""The monitor's own messages: stderr, syslog, levels.

Outsiders rely on: no method raises, none blocks, and nothing is printed that C conmon would not print at
the same level (CRI-O reads stdout and stderr of the monitor together). Containers' output never comes here.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

ERROR, WARNING, INFO, DEBUG, TRACE = range(5)
LEVELS = {"error": ERROR, "warning": WARNING, "info": INFO, "debug": DEBUG, "trace": TRACE}
LETTERS = "ewidd"
KINDS = ("<error>", "<nwarn>", "<ninfo>", "<ndebug>", "<ntrace>")
LOG_USER_ERR, LOG_USER_INFO = 11, 14  # facility user (1 << 3) with LOG_ERR and LOG_INFO, syslog(3)


class Diag:
    """Says what the monitor has to say, to whoever can hear it."""

    def __init__(self, level: str = "warning", ident: str = "conmon") -> None:
        self.level = LEVELS[level]
        self.ident = ident
        self._subject = ""
        self._syslog: _socket.socket | None = None
        self._use_syslog = False
        self._stderr = True

    def use_syslog(self, subject: str) -> None:
        """Send messages to the system log too, with `subject` (the first of the container id)."""
        self._use_syslog = True
        self._subject = subject[:20]

    def mute_stderr(self) -> None:
        """Descriptor 2 is not ours any more (it is /dev/null, or the container's)."""
        self._stderr = False

    def error(self, text: str) -> None:
        self._say(ERROR, text)

    def warn(self, text: str) -> None:
        self._say(WARNING, text)

    def info(self, text: str) -> None:
        self._say(INFO, text)

    def debug(self, text: str) -> None:
        self._say(DEBUG, text)

    def trace(self, text: str) -> None:
        self._say(TRACE, text)

    def exception(self, error: Exception) -> None:
        """A fault of our own: say what and where, in one line."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = ""
        if trace is not None:
            where = f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        self._say(ERROR, f"internal error{where}: {type(error).__name__}: {error}")

    def _say(self, level: int, text: str) -> None:
        if level > self.level:
            return
        if self._stderr:
            line = f"[conmon:{LETTERS[level]}]: {text}\n"
            try:
                os.write(2, line.encode("utf-8", "surrogateescape"))
            except OSError:
                pass
        if self._use_syslog:
            self._send(level, text)

    def _send(self, level: int, text: str) -> None:
        import _socket  # only for those who asked for syslog: 0.3 ms
        from time import localtime, strftime

        priority = LOG_USER_ERR if level == ERROR else LOG_USER_INFO
        now = strftime("%b %e %H:%M:%S", localtime())
        line = f"<{priority}>{now} {self.ident}: conmon {self._subject} {KINDS[level]}: {text}\n"
        try:
            if self._syslog is None:
                self._syslog = _socket.socket(
                    _socket.AF_UNIX,
                    _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC,
                )
                self._syslog.connect("/dev/log")
            self._syslog.send(line.encode("utf-8", "surrogateescape"))
        except OSError:  # no log daemon, or one that does not read: the container is what counts
            self._syslog = None
