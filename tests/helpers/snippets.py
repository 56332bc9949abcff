"""run(): a few lines of Python in a process of their own, for what a test cannot do to itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.helpers.monitors import ROOT


def run(code: str, *words: str, seconds: float = 60, **settings: Any) -> str:
    """What the lines print; AssertionError with their stderr if they fail. `words` are their sys.argv[1:].

    pyconmon can be imported there. settings: as subprocess.run has them.
    """
    prelude = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-c", prelude + code, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        **settings,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout
