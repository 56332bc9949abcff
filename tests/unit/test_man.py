"""The manual page: it is what the option table makes, and roff has nothing to complain about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyconmon import usage
from tests.helpers.need import need_program

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/man/pyconmon.1"
PAGES = sorted((ROOT / "docs/man").glob("*.[1-8]"))


def test_page_is_current() -> None:
    """Whoever changes an option runs scripts/make-man."""
    done = subprocess.run(
        [sys.executable, "-B", ROOT / "scripts/make-man", "-"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == PAGE.read_text()


def test_page_names_every_option() -> None:
    text = PAGE.read_text().replace("\\-", "-")
    for group in [*usage.GROUPS.values(), usage.HIDDEN]:
        for name in group:
            assert f"\\fB--{name}\\fP" in text


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_no_warnings(page: Path) -> None:
    done = subprocess.run(
        [need_program("man"), "--warnings", "-E", "UTF-8", "-l", page],
        env=os.environ | {"LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert "SYNOPSIS" in done.stdout
    done = subprocess.run(
        [need_program("groff"), "-man", "-Tutf8", "-ww", "-rCHECKSTYLE=3", "-z", page],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
