"""The journald log driver: each line of output an entry of the system's journal.

Outsiders rely on the fields (`podman logs`, `journalctl CONTAINER_NAME=...`): MESSAGE with the
line's newline still on it, CONTAINER_ID_FULL, PRIORITY (stdout 6, stderr 3), CONTAINER_ID,
CONTAINER_TAG, CONTAINER_NAME, SYSLOG_IDENTIFIER, CONTAINER_PARTIAL_MESSAGE=true on pieces that are
not the end of a line, and the labels as given. A line of up to RECORD_MAX bytes is one entry however
it was read: an unfinished one is held until its end comes, or the container's.

A line that begins with ``<0>`` to ``<7>`` sets its own priority, and the three bytes go, as with
sd-daemon(3) and conmon 2.2. (Podman 4's `podman logs` only understands 3 and 6.) That holds for a
prefix that came in two reads too, and for all pieces of a long line; conmon misses the first and
looks at each piece.

A journal that is slow holds the container back a little: entries queue up to QUEUE_MAX bytes, then
a write waits until there is room, STALL seconds at most. A journal that takes nothing for PATIENCE
seconds, or is not there, loses output instead, with one warning; it is tried again with each write.
"""

from __future__ import annotations

import os
import select
import time

from pyconmon.logs.journal_socket import SOCKET, JournalSocket, field
from pyconmon.logs.record import LF, RECORD_MAX
from pyconmon.logs.trouble import Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from pyconmon.diag import Diag
    from pyconmon.loop import Loop
    from pyconmon.options import Options

    class Keep(Protocol):
        """Where a write's progress is noted, for who has to go on should this process be killed."""

        def sent(self, messages: int) -> None:
            """So many messages of the present write() have been sent (or queued, or given up)."""

        def hold(self, stream: int, text: bytes, flags: int) -> None:
            """What is held of a stream when the present write() is over; `flags` go with it."""


PRIORITIES = (b"6", b"6", b"3")  # by stream: stdout (1) is "info", stderr (2) is "err"
SHORT_ID = 12
QUEUE_MAX = 4 << 20
PATIENCE = 0.25
STALL = 1.0
SLICE = 16384  # bytes that are cut into messages at once: a bound on what that takes in memory


class Fields:
    """The fields of one container's entries, encoded once for each priority and flag."""

    __slots__ = ("_cache", "_partial", "_parts")

    def __init__(
        self,
        container_id: bytes,
        name: bytes | None,
        tag: bytes | None,
        labels: Sequence[bytes] = (),
        flag_partial: bool = True,
    ) -> None:
        short = container_id[:SHORT_ID]
        after = field(b"CONTAINER_ID", short)
        if tag:
            after += field(b"CONTAINER_TAG", tag)
        if name:
            after += field(b"CONTAINER_NAME", name)
        after += field(b"SYSLOG_IDENTIFIER", tag or name or short)
        extra = b"".join(field(*label.split(b"=", 1)) for label in labels if b"=" in label)
        self._parts = (field(b"CONTAINER_ID_FULL", container_id), after, extra)
        self._partial = b"CONTAINER_PARTIAL_MESSAGE=true\n" if flag_partial else b""
        self._cache: dict[tuple[bytes, bool], bytes] = {}

    def entry(self, message: bytes, priority: bytes, partial: bool) -> bytes:
        """One encoded entry; `priority` is a digit."""
        rest = self._cache.get((priority, partial))
        if rest is None:
            before, after, extra = self._parts
            flag = self._partial if partial else b""
            rest = before + field(b"PRIORITY", priority) + after + flag + extra
            self._cache[priority, partial] = rest
        return field(b"MESSAGE", message) + rest


class Lines:
    """One stream's bytes as messages of at most RECORD_MAX bytes: (message, priority, partial)."""

    __slots__ = ("_default", "_held", "_inside", "_priority")

    def __init__(self, default: bytes) -> None:
        self._default = default
        self._priority = default
        self._held = b""
        self._inside = False  # the next message goes on with a line that has begun

    def feed(self, block: bytes) -> list[tuple[bytes, bytes, bool]]:
        """The messages that are complete with `block`; the rest is held."""
        if self._held:
            block = self._held + block
        messages = []
        start = 0
        size = len(block)
        while True:
            end = block.find(LF, start, start + RECORD_MAX) + 1
            if end:
                messages.append(self._message(block[start:end], False))
            elif size - start >= RECORD_MAX:
                end = start + RECORD_MAX
                messages.append(self._message(block[start:end], True))
            else:
                break
            start = end
        self._held = block[start:]
        return messages

    def held(self) -> tuple[bytes, int]:
        """What is held, and as a number what else tells how the line goes on."""
        return self._held, self._inside | self._priority[0] << 8

    def restore(self, text: bytes, flags: int) -> None:
        """Go on after what `held` gave."""
        self._held = text
        self._inside = bool(flags & 1)
        if self._inside:
            self._priority = bytes((flags >> 8 & 0xFF,))

    def flush(self) -> list[tuple[bytes, bytes, bool]]:
        """What is held, as a partial message."""
        held, self._held = self._held, b""
        return [self._message(held, True)] if held else []

    def _message(self, text: bytes, partial: bool) -> tuple[bytes, bytes, bool]:
        if not self._inside:
            self._priority = self._default
            if text[:1] == b"<" and text[2:3] == b">" and b"0" <= text[1:2] <= b"7":
                self._priority = text[1:2]
                text = text[3:]
        self._inside = partial
        return text, self._priority, partial


class Journald:
    """The driver for one container. Connects with the first write."""

    __slots__ = (
        "_fields", "_keep", "_lines", "_loop", "_queue", "_queued", "_sent", "_skip", "_socket",
        "_trouble", "_watched",
    )  # fmt: skip

    def __init__(self, fields: Fields, diag: Diag, path: str = SOCKET) -> None:
        self._fields = fields
        self._loop: Loop | None = None
        self._socket = JournalSocket(path)
        self._trouble = Trouble(diag, "journal", "output is lost until it can be written again")
        self._lines = (Lines(PRIORITIES[0]), Lines(PRIORITIES[1]), Lines(PRIORITIES[2]))
        self._queue: list[bytes] = []
        self._queued = 0
        self._watched = -1
        self._keep: Keep | None = None
        self._sent = self._skip = 0

    @classmethod
    def from_options(cls, options: Options, diag: Diag) -> Journald:
        return cls(
            Fields(
                os.fsencode(options.cid or ""),
                os.fsencode(options.name) if options.name else None,
                os.fsencode(options.log_tag) if options.log_tag else None,
                [os.fsencode(label) for label in options.log_labels],
                not options.no_container_partial_message,
            ),
            diag,
        )

    def use_loop(self, loop: Loop) -> None:
        """Without a loop, a write waits (as above) for all that it has queued."""
        self._loop = loop

    def write(self, stream: int, block: bytes, keep: Keep | None = None, already: int = 0) -> None:
        """Log what one read of stdout (1) or stderr (2) gave.

        `keep` hears of the progress; the first `already` messages have been sent by another process.
        """
        lines = self._lines[stream]
        self._keep = keep
        self._sent, self._skip = 0, already
        for start in range(0, len(block), SLICE):
            self._deliver(lines.feed(block[start : start + SLICE]))
        if keep is not None:
            keep.hold(stream, *lines.held())

    def restore(self, held: Mapping[int, tuple[bytes, int]]) -> None:
        """Go on with what another process's driver held of each stream."""
        for stream, (text, flags) in held.items():
            self._lines[stream].restore(text, flags)

    def finish(self, flush_partial: bool) -> None:
        """The end: send what is held, and wait a little for what the journal had no room for."""
        if flush_partial:
            for lines in self._lines:
                self._deliver(lines.flush())
        self._drain(0)

    def close(self) -> None:
        self._reset()
        self._queue.clear()
        self._queued = 0

    def _deliver(self, messages: list[tuple[bytes, bytes, bool]]) -> None:
        entry_of = self._fields.entry
        keep = self._keep
        if self._skip:
            done = min(self._skip, len(messages))
            self._skip -= done
            self._sent += done
            messages = messages[done:]
        for index, message in enumerate(messages):
            entry = entry_of(*message)
            if not self._queue:
                try:
                    self._send(entry)
                    if keep is not None:
                        self._sent += 1
                        keep.sent(self._sent)
                    if self._trouble.bad:
                        self._trouble.worked()
                    continue
                except BlockingIOError as error:
                    if self._trouble.bad:  # no second wait before it has taken something
                        return self._lose(messages[index:], error)
                except OSError as error:
                    self._reset()
                    return self._lose(messages[index:], error)
            self._queue.append(entry)
            self._queued += len(entry)
            if self._queued > QUEUE_MAX and not self._drain(QUEUE_MAX // 2):
                return self._lose(messages[index + 1 :], "it takes nothing")
        if self._queue:
            if self._loop is None:
                self._drain(0)
            else:
                self._watch()

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.send(entry)
        except ConnectionError:
            # journald was restarted and its socket with it: the name leads to the new one.
            self._reset()
            self._socket.send(entry)

    def _reset(self) -> None:
        self._unwatch()
        self._socket.close()

    def _lose(self, messages: list[tuple[bytes, bytes, bool]], why: object) -> None:
        self._trouble.failed(why, sum(len(message[0]) for message in messages))

    def _drain(self, target: int) -> bool:
        """Send queued entries until no more than `target` bytes are left; False: it is stuck."""
        until = time.monotonic() + STALL
        while self._queued > target:
            if not self._flush() and not self._socket.wait(PATIENCE):
                self._drop("it takes nothing")
                return False
            if self._queued > target and time.monotonic() > until:
                self._drop("it is too slow")
                return False
        return True

    def _flush(self) -> bool:
        """Send what there is room for; False if that was nothing."""
        done = size = 0
        try:
            for entry in self._queue:
                self._send(entry)
                done += 1
                size += len(entry)
        except BlockingIOError:
            pass
        except OSError as error:
            self._reset()
            self._drop(error)
            return True
        del self._queue[:done]
        self._queued -= size
        return done > 0

    def _drop(self, why: object) -> None:
        lost, self._queued = self._queued, 0
        self._queue.clear()
        self._unwatch()
        self._trouble.failed(why, lost)

    def _watch(self) -> None:
        fd = self._socket.fileno()
        if self._loop is not None and self._watched != fd:
            self._watched = fd
            self._loop.watch(fd, select.POLLOUT, self._writable)

    def _unwatch(self) -> None:
        fd, self._watched = self._watched, -1
        if fd >= 0 and self._loop is not None:
            self._loop.forget(fd)

    def _writable(self, events: int) -> None:
        self._flush()
        if not self._queue:
            self._unwatch()
