"""The journald driver with a real systemd-journald, read back with journalctl."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helpers.drive import Drive
from tests.helpers.journal import Journal
from tests.helpers.monitors import ROOT
from tests.helpers.monitors import monitor as monitor_named

CID = "0123456789abcdef0123456789abcdef"
DRIVER = """
import sys
from pyconmon.diag import Diag
from pyconmon.logs import open_logs
from tests.helpers.logs import log_options
changes, writes, cid = eval(sys.stdin.read())
options = log_options(cid=cid, log_drivers=(("journald", None),), **changes)
logs = open_logs(options, Diag())
logs.load()
for stream, data in writes:
    logs.write(stream, data)
logs.finish(True, True)
logs.close()
"""


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    started = Journal(tmp_path_factory.mktemp("journal"))
    yield started
    started.close()


def log(journal: Journal, cid: str, writes: list[tuple[int, bytes]], **changes: Any) -> str:
    """Have the driver log these writes in a process of its own; what it says on stderr."""
    done = subprocess.run(
        [journal.enter, sys.executable, "-c", DRIVER],
        input=repr((changes, writes, cid)),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr


def test_fields_and_bytes(journal: Journal) -> None:
    cid = "a" + CID
    writes = [
        (1, b"hi\n<3>boom\npar"),
        (2, b"err\n"),
        (1, b"tial\n"),
        (1, b"nul\0after\xff\n"),
        (1, b"\n<5>\n"),
        (2, b"<7>dbg\nlast"),
    ]
    said = log(journal, cid, writes, name="box", log_tag="tag", log_labels=("POD=web 1", "E="))
    assert said == ""
    found = journal.wait_entries(9, f"CONTAINER_ID_FULL={cid}")
    assert [
        (one["MESSAGE"], one["PRIORITY"], "CONTAINER_PARTIAL_MESSAGE" in one) for one in found
    ] == [
        (b"hi\n", "6", False),
        (b"boom\n", "3", False),
        (b"err\n", "3", False),
        (b"partial\n", "6", False),
        (b"nul\0after\xff\n", "6", False),
        (b"\n", "6", False),
        (b"\n", "5", False),
        (b"dbg\n", "7", False),
        (b"last", "3", True),
    ]
    for one in found:
        assert one["CONTAINER_ID"] == cid[:12] and one["CONTAINER_NAME"] == "box"
        assert one["CONTAINER_TAG"] == one["SYSLOG_IDENTIFIER"] == "tag"
        assert one["POD"] == "web 1" and one.get("E") in ("", None)
        assert one["_TRANSPORT"] == "journal"
    assert journal.entries("POD=web 1", "PRIORITY=7")[0]["MESSAGE"] == b"dbg\n"


def test_output_cannot_forge_fields(journal: Journal) -> None:
    cid = "b" + CID
    evil = b"x\nPRIORITY=0\nCONTAINER_NAME=other\nMESSAGE=forged\n"
    log(journal, cid, [(1, evil)], name="box\nCONTAINER_NAME=third")
    found = journal.wait_entries(4, f"CONTAINER_ID_FULL={cid}")
    assert b"".join(one["MESSAGE"] for one in found) == evil
    assert {one["PRIORITY"] for one in found} == {"6"}
    assert not journal.entries("CONTAINER_NAME=other") + journal.entries("CONTAINER_NAME=third")


def test_more_than_the_journal_takes_at_once(journal: Journal) -> None:
    cid = "c" + CID
    lines = [b"line %d\n" % number for number in range(3000)]
    assert log(journal, cid, [(1, b"".join(lines))]) == ""
    found = journal.wait_entries(len(lines), f"CONTAINER_ID_FULL={cid}")
    assert [one["MESSAGE"] for one in found] == lines


def test_an_entry_too_big_for_a_datagram(journal: Journal) -> None:
    cid = "d" + CID
    labels = [f"BIG{number}=" + "v" * 100_000 for number in range(5)]
    assert log(journal, cid, [(1, b"hi\n")], log_labels=labels) == ""
    (found,) = journal.wait_entries(1, f"CONTAINER_ID_FULL={cid}")
    assert found["MESSAGE"] == b"hi\n" and found["BIG4"] == "v" * 100_000


@pytest.mark.needs_root
def test_a_container_logs_what_it_logs_with_conmon(
    journal: Journal, drive: Callable[..., Drive]
) -> None:
    """The entries of the same container with both monitors."""
    script = (
        "echo hi; echo err >&2; printf 'nul\\000after\\n'; printf par; printf 'tial\\n';"
        "head -c 8000 /dev/zero | tr '\\000' Z; echo; echo; printf last"
    )
    seen = {}
    for name in ("conmon", "pyconmon"):
        with drive(
            ["sh", "-c", script],
            monitor=journal.wrap(monitor_named(name)),
            name="journaled-box",
            log=["journald:"],
            options=["--log-tag", "tagged"],
        ) as box:
            box.run()
            assert box.wait_exit() == 0
            found = journal.wait_entries(7, f"CONTAINER_ID_FULL={box.ident}")
        seen[name] = {
            priority: [
                (
                    one["MESSAGE"],
                    one["CONTAINER_ID"] == box.ident[:12],
                    one["CONTAINER_NAME"] == box.ident,
                    one["CONTAINER_TAG"],
                    one["SYSLOG_IDENTIFIER"],
                    one.get("CONTAINER_PARTIAL_MESSAGE"),
                )
                for one in found
                if one["PRIORITY"] == priority
            ]
            for priority in ("6", "3")
        }
    assert seen["pyconmon"] == seen["conmon"]
    assert [one[0] for one in seen["pyconmon"]["6"]] == [
        b"hi\n",
        b"nul\0after\n",
        b"partial\n",
        b"Z" * 8000 + b"\n",
        b"\n",
        b"last",
    ]
