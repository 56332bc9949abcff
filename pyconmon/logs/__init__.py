"""Where a container's output is logged: the ``-l`` grammar, and the drivers behind one write().

Outsiders rely on: the values of ``-l`` and the error texts for them, several drivers at once (each
gets everything), and that logging never blocks the container for long nor stops it. Drivers are
imported when they are used: most containers need one.

Out of scope: what was read from where, and when (stdio.py); attached clients (attach.py).
"""

from __future__ import annotations

import os
import time

from pyconmon.logs.opening import open_first

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyconmon.diag import Diag
    from pyconmon.logs.journald import Journald, Keep
    from pyconmon.logs.k8s_file import K8sFile, Witness
    from pyconmon.logs.opening import Opened
    from pyconmon.loop import Loop
    from pyconmon.options import Options

STDOUT, STDERR = 1, 2


def parse_log_path(spec: str) -> tuple[str, str | None] | None:
    """A value of ``-l`` as (driver, path); None if it asks for no log (none, off, null).

    Pieces are separated by any number of colons, leading ones are skipped and a third piece is
    ignored, as C's strtok() has it; so no path can hold a colon. A value without a driver is a
    path, also one that begins with a colon: ``:journald`` is a file. Raises ValueError.
    """
    pieces = [piece for piece in spec.split(":") if piece]
    if not pieces:
        raise ValueError("log-path must not be empty")
    first = pieces[0]
    if spec.startswith(":"):
        return "k8s-file", first
    if first in ("none", "off", "null"):
        return None
    if first in ("journald", "passthrough"):
        return first, None
    if first == "k8s-file":
        if len(pieces) == 1:
            raise ValueError("k8s-file requires a filename")
        return "k8s-file", pieces[1]
    if ":" in spec:
        raise ValueError(f"No such log driver {first}")
    return "k8s-file", spec


def open_logs(
    options: Options, diag: Diag, opener: Callable[[str], Opened | None] = open_first
) -> Logs:
    """Open the drivers of `options.log_drivers`. A log file that cannot be opened is an OSError.

    `opener` opens the file in a way of its own; with None from it there is no log file.
    """
    logs = Logs(diag)
    logs.unloaded = options
    for driver, path in options.log_drivers:
        if driver == "passthrough":
            logs.passthrough = True
        elif driver == "journald":
            logs.wants_journal = True
        elif driver == "k8s-file" and path is not None:
            if logs.opened is not None:
                os.close(logs.opened[1][0])
            opened = opener(path)
            logs.opened = None if opened is None else (path, opened)
    return logs


class Logs:
    """The logs of one container. No method raises; trouble is reported through `diag`, once."""

    __slots__ = (
        "_diag", "_said", "checkpoint", "file", "journal", "keep", "opened", "passthrough",
        "timestamp",
        "unloaded", "wants_journal",
    )  # fmt: skip

    def __init__(self, diag: Diag) -> None:
        self._diag = diag
        self._said = False
        self.passthrough = False
        self.wants_journal = False
        self.unloaded: Options | None = None
        self.opened: tuple[str, Opened] | None = None  # until `load`
        self.file: K8sFile | None = None
        self.journal: Journald | None = None
        self.timestamp: Callable[[], int] = time.time_ns
        # Called before each write to a log file with (consumed, inode, offset): so many bytes of
        # the present write()'s data are in the file, and that is the file and its size.
        self.checkpoint: Callable[[int, int, int], None] | None = None
        # Is told what the journal driver has sent, and what it holds back at the end of a write().
        self.keep: Keep | None = None

    @property
    def wanted(self) -> bool:
        """There is a log at all."""
        return self.wants_journal or self.opened is not None or self.file is not None

    def load(self) -> None:
        """Import and make the drivers, if that has not been done: when nobody waits for it any more."""
        options, self.unloaded = self.unloaded, None
        if options is None:
            return
        if self.wants_journal and self.journal is None:
            from pyconmon.logs.journald import Journald

            self.journal = Journald.from_options(options, self._diag)
        if self.opened is not None:
            from pyconmon.logs.k8s_file import K8sFile

            (path, opened), self.opened = self.opened, None
            self.file = K8sFile(
                path,
                opened,
                self._diag,
                size_max=options.log_size_max,
                global_max=options.log_global_size_max,
                keep=options.log_max_files if options.log_rotate else 0,
            )

    def tell(self, witness: Witness) -> None:
        """Have `witness` know from now on which file is the log."""
        self.load()
        if self.file is not None:
            self.file.tell(witness)

    def use_loop(self, loop: Loop) -> None:
        """From now on, what the journal has no room for is sent from `loop` as soon as it has."""
        self.load()
        if self.journal is not None:
            self.journal.use_loop(loop)

    def write(self, stream: int, data: memoryview | bytes) -> None:
        """Log what one read of stdout (1) or stderr (2) gave; `data` may be reused afterwards.

        Records of a call share one time. Output that is not the end of a line is logged as it is,
        flagged partial; there is no limit to the length of `data`.
        """
        if self.unloaded is not None:
            self.load()
        block = data if type(data) is bytes else bytes(data)
        if not block:
            return
        try:
            if self.file is not None:
                self.file.write(stream, block, self.timestamp(), self.checkpoint)
            if self.journal is not None:
                self.journal.write(stream, block, self.keep)
        except Exception as error:
            self._broken(error)

    def restore(self, held: Mapping[int, tuple[bytes, int]]) -> None:
        """Begin with the unfinished lines that the journal driver of a dead monitor held back."""
        self.load()
        if self.journal is not None:
            self.journal.restore(held)

    def resume(
        self,
        stream: int,
        data: memoryview | bytes,
        timestamp_ns: int,
        consumed: int,
        inode: int,
        offset: int,
        sent: int = 0,
    ) -> None:
        """Finish a write() that was cut off by the death of the monitor that made it.

        Arguments: that write's stream, data and time, its last checkpoint (inode 0: there was none),
        and how many messages the journal has of it. The log file gets exactly what is missing in it;
        the journal may get one message twice, the one that was being sent.
        """
        if self.unloaded is not None:
            self.load()
        block = bytes(data)
        try:
            if self.file is not None:
                if inode:
                    self.file.resume(
                        stream, block, timestamp_ns, consumed, inode, offset, self.checkpoint
                    )
                else:
                    self.file.write(stream, block, self.timestamp(), self.checkpoint)
            if self.journal is not None:
                self.journal.write(stream, block, self.keep, sent)
        except Exception as error:
            self._broken(error)

    def reopen(self) -> None:
        """Begin a new log file; what is there is moved aside, or gone, as the options say."""
        if self.unloaded is not None:
            self.load()
        try:
            if self.file is not None:
                self.file.reopen()
        except Exception as error:
            self._broken(error)

    def finish(self, flush_partial: bool, sync: bool) -> None:
        """The container has ended: send what the journal driver holds, fsync the log file."""
        try:
            if self.journal is not None:
                self.journal.finish(flush_partial)
            if self.file is not None and sync:
                self.file.sync()
        except Exception as error:
            self._broken(error)

    def close(self) -> None:
        """Close everything; may be called twice."""
        if self.opened is not None:
            os.close(self.opened[1][0])
            self.opened = None
        file, self.file = self.file, None
        journal, self.journal = self.journal, None
        if file is not None:
            file.close()
        if journal is not None:
            journal.close()

    def _broken(self, error: Exception) -> None:
        # A defect of ours, or no memory. A container is worth more than its log: go on.
        if not self._said:
            self._said = True
            self._diag.error(f"logging failed: {error!r}")
