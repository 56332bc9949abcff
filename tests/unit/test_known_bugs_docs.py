"""docs/known-bugs-elsewhere.md names a test for each report: they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/known-bugs-elsewhere.md"


def test_named_tests_exist() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[1].strip() not in ("report", "---")]
    assert len(rows) > 50
    for row in rows:
        assert len(row) == 6, row
        references = re.findall(r"`((?:tests/\S+::)?test_\w+|tests/\S+::\w+)`", row[4])
        assert references, row
        text = ""
        for reference in references:
            path, found, name = reference.rpartition("::")
            if found:
                text = (ROOT / path).read_text()
            assert f"def {name}(" in text, reference
