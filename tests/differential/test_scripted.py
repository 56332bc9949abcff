"""Scripted sessions through both monitors, and everything that can be seen of them compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.conftest import Pair
from tests.differential.sessions import Script


def sh(text: str, **how: object) -> Script:
    return Script(["sh", "-c", text], **how)  # type: ignore[arg-type]


def line(size: int, letter: str = "x") -> str:
    """Shell text that writes so many bytes at once."""
    return f"head -c {size} /dev/zero | tr '\\0' {letter}"


SCRIPTS = {
    # streams and records
    "nothing at all": sh("exit 0"),
    "two streams": sh("echo out; echo err >&2; exit 7", clients=1),
    "stderr only": sh("echo err >&2", clients=1),
    "an unfinished line": sh("echo a; printf b", clients=1),
    "an unfinished line on both": sh("printf a; printf b >&2", clients=1),
    "empty lines": sh("echo; echo; echo a; echo", clients=1),
    "carriage returns": sh("printf 'a\\r\\nb\\rc\\n'", clients=1),
    "NUL and no UTF-8": sh("printf 'a\\000b\\377\\376\\n\\303'", clients=1),
    "records in the text": sh("echo '2026-01-01T00:00:00.000000000+00:00 stdout F x'"),
    **{f"a line of {n}": sh(f"{line(n)}; echo", clients=1) for n in (8190, 8191, 8192, 8193)},
    **{f"{n} bytes without an end": sh(line(n), clients=1) for n in (8191, 8192, 8193, 20000)},
    "a line of 20000": sh(f"{line(20000)}; echo; echo end", clients=1),
    "a megabyte of lines": sh("seq 1 150000", clients=1),
    "a megabyte without lines": sh(line(1_000_000), clients=2),
    "a million empty lines": sh("yes '' | head -n 100000", clients=1),
    "five clients": sh("seq 1 3000; echo err >&2", clients=5),
    "an earlier log": sh("echo new", earlier_log=b"2026-01-01T00:00:00.000000000+00:00 stdout F a\n"),
    # limits: lines come in one piece, so that the costs are the same
    **{f"log size {n}": sh("for i in 1 2 3 4 5 6; do echo line $i; done",
        options=["--log-size-max", str(n)]) for n in (1, 51, 102, 103, 104, 0, -1)},
    **{f"global size {n}": sh("for i in 1 2 3 4 5 6; do echo line $i; done; exit 2",
        options=["--log-global-size-max", str(n)]) for n in (1, 51, 52, 60, 104, 0, -1)},
    # ends
    **{f"exit {n}": sh(f"exit {n}", clients=1) for n in (1, 2, 126, 127, 128, 255)},
    **{f"signal {n}": sh(f"kill -{n} $$; sleep 9", own_pid_namespace=False) for n in (1, 6, 9, 15)},
    "killed from outside": sh("echo ready; sleep 1000", kill="KILL", clients=1),
    "a trap": sh("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done",
        kill="TERM", clients=1),
    "a background process": sh("sleep 1000 & echo hi; exit 3"),
    "closed streams": sh("exec >&- 2>&-; exit 6", clients=1),
    "version 0": sh("echo hi; exit 3", api=0),
    # input
    "no stdin": sh("cat; echo end", clients=1),
    "stdin": sh("cat; exit 4", stdin=b"one\ntwo\n", clients=1),
    "empty stdin": sh("wc -c", stdin=b"", clients=1),
    "much stdin": sh("md5sum", stdin=bytes(range(256)) * 2000, clients=2),
    "stdin that nobody reads": sh("exit 5", stdin=b"x" * 3000, clients=1),
    "stdin left open": sh("read x; echo $x", stdin=b"a\n", options=["--leave-stdin-open"], clients=1),
    # terminals
    "a terminal": sh("echo out; echo err >&2; exit 3", terminal=True, clients=1),
    "a terminal with input": sh("read x; echo got $x", terminal=True, stdin=b"word\n", clients=1),
    "a size": sh('while [ "$(stty size)" != "12 34" ]; do sleep 0.02; done; echo ok',
        terminal=True, resize="1 12 34\n", clients=1),
    "a terminal, unfinished": sh("printf abc", terminal=True, clients=1),
    # failures
    "no such program": Script(["/nope"]),
    "no such program, version 0": Script(["/nope"], api=0),
    "no such program, terminal": Script(["/nope"], terminal=True),
    "a directory": Script(["/etc"]),
    "a runtime that fails": Script(["true"], runtime="echo why it failed >&2; exit 3"),
    "a runtime that fails slowly": Script(["true"], runtime="echo a >&2; sleep 0.2; echo b >&2; exit 3"),
    "a failure with exit command": Script(["true"], runtime="echo a >&2; exit 1",
        options=["--exit-command", "/bin/true"]),
    # execs
    "an exec": sh("echo out; echo err >&2; exit 7", kind="exec"),
    "an exec, version 0": sh("echo out; exit 7", kind="exec", api=0),
    "an exec that is killed": sh("kill -9 $$", kind="exec"),
    "an exec with a terminal": sh("echo hi; exit 3", kind="exec", terminal=True),
    "an exec that is not there": Script(["/nope"], kind="exec"),
    "an exec that is not there, version 0": Script(["/nope"], kind="exec", api=0),
    "an exec that times out": sh("echo a; sleep 100", kind="exec", options=["-T", "1"]),
    "an exec with attach": sh("cat; echo err >&2; exit 7", kind="exec-attach", stdin=b"in\n",
        clients=1),
    "an exec with attach and terminal": sh("read x; echo got $x; exit 2", kind="exec-attach",
        terminal=True, stdin=b"word\n", clients=1),
    "an exec without log": sh("echo hi", kind="exec-attach", log=["none"], clients=1),
    # log options
    "no log": sh("echo hi", log=["none"], clients=1),
    "with sync": sh("echo hi; exit 42", options=["--sync"]),
    "with an exit command": sh("exit 3", options=["--exit-command", "/bin/false"]),
    "without fsync": sh("echo hi", options=["--no-sync-log"]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_both_monitors_look_alike(pair: Pair, name: str) -> None:
    assert pair.differences(SCRIPTS[name]) == []


@pytest.mark.parametrize(
    ("log", "problem"),
    [("json-file:x", "no such driver"), ("", "empty"), ("k8s-file:", "no file")],
)
def test_refusals_are_in_the_same_words(pair: Pair, log: str, problem: str) -> None:
    """Those words that callers and other test suites look for; the prefix had no colon in 2.1.6."""
    assert problem
    said = [h.container(["true"]).create(log=[log]) for h in (pair.ours, pair.reference)]
    texts = []
    for call in said:
        assert call.status() == 1
        texts.append(call.stderr.replace("[conmon:e]:", "[conmon:e]"))
    assert texts[0].lower().split() == texts[1].lower().split()


def test_the_reference_is_the_reference(pair: Pair) -> None:
    assert Path(pair.reference.monitor).read_bytes()[:4] == b"\x7fELF"
    assert pair.ours.monitor != pair.reference.monitor
