"""The benchmark harness runs: one tiny round of real cases, and the shape of what it reports.

Times are never looked at: they belong to the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.monitors import CONMON, PYCONMON
from tests.helpers.need import need

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def harness() -> list[str]:
    need(os.geteuid() == 0, "root")
    need(shutil.which("runc"), "runc")
    need(shutil.which("busybox"), "busybox")
    need(os.path.exists(CONMON), "C conmon")
    command = [sys.executable, "-m", "benchmarks", "--tiny"]
    return [*command, "--conmon", str(CONMON), "--monitor", str(PYCONMON)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)


def test_a_tiny_run_reports_both_monitors(harness: list[str], tmp_path: Path) -> None:
    names = ("version", "create", "exec", "none", "trickle", "attach", "crowd")
    only = [f"--only={name}" for name in names]
    done = run([*harness, *only, "--output", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    header = done.stdout.splitlines()[0].split()
    assert {"case", "measure", "conmon", "pyconmon", "ratio"} <= set(header)

    document = json.loads((tmp_path / "results.json").read_text())
    assert document["kind"] == "tiny"
    assert document["left_out"] == []
    assert document["monitors"]["conmon"]["version"].startswith("conmon version")
    assert document["machine"]["kernel"] == os.uname().release
    found = {(entry["case"], entry["what"]): entry for entry in document["results"]}
    for key in (
        ("--version", "wall"),
        ("create to exit of true", "wall"),
        ("exec of true, classic", "wall"),
        ("exec of true, API 0", "wall"),
        ("exec of true, API 1", "wall"),
        ("relay none, 100-byte lines", "monitor CPU"),
        ("trickle of 1-byte writes", "monitor CPU a write"),
        ("attach, 5 clients", "monitor CPU"),
        ("growth, 2 containers", "PSS a container"),
    ):
        measured = found[key]["monitors"]
        assert {"conmon", "pyconmon"} <= set(measured), key
        for numbers in measured.values():
            assert 0 <= numbers["min"] <= numbers["median"] <= numbers["max"], key
            assert numbers["runs"], key
        # The ratio is that of the medians; next to nothing over nothing has none.
        ours, theirs = measured["pyconmon"]["median"], measured["conmon"]["median"]
        assert found[key]["ratio"] == (ours / theirs if theirs else None), key


def test_a_case_that_fails_costs_the_others_nothing(harness: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'conmon version 0.0.0'\n")
    broken.chmod(0o755)
    command = [*harness, "--monitor", str(broken), "--output", str(tmp_path)]
    done = run([*command, "--only", "create", "--only", "version"])
    assert done.returncode == 1
    assert "left out: create: FAILED" in done.stdout
    document = json.loads((tmp_path / "results.json").read_text())
    assert next(entry["case"] for entry in document["results"]) == "create to exit of true"
    assert any(entry["case"] == "--version" for entry in document["results"])


def test_a_missing_monitor_is_wrong_usage() -> None:
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--only", "version"]
    done = run([*command, "--monitor", "/nowhere/pyconmon"])
    assert done.returncode == 2
    assert "/nowhere/pyconmon" in done.stderr
