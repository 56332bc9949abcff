"""The k8s-file log driver: records appended to a file, within limits, never torn.

Outsiders rely on: the record format (record.py), a file at the path from the moment the driver is
opened, whole records only (also after a full disk, a crash or a rotation), and that nothing that
happens to the file stops the container: what cannot be written is dropped, reported once, and
writing is tried again with the next output.
"""

from __future__ import annotations

import os

from pyconmon.logs import limits, opening, record, rotation
from pyconmon.logs.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyconmon.diag import Diag
    from pyconmon.logs.opening import Link, Opened

    Checkpoint = Callable[[int, int, int], None]

    class Witness(Protocol):
        """Is told which file is the log."""

        def announce_log(self, inode: int) -> None:
            """This one will be it in a moment."""

        def note_log(self, link: Link | None, status: os.stat_result) -> None:
            """This one is it, reached through that link."""


FLUSH = 131072  # bytes of text that are gathered for one writev()
IOV_SAFE = 900  # buffers for one writev(); the kernel takes 1024
LF = record.LF


class K8sFile:
    """One open log file. Sizes are in bytes; a limit <= 0 is none."""

    __slots__ = (
        "_fd", "_global_max", "_gone", "_inode", "_keep", "_limited", "_link", "_regular", "_size",
        "_size_max", "_stamp", "_stuck", "_torn", "_total", "_trouble", "_witness", "path",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        opened: Opened,
        diag: Diag,
        size_max: int = -1,
        global_max: int = -1,
        keep: int = 0,
    ) -> None:
        """Takes over the file `opened`. `keep` > 0: rotate, with so many old files."""
        self.path = path
        self._size_max = size_max
        self._global_max = global_max
        self._keep = keep
        self._stamp = record.Stamp()
        self._trouble = Trouble(diag, f"log {path}", "output is lost until it can be written again")
        self._stuck = Trouble(diag, f"log {path} cannot be replaced", "it grows beyond its limit")
        self._torn = False
        self._witness: Witness | None = None
        self._fd = -1
        fd, self._link, self._gone = opened
        self._adopt(fd)
        self._total = self._size
        if self._regular:
            self._torn = rotation.ends_torn(path, self._size)

    def _adopt(self, fd: int) -> None:
        """Make `fd` the log; the old descriptor is closed."""
        old, self._fd = self._fd, fd
        if old >= 0:
            os.close(old)
        status = os.fstat(fd)
        self._regular = rotation.is_regular(status)
        self._inode = status.st_ino
        # What is in the file already counts: a container that is started again has the same limit.
        self._size = status.st_size if self._regular else 0
        self._torn = False
        self._limited = self._regular and (self._size_max > 0 or self._global_max > 0)
        if self._witness is not None:
            self._witness.note_log(self._link, status)

    def tell(self, witness: Witness) -> None:
        """Who has to know which file is the log, from now on."""
        self._witness = witness
        witness.note_log(self._link, os.fstat(self._fd))

    def _announce(self, fd: int) -> None:
        if self._witness is not None:
            self._witness.announce_log(os.fstat(fd).st_ino)

    def write(
        self, stream: int, block: bytes, nanoseconds: int, checkpoint: Checkpoint | None
    ) -> None:
        """Log what one read of stdout (1) or stderr (2) gave; see Logs.write."""
        head = self._stamp.head(stream, nanoseconds)
        if self._limited:
            self._write_limited(head, block, 0, checkpoint)
        else:
            self._append(head, block, 0, len(block), checkpoint)

    def _write_limited(
        self, head: bytes, block: bytes, start: int, checkpoint: Checkpoint | None
    ) -> None:
        stop = len(block)
        if self._global_max > 0:
            room = self._global_max - self._total
            # No byte becomes more text than an empty line does.
            if (stop - start) * (record.HEAD + 1) + 1 >= room:
                stop = limits.global_end(block, start, stop, room)
            if start == stop:
                return
        if self._size_max <= 0 or (
            (stop - start) * (record.HEAD + 1) + record.HEAD + 1 <= self._size_max - self._size
        ):
            self._total += self._append(head, block, start, stop, checkpoint)
            return
        if self._global_max > 0:
            self._total += record.text_size(block, start, stop)
        parts = limits.portions(block, start, stop, self._size, self._size_max, self._keep)
        for begin, end, fresh in parts:
            if fresh and not self._renew():
                # It goes on in the present file, beyond the limit: better than losing output.
                self._append(head, block, begin, stop, checkpoint)
                return
            self._append(head, block, begin, end, checkpoint)

    def _append(
        self, head: bytes, block: bytes, start: int, stop: int, checkpoint: Checkpoint | None
    ) -> int:
        """Write the records of block[start:stop]; returns the length of their text."""
        total = length = 0
        begin = start
        buffers: list[bytes | memoryview] = []
        for left, right, partial in record.runs(block, start, stop):
            length += record.add_run(buffers, head, block, left, right, partial)
            if length >= FLUSH or len(buffers) > IOV_SAFE or right == stop:
                self._put(buffers, length, begin, right - begin, checkpoint)
                total += length
                buffers = []
                length = 0
                begin = right
        return total

    def _put(
        self,
        buffers: list[bytes | memoryview],
        length: int,
        begin: int,
        data: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Write whole records; `begin` and `data`: which bytes of the read they hold."""
        if self._torn:
            # The last record there could not be completed: end it, so that these stand alone.
            buffers.insert(0, LF)
            length += 1
        if checkpoint is not None and self._regular:
            try:
                self._size = os.lseek(self._fd, 0, os.SEEK_END)
            except OSError:
                pass
            checkpoint(begin, self._inode, self._size)
        done = 0
        try:
            done = os.writev(self._fd, buffers)
            if done < length:
                text = memoryview(b"".join(buffers))
                while done < length:
                    done += os.write(self._fd, text[done:])
        except OSError as error:
            self._size += done
            if done:
                self._mend(memoryview(b"".join(buffers))[:done])
            self._trouble.failed(error, data)
            return
        self._size += length
        self._torn = False
        if self._trouble.bad:
            self._trouble.worked()

    def _mend(self, written: memoryview) -> None:
        """A write stopped within a record: cut the file back to the end of the last whole one."""
        surplus = len(written) - (bytes(written).rfind(LF) + 1)
        self._torn = surplus > 0
        if not surplus or not self._regular:
            return
        try:
            size = os.fstat(self._fd).st_size
            os.ftruncate(self._fd, size - surplus)
        except OSError:
            return  # an append-only file; the next record that can be written ends this one
        self._size = size - surplus
        self._torn = False

    def _renew(self) -> bool:
        """Put a fresh file at the path, by rotation or replacement. False: it did not work."""
        try:
            if self._keep > 0:
                fd = rotation.rotate(self.path, self._fd, self._keep, self._announce)
            else:
                fd = rotation.replace(self.path, self._fd, self._announce, self._link)
        except OSError as error:
            self._stuck.failed(error, 0)
            return False
        self._adopt(fd)
        self._stuck.worked()
        return True

    def reopen(self) -> None:
        """A fresh file at the path now: somebody asked for it (control message 2)."""
        if self._regular or self._keep <= 0:
            self._renew()

    def resume(
        self,
        stream: int,
        block: bytes,
        nanoseconds: int,
        consumed: int,
        inode: int,
        offset: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Finish the write() of `block` that a monitor's death cut off; see Logs.resume."""
        head = self._stamp.head(stream, nanoseconds)
        if not self._regular:
            self._append(head, block, consumed, len(block), checkpoint)
            return
        stop = len(block)
        if self._global_max > 0:
            stop = limits.global_end(block, consumed, stop, self._global_max - offset)
        end = stop
        if self._size_max > 0 and consumed < stop:
            parts = limits.portions(block, consumed, stop, offset, self._size_max, self._keep)
            if not parts[0][2]:  # else the file could not be replaced, and took everything
                end = parts[0][1]
        if inode == self._inode:
            self._complete(head, block, consumed, end, self._size - offset)
            self._total = self._size
        else:
            # It was renamed after the checkpoint. If it cannot be found it was replaced, and that
            # comes only after all that belonged into it had been written; unless others took it away.
            if not self._complete_moved(head, block, consumed, end, inode, offset):
                end = consumed
        self._write_limited(head, block[:stop], end, checkpoint)

    def _complete(self, head: bytes, block: bytes, start: int, stop: int, there: int) -> None:
        """Append the text of block[start:stop] without its first `there` bytes."""
        text = self._text(head, block, start, stop)[max(there, 0) :]
        self._torn = False
        if text:
            # No new checkpoint: should this monitor die here as well, the old one is still right.
            self._put([text], len(text), start, stop - start, None)
            if self._trouble.bad:
                self._torn = rotation.ends_torn(self.path, self._size)

    def _complete_moved(
        self, head: bytes, block: bytes, start: int, stop: int, inode: int, offset: int
    ) -> bool:
        """The same for a log that has another name by now; False: this belongs into the present one.

        Numbers are used again: a file with more names or of another owner may be anybody's.
        """
        moved = rotation.find_inode(self.path, inode)
        if moved is None:
            return inode != self._gone
        try:
            fd = os.open(moved, opening.FLAGS | os.O_NOFOLLOW)
            try:
                status = os.fstat(fd)
                if not rotation.is_ours(status) or status.st_ino != inode:
                    return False
                text = self._text(head, block, start, stop)[max(status.st_size - offset, 0) :]
                while text:
                    text = text[os.write(fd, text) :]
            finally:
                os.close(fd)
        except OSError as error:
            self._trouble.failed(error, stop - start)
        return True

    def _text(self, head: bytes, block: bytes, start: int, stop: int) -> memoryview:
        buffers: list[bytes | memoryview] = []
        for left, right, partial in record.runs(block, start, stop):
            record.add_run(buffers, head, block, left, right, partial)
        return memoryview(b"".join(buffers))

    def sync(self) -> None:
        """Have the kernel put the log on the disk; a file that cannot do that is left alone."""
        try:
            os.fsync(self._fd)
        except OSError:
            pass

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
