"""Lint, format and types are tests too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.monitors import ROOT
from tests.helpers.need import need_program

# Not ours, or made by tools.
SKIPPED = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "build", "dist", "site"}
TYPED = [
    "pyconmon",
    "client",
    "faults",
    "soak",
    "tests/conftest.py",
    "tests/helpers",
    *map(str, ROOT.glob("benchm*")),
]


def run(*words: str | Path) -> None:
    """The tool's words are the failure's text."""
    result = subprocess.run(
        [sys.executable, "-I", "-m", *words] if "/" not in str(words[0]) else [*words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        pytest.fail((result.stdout + result.stderr).strip(), pytrace=False)


def scripts(language: bytes) -> list[Path]:
    """The files without a suffix, or with .sh, whose first line names the language."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in names:
            path = Path(folder, name)
            if path.suffix not in ("", ".sh") or not path.is_file():
                continue
            with open(path, "rb") as file:
                first = file.readline(100)
            if first.startswith(b"#!") and language in first:
                found.append(path)
    return sorted(found)


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", ".", *scripts(b"python"))


def test_the_code_is_formatted() -> None:
    run("ruff", "format", "--check", "--diff", ".", *scripts(b"python"))


def test_types_hold() -> None:
    run("mypy", *TYPED)


def test_shellcheck_finds_nothing() -> None:
    shells = scripts(b"sh")
    assert ROOT / "scripts/setup" in shells
    run(need_program("shellcheck"), *shells)
