"""Numbers of a run: what was measured, by which monitor, and tables and JSON made of them.

`Results.record` takes one value of one round; everything else (medians, ratios, whether a target is
met) is derived when asked for. Values are in the unit named; lower is always better.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

# At most this, pyconmon over C conmon ("ratio") or in the unit of the measure ("value").
TARGETS: dict[tuple[str, str], tuple[str, float]] = {
    ("relay k8s-file, 100-byte lines", "monitor CPU"): ("ratio", 0.35),
    ("relay k8s-file, no newlines", "monitor CPU"): ("ratio", 0.35),
    ("relay k8s-file, 2-byte lines", "monitor CPU"): ("ratio", 0.80),
    ("relay k8s-file, 100-byte lines", "container's wall time"): ("ratio", 1.0),
    ("relay k8s-file, 100-byte lines", "peak RSS over idle"): ("value", 1.5),
    ("50 containers, 100 lines/s each", "monitors' CPU"): ("ratio", 1.5),
    ("attach, 5 clients", "monitor CPU"): ("ratio", 1.0),
    ("create to exit of true", "wall"): ("ratio", 1.20),
    ("exec of true, classic", "wall"): ("ratio", 1.20),
    ("exec of true, API 0", "wall"): ("ratio", 1.20),
    ("exec of true, API 1", "wall"): ("ratio", 1.20),
    ("podman run --rm of true", "wall"): ("ratio", 1.05),
    ("idle", "private dirty"): ("value", 4.5),
    ("idle", "wake-ups"): ("value", 0.0),
    ("--version", "wall over bare python"): ("value", 1.7),
}


@dataclass
class Measure:
    """One measured quantity: `runs` maps a monitor's name to the values of its rounds."""

    case: str
    what: str
    unit: str
    amount: str = ""
    runs: dict[str, list[float]] = field(default_factory=dict)

    def median(self, monitor: str) -> float | None:
        values = self.runs.get(monitor)
        return statistics.median(values) if values else None

    def ratio(self, monitor: str = "pyconmon", base: str = "conmon") -> float | None:
        ours, theirs = self.median(monitor), self.median(base)
        return ours / theirs if ours is not None and theirs else None

    @property
    def target(self) -> tuple[str, float] | None:
        return TARGETS.get((self.case, self.what))

    def meets_target(self) -> bool | None:
        if self.target is None:
            return None
        kind, limit = self.target
        value = self.ratio() if kind == "ratio" else self.median("pyconmon")
        return None if value is None else value <= limit

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "what": self.what,
            "unit": self.unit,
            "amount": self.amount,
            "monitors": {
                name: {
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                    "runs": values,
                }
                for name, values in self.runs.items()
            },
            "ratio": self.ratio(),
            "target": None if self.target is None else list(self.target),
            "met": self.meets_target(),
        }


class Results:
    """All measures of a run, in the order in which they were first recorded."""

    def __init__(self) -> None:
        self.measures: dict[tuple[str, str], Measure] = {}
        self.left_out: list[str] = []

    def record(
        self, case: str, what: str, unit: str, monitor: str, value: float, amount: str = ""
    ) -> None:
        measure = self.measures.setdefault((case, what), Measure(case, what, unit, amount))
        measure.runs.setdefault(monitor, []).append(value)

    def leave_out(self, case: str, why: str) -> None:
        """Notes that a case could not be run here."""
        self.left_out.append(f"{case}: {why}")

    def as_json(self, **about: Any) -> dict[str, Any]:
        return {
            **about,
            "left_out": self.left_out,
            "results": [measure.as_json() for measure in self.measures.values()],
        }

    def rows(self) -> list[list[str]]:
        """Header and rows of the table: numbers as `median (min-max)`."""
        others = sorted({name for m in self.measures.values() for name in m.runs} - {"pyconmon"})
        rows = [["case", "measure", *others, "pyconmon", "ratio", "at most"]]
        for measure in self.measures.values():
            case = f"{measure.case} ({measure.amount})" if measure.amount else measure.case
            ratio, target = measure.ratio(), ""
            if measure.target:
                kind, limit = measure.target
                target = f"{limit:g}{'' if kind == 'ratio' else ' ' + measure.unit}".rstrip()
                target += {True: " met", False: " MISSED", None: ""}[measure.meets_target()]
            rows.append(
                [
                    case,
                    f"{measure.what}, {measure.unit}" if measure.unit else measure.what,
                    *(_spread(measure.runs.get(name)) for name in [*others, "pyconmon"]),
                    "" if ratio is None else f"{ratio:.2f}",
                    target,
                ]
            )
        return rows

    def text_table(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(line.rstrip() for line in lines)

    def markdown_table(self) -> str:
        header, *rows = self.rows()
        lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _spread(values: list[float] | None) -> str:
    if not values:
        return "-"
    middle = statistics.median(values)
    if len(values) == 1:
        return _number(middle)
    return f"{_number(middle)} ({_number(min(values))}-{_number(max(values))})"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return (
        f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    )
