"""Writes a finished run down: JSON and plots in a folder, the table into docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.results import Results

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def write(results: Results, about: dict[str, Any], folder: Path) -> list[Path]:
    """`results.json` and the plots; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    document = results.as_json(**about)
    path = folder / "results.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return [path, *plots.draw(document, folder)]


def write_page(results: Results, about: dict[str, Any], page: Path) -> bool:
    """Puts machine and table between the markers of the page; False if it has none."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    page.write_text(f"{before}{BEGIN}\n{section(results, about)}\n{END}{after}")
    return True


def section(results: Results, about: dict[str, Any]) -> str:
    """The part of the page that a run writes."""
    machine = "; ".join(f"{key} {value}" for key, value in about["machine"].items())
    monitors = "; ".join(f"{name}: {found['version']}" for name, found in about["monitors"].items())
    lines = [
        f"A {about['kind']} run of {about['date']}, {about['seconds']:.0f} s.",
        f"Machine: {machine}.",
        f"Monitors: {monitors}.",
        "",
        results.markdown_table(),
    ]
    if results.left_out:
        lines += ["", "Left out in this run: " + "; ".join(results.left_out) + "."]
    return "\n".join(lines)
