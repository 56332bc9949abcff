"""docs/differences.md names a test for each difference: they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/differences.md"


def test_named_tests_exist() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert all(len(row) == 6 for row in rows)
    named = 0
    for row in rows:
        text = ""
        for reference in re.findall(r"`([^`]+)`", row[4]):
            path, found, name = reference.rpartition("::")
            if found:
                text = (ROOT / path).read_text()
            assert f"\ndef {name}(" in text or f"\n    def {name}(" in text, reference
            named += 1
    assert named > 40
