"""The monitor's own messages: levels, stderr, syslog."""

from __future__ import annotations

import re

import pytest

from pyconmon.diag import LEVELS, Diag
from tests.helpers.need import need_root
from tests.helpers.snippets import run

METHODS = ["error", "warn", "info", "debug", "trace"]


def say_all(diag: Diag) -> None:
    for method in METHODS:
        getattr(diag, method)(f"the {method}")


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: str, capfd: pytest.CaptureFixture[str]) -> None:
    say_all(Diag(level))
    letters = dict(zip(METHODS, "ewidd", strict=True))
    heard = METHODS[: LEVELS[level] + 1]
    assert capfd.readouterr().err == "".join(
        f"[conmon:{letters[method]}]: the {method}\n" for method in heard
    )


def test_muted(capfd: pytest.CaptureFixture[str]) -> None:
    diag = Diag("trace")
    diag.mute_stderr()
    say_all(diag)
    assert capfd.readouterr() == ("", "")


def test_any_text(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Diag().error("b\udcff \u20ac")
    assert capfdbinary.readouterr().err == b"[conmon:e]: b\xff \xe2\x82\xac\n"


def test_a_closed_stderr_is_no_error() -> None:
    code = "import os\nos.close(2)\nfrom pyconmon.diag import Diag\nDiag().error('x')\nprint('on')"
    assert run(code) == "on\n"


def test_a_fault_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("key")
    except KeyError as error:
        Diag().exception(error)
    Diag().exception(ValueError("not raised"))
    first, second = capfd.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\[conmon:e\]: internal error at test_diag\.py:\d+: KeyError: 'key'", first
    )
    assert second == "[conmon:e]: internal error: ValueError: not raised"


def test_no_syslog_is_no_error() -> None:
    """Where there is no daemon at all."""
    assert in_private_dev("diag.error('x'); print('on')") == ["on"]


def test_syslog() -> None:
    lines = in_private_dev(
        """
log = daemon()
diag.error("first\\udcff")
diag.warn("second")
diag.debug("not at this level")
for _ in range(2):
    print(log.recv(1000))
log.close()
diag.error("the daemon has gone")
os.unlink("/dev/log")
log = daemon()
diag.error("it is back")
print(log.recv(1000))
for n in range(10_000):
    diag.error("to one who never reads")
print("on")
"""
    )
    date = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
    name = "0123456789abcdef0123"
    expected = [
        rf"b'<11>{date} me: conmon {name} <error>: first\\xff\\n'",
        rf"b'<14>{date} me: conmon {name} <nwarn>: second\\n'",
        rf"b'<11>{date} me: conmon {name} <error>: it is back\\n'",
        "on",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


PRIVATE_DEV = """
import ctypes, os, socket
from pyconmon.diag import Diag

libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"none", b"/dev", b"tmpfs", 0, None) == 0

def daemon():
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log.bind("/dev/log")
    return log

diag = Diag("warning", "me")
diag.mute_stderr()
diag.use_syslog("0123456789abcdef0123456789")
"""


def in_private_dev(lines: str) -> list[str]:
    """What these lines print, in a mount namespace whose /dev is empty."""
    need_root()
    return run(PRIVATE_DEV + lines).splitlines()
