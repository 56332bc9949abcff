"""What is kept for a successor: the JSON that we write ourselves, and who may be taken over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyconmon.creation import has_own_pid_namespace
from pyconmon.journal import Journal
from pyconmon.linux import start_time
from pyconmon.state import NothingOwed, take
from pyconmon.survival import JOURNAL_FILE, STATE_FILE, _json
from tests.helpers.need import need

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_the_json_reads_back(value: Any) -> None:
    text = _json(value)
    assert text.isascii()
    # A lone surrogate (a byte that is no UTF-8) has to come back as itself; two that make a pair are
    # one character to every reader of JSON, and os.fsdecode() makes no such pair.
    assert json.loads(text) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "text", ["\udcff\udc80", "a\0b", "\u2028", '"\\', "\x7f\x1b[31m", "😀", ""]
)
def test_the_json_of_odd_texts(text: str) -> None:
    assert json.loads(_json({text: [text, 1.5, None, True]})) == {text: [text, 1.5, None, True]}


NAMESPACES: list[tuple[str, bool]] = [
    ('{"linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}}', True),
    ('{"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}', True),
    ('{"linux":{"namespaces":[{"type":"pid"}]}}', True),
    ('{"linux": {"namespaces"\n:\n[\n{\n"type"\n:\n"pid"\n}\n]\n}\n}', True),
    ('{"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}', False),
    ('{"linux": {"namespaces": [{"path": "/proc/1/ns/pid", "type": "pid"}]}}', False),
    ('{"linux": {"namespaces": [{"type": "network", "path": "/x"}, {"type": "pid"}]}}', True),
    ('{"linux": {"namespaces": [{"type": "network", "path": "/a}b"}, {"type": "mount"}]}}', False),
    ('{"linux": {"namespaces": [{"type": "mount"}]}}', False),
    ('{"linux": {"namespaces": []}}', False),
    ('{"linux": {}}', False),
    ("{}", False),
    ("", False),
    ("no JSON at all", False),
    ('{"process": {"args": ["echo", "namespaces", "["]}, "linux": {"namespaces": []}}', False),
    ('{"process": {"args": ["namespaces", "[", "pid", "]"]}, "linux": {"namespaces": []}}', False),
    ('{"annotations": {"namespaces": "[{\\"type\\": \\"pid\\"}]"}, "linux": {}}', False),
    ('{"process": {"args": ["\\"namespaces\\": [{\\"pid\\"}]"]}, "linux": {}}', False),
]


@pytest.mark.parametrize(("config", "own"), NAMESPACES)
def test_a_pid_namespace_of_its_own(tmp_path: Path, config: str, own: bool) -> None:
    (tmp_path / "config.json").write_text(config)
    assert has_own_pid_namespace(str(tmp_path)) is own


def test_no_config_is_no_namespace(tmp_path: Path) -> None:
    assert not has_own_pid_namespace(str(tmp_path))
    (tmp_path / "config.json").mkdir()
    assert not has_own_pid_namespace(str(tmp_path))


GOOD: dict[str, Any] = {
    "version": 1,
    "phase": "running",
    "argv": ["-c", "x"],
    "cwd": "/",
    "environment": ["A=b"],
    "oom_score": "0",
    "container_pid": 4000000,
    "container_start": 1,
    "monitor_pid": 4000001,
    "monitor_start": 1,
    "pipes": {"1": 5, "2": 6},
    "begun": 1.5,
}


def keep(directory: Path, state: object, *, journal: bool = True) -> None:
    text = state if isinstance(state, str) else json.dumps(state)
    (directory / STATE_FILE).write_text(text)
    (directory / STATE_FILE).chmod(0o600)
    if journal:
        Journal(str(directory / JOURNAL_FILE), create=True).close(remove=False)


def test_a_good_state_is_taken_once(tmp_path: Path) -> None:
    keep(tmp_path, GOOD)
    (tmp_path / f"{STATE_FILE}.0011aabb").write_text("half of one")
    state, journal = take(str(tmp_path))
    assert state == GOOD
    assert sorted(os.listdir(tmp_path)) == [JOURNAL_FILE, STATE_FILE]
    with pytest.raises(BlockingIOError):
        take(str(tmp_path))
    journal.close(remove=False)
    take(str(tmp_path))[1].close(remove=False)


BAD: list[object] = [
    "", "{", "[]", "null", "3", '"x"', "[" * 100000, "\0" * 100, "{}",
    {**GOOD, "version": 2},
    {**GOOD, "version": "1"},
    {**GOOD, "phase": "dancing"},
    {**GOOD, "phase": None},
    {**GOOD, "argv": "-c x"},
    {**GOOD, "argv": [1]},
    {**GOOD, "environment": {}},
    {**GOOD, "environment": [["A", "b"]]},
    {**GOOD, "container_pid": "1"},
    {**GOOD, "container_pid": True},
    {**GOOD, "container_pid": 0},
    {**GOOD, "container_pid": -1},
    {**GOOD, "begun": None},
    {**GOOD, "pipes": [5, 6]},
    {**GOOD, "pipes": {"7": 1}},
    {**GOOD, "pipes": {"1": "x"}},
    *({key: value for key, value in GOOD.items() if key != left} for left in GOOD if left != "oom_score"),
]  # fmt: skip


@pytest.mark.parametrize("state", BAD, ids=range(len(BAD)))
def test_a_bad_state_is_refused(tmp_path: Path, state: object) -> None:
    keep(tmp_path, state)
    with pytest.raises(ValueError, match=STATE_FILE):
        take(str(tmp_path))
    # and the lock is free again
    Journal(str(tmp_path / JOURNAL_FILE), create=False).close(remove=True)


def test_nothing_is_owed_of_what_was_lost(tmp_path: Path) -> None:
    keep(tmp_path, {**GOOD, "phase": "lost", "reason": "x"})
    with pytest.raises(NothingOwed):
        take(str(tmp_path))


def test_without_a_journal_the_monitors_pid_decides(tmp_path: Path) -> None:
    own = {**GOOD, "monitor_pid": os.getpid(), "monitor_start": start_time(os.getpid())}
    keep(tmp_path, own, journal=False)
    with pytest.raises(BlockingIOError):
        take(str(tmp_path))
    keep(tmp_path, {**own, "monitor_start": 1}, journal=False)  # another process with its pid
    take(str(tmp_path))[1].close(remove=True)


@pytest.mark.parametrize("what", ["link", "file", "directory", "owner"])
def test_what_others_could_have_written_is_refused(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    keep(directory, GOOD)
    path = directory / STATE_FILE
    if what == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        path.chmod(0o666)
    elif what == "directory":
        directory.chmod(0o777)
    else:
        need(os.geteuid() == 0, "root")
        os.chown(path, 12345, 12345)
    with pytest.raises((ValueError, OSError)):
        take(str(directory))
