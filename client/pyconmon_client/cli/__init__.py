"""The command pyconmon-client: containers from the shell. It needs the extra `cli` (click, rich).

Outsiders rely on `main()`, which returns the exit status: the container's for run, start -a, attach
and exec, 0 to 255; else 0, or 125 with one line on stderr (126, 127: a command that cannot be
executed, or is not there).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

_NEEDED = ("click", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these words (default: the process's own); its exit status."""
    try:
        import rich  # noqa: F401 - the commands import it when they need it

        from .app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f"pyconmon-client: the package {error.name} is missing: pip install 'pyconmon[cli]'",
            file=sys.stderr,
        )
        return 125
    return run(argv)
