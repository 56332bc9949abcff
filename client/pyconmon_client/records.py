"""The k8s-file log format as pure functions: bytes in, records and lines out.

A record is one line of the file: `<RFC 3339 time> stdout|stderr F|P <data>`. `P` pieces are joined
with what follows on the same stream into one `Line`, byte for byte. `logs.py` finds and reads the
files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from .errors import InvalidArgumentError, LogFormatError

# A line of more bytes than this is handed out in pieces, so that endless output can't fill the
# reader's memory.
MAX_LINE = 1 << 20

_RECORD = re.compile(
    rb"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)) "
    rb"(stdout|stderr) ([FP])(?: (.*))?",
    re.DOTALL,
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_AGO = re.compile(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a stream, as the container wrote it.

    data: the bytes with their LF; without one if the output stopped in the middle of a line, or if
    the line is longer than the reader's limit and goes on in the next Line. stream: "stdout" or
    "stderr". timestamp: RFC 3339 with nanoseconds and offset, exactly as logged when the line's
    first byte was read.
    """

    stream: str
    data: bytes
    timestamp: str

    @property
    def time_ns(self) -> int:
        """The time stamp as nanoseconds since 1970 (UTC)."""
        return parse_timestamp(self.timestamp)

    @property
    def time(self) -> datetime:
        """The time stamp as an aware datetime; microseconds, the rest is cut."""
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)

    @property
    def complete(self) -> bool:
        """Whether the line ended with LF."""
        return self.data.endswith(b"\n")


def parse_record(record: bytes) -> tuple[bytes, bytes, bool, bytes]:
    """(timestamp, stream, full, data) of one line of the file, given without its LF.

    Raises LogFormatError if it is no record.
    """
    match = _RECORD.fullmatch(record)
    if match is None:
        raise LogFormatError(f"not a log record: {record[:80]!r}")
    # Without the blank and data: conmon 2.2.0 wrote that at the end of output which stopped inside
    # a line.
    return match[1], match[2], match[3] == b"F", match[4] or b""


class Joiner:
    """Makes lines from records, given in the order of the file; one for a whole series of files."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._held: dict[bytes, tuple[bytes, bytearray]] = {}

    def add(self, record: bytes, whole: bool = True) -> Line | None:
        """The line that this record ends or overfills, or None. LogFormatError if it is no record.

        One that is not whole was torn off before its LF, by the writer's death or a full disk: it
        ends no line, and if not even its time and stream are there, nothing is lost by passing it
        over.
        """
        try:
            timestamp, stream, full, data = parse_record(record)
        except LogFormatError:
            if whole:
                raise
            return None
        full = full and whole
        held = self._held.pop(stream, None)
        if held is None:
            if full:
                return Line(stream.decode(), data + b"\n", timestamp.decode())
            held = (timestamp, bytearray())
        held[1].extend(data)
        if full:
            held[1].extend(b"\n")
        elif len(held[1]) < self._max_line:
            self._held[stream] = held
            return None
        return Line(stream.decode(), bytes(held[1]), held[0].decode())

    def rest(self) -> Iterator[Line]:
        """The unfinished lines, when nothing more will come."""
        held, self._held = self._held, {}
        for stream, (timestamp, data) in held.items():
            yield Line(stream.decode(), bytes(data), timestamp.decode())


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_timestamp(text: str) -> int:
    """Nanoseconds since 1970 (UTC) of an RFC 3339 time; InvalidArgumentError if it is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"{text!r} is not a time; give RFC 3339, such as 2026-01-31T12:00:00+01:00"
        )
    try:
        moment = datetime.fromisoformat(match[1].upper() + match[3].upper())
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is not a time: {error}") from error
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * 10**9 + int((match[2] or "0")[:9].ljust(9, "0"))


def parse_since(since: datetime | timedelta | str | int | float | None, now: float) -> int | None:
    """The start of what is wanted, in nanoseconds since 1970, or None for no start.

    An aware datetime, a time in RFC 3339, seconds since 1970, or how long before `now` (a
    timedelta, or text such as "1h30m"). InvalidArgumentError for anything else; so for a datetime
    without zone, which could mean two times.
    """
    if since is None:
        return None
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise InvalidArgumentError(
                f"since: {since.isoformat()} has no time zone; give one, such as datetime.now(UTC)"
            )
        return (since - _EPOCH) // timedelta(microseconds=1) * 1000
    if isinstance(since, timedelta):
        return int(now * 1e9) - since // timedelta(microseconds=1) * 1000
    if isinstance(since, str):
        ago = _AGO.fullmatch(since)
        if ago is not None:
            days, hours, minutes, seconds = (float(part or 0) for part in ago.groups())
            return int((now - (days * 86400 + hours * 3600 + minutes * 60 + seconds)) * 1e9)
        try:
            return parse_timestamp(since)
        except InvalidArgumentError:
            raise InvalidArgumentError(
                f"since: {since!r}; give a time with zone (2026-01-31T12:00:00Z) or how long ago "
                "(1h30m)"
            ) from None
    if isinstance(since, bool) or not isinstance(since, (int, float)) or not abs(since) < 1e11:
        raise InvalidArgumentError(
            f"since: {since!r}; give a time with zone, a timedelta or seconds since 1970"
        )
    return since * 10**9 if isinstance(since, int) else int(since * 1e9)
