"""PNG plots of a finished run. Needs matplotlib (the `bench` extra); without it there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, THEIRS = "#3572a5", "#999999"


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Draws the plots of a results document into `folder`; the files, [] without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    results = document["results"]
    plots = {
        "ratios.png": _ratios(results),
        "relay.png": _pairs(
            [
                r
                for r in results
                if r["case"].startswith("relay k8s") and r["what"] == "monitor CPU"
            ],
            "CPU of the monitor while it relays, seconds",
        ),
        "memory.png": _pairs(
            [r for r in results if r["case"] == "idle" and r["unit"] == "MB"],
            "memory of an idle monitor, MB",
            label="what",
        ),
    }
    drawn = []
    for name, figure in plots.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=120)
            drawn.append(folder / name)
    return drawn


def _ratios(results: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    shown = [r for r in results if r["ratio"] and "peak" not in r["what"]]
    if not shown:
        return None
    figure = Figure(figsize=(9, 0.28 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{r['case']}: {r['what']}" for r in shown]
    axes.barh(names, [r["ratio"] for r in shown], color=OURS)
    for row, result in enumerate(shown):
        if result["target"] and result["target"][0] == "ratio":
            axes.plot([result["target"][1]] * 2, [row - 0.4, row + 0.4], color="#c00000")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_title("pyconmon / conmon, lower is better; red: at most", fontsize=9)
    return figure


def _pairs(results: list[dict[str, Any]], title: str, label: str = "case") -> Any:
    from matplotlib.figure import Figure

    shown = [r for r in results if {"conmon", "pyconmon"} <= r["monitors"].keys()]
    if not shown:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for offset, (name, colour) in enumerate((("conmon", THEIRS), ("pyconmon", OURS))):
        found = [r["monitors"][name] for r in shown]
        middle = [f["median"] for f in found]
        spread = [
            [f["median"] - f["min"] for f in found],
            [f["max"] - f["median"] for f in found],
        ]
        places = [n + offset * 0.4 for n in range(len(shown))]
        axes.bar(places, middle, 0.38, yerr=spread, label=name, color=colour)
    texts = [
        f"{r['case'].removeprefix('relay k8s-file, ')}\n{r['amount']}"
        if label == "case"
        else r[label]
        for r in shown
    ]
    axes.set_xticks([n + 0.2 for n in range(len(shown))], texts, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    return figure
