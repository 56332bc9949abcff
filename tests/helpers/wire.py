"""The caller's ends of what a monitor speaks: the JSON pipes, the attach socket, the log file.

`Wire`, `Client` and `Log` only read and write; they know nothing of how a monitor is started.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

_RECORD = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)", re.DOTALL
)


class Wire:
    """Our end of a sync or attach pipe. `writes` keeps what each read gave: on a packet socket, one write each."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.writes: list[bytes] = []
        self._held = b""
        self._ended = False

    def _more(self, deadline: float) -> None:
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing on the pipe in time; so far {self.writes!r}"
        try:
            data = os.read(self.fd, 1 << 17)
        except ConnectionResetError:
            data = b""
        if data:
            self.writes.append(data)
            self._held += data
        else:
            self._ended = True

    def line(self, seconds: float = 30) -> bytes:
        """The next line with its LF; b"" at the end of the pipe."""
        self.peek(seconds)
        line, lf, self._held = self._held.partition(b"\n")
        return line + lf

    def peek(self, seconds: float = 30) -> None:
        """Waits for a whole line, or the end, and takes nothing away."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._held and not self._ended:
            self._more(deadline)

    def value(self, seconds: float = 30) -> dict[str, Any]:
        """The next line as JSON; AssertionError at the end of the pipe."""
        line = self.line(seconds)
        assert line, "the pipe ended without a message"
        decoded = json.loads(line)
        assert isinstance(decoded, dict)
        return decoded

    def rest(self, seconds: float = 30) -> bytes:
        """Everything up to the end of the pipe."""
        deadline = time.monotonic() + seconds
        while not self._ended:
            self._more(deadline)
        rest, self._held = self._held, b""
        return rest

    def silent(self) -> bool:
        """Whether there is neither a message nor the end to be read now."""
        return not self._held and not select.select([self.fd], [], [], 0)[0]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Client:
    """A client of an attach socket: packets of one stream byte (2 stdout, 3 stderr) and data."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
        try:  # the way round the 107 bytes that an address holds
            self.socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(directory)
        self.packets: list[tuple[int, bytes]] = []
        self.ended = False
        self.reset = False

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def read_one(self, seconds: float = 30) -> bool:
        """Takes one packet; False at the end. AssertionError if none comes."""
        if self.ended:
            return False
        self.socket.settimeout(seconds)
        try:
            packet = self.socket.recv(1 << 16)
        except ConnectionResetError:
            packet = b""
            self.reset = True
        except TimeoutError:
            raise AssertionError(
                f"no packet within {seconds} s; so far {self.packets[-3:]!r}"
            ) from None
        if not packet:
            self.ended = True
            return False
        assert packet[0] in (2, 3), packet[:20]
        assert 2 <= len(packet) <= 8193, len(packet)
        self.packets.append((packet[0], packet[1:]))
        return True

    def read_for(self, seconds: float) -> None:
        """Takes one packet, if one comes in that time."""
        if select.select([self.socket], [], [], seconds)[0]:
            self.read_one()

    def read_until(self, needle: bytes, stream: int = 2, seconds: float = 30) -> bytes:
        """Reads on until `needle` has come on the stream; gives that stream so far."""
        deadline = time.monotonic() + seconds
        while needle not in self.stream(stream):
            left = deadline - time.monotonic()
            assert left > 0 and self.read_one(left), (
                f"{needle!r} did not come: {self.stream(stream)[-200:]!r}"
            )
        return self.stream(stream)

    def read_to_end(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while self.read_one(max(0.1, deadline - time.monotonic())):
            pass

    def collect(self) -> threading.Thread:
        """Reads to the end beside the test, as a client does that keeps up; join() the thread."""
        thread = threading.Thread(target=self.read_to_end, daemon=True)
        thread.start()
        return thread

    def stream(self, number: int) -> bytes:
        return b"".join(data for stream, data in self.packets if stream == number)


class Log:
    """A k8s-file log: its records, and the bytes of a stream put together again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[tuple[str, str, bytes]]:
        """(stream, tag, data without LF) of each line; AssertionError for one of another form."""
        found = []
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            match = _RECORD.fullmatch(line)
            assert match, f"not a log record: {line[:200]!r}"
            assert len(match[4]) <= 8192, len(match[4])
            found.append((match[2].decode(), match[3].decode(), match[4]))
        return found

    def stream(self, name: str) -> bytes:
        return b"".join(
            data + (b"\n" if tag == "F" else b"")
            for stream, tag, data in self.records()
            if stream == name
        )

    def text(self, name: str = "stdout") -> str:
        return self.stream(name).decode()
