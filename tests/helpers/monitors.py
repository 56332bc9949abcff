"""The monitors under test: pyconmon as users start it, and C conmon, the reference."""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers.need import need

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests/helpers"

# The environment may name others, for example an installed copy.
PYCONMON = Path(os.environ.get("PYCONMON", ROOT / ".venv/bin/pyconmon"))
CONMON = Path(os.environ.get("CONMON", "/usr/bin/conmon"))
MONITORS = {"pyconmon": PYCONMON, "conmon": CONMON}

PYTHON = ROOT / ".venv/bin/python"
SHIM_RUNTIME = HELPERS / "shim-runtime"
REPORT_RUNTIME = HELPERS / "report-runtime"


def monitor(name: str) -> Path:
    """The path of the monitor "pyconmon" or "conmon"; without it as need()."""
    path = MONITORS[name]
    if name == "conmon":
        need(os.access(path, os.X_OK), "C conmon (Debian: conmon)")
        need(path.read_bytes()[:4] == b"\x7fELF", "C conmon itself at " + str(path))
    else:
        need(os.access(path, os.X_OK), "the pyconmon command (scripts/setup makes it)")
    return path
