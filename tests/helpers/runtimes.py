"""OCI runtimes with a private state directory, as single executables (monitors want a path)."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from tests.helpers.monitors import REPORT_RUNTIME, SHIM_RUNTIME
from tests.helpers.need import need_program, need_root


def wrap(program: str | Path, root: Path, *options: str) -> Path:
    """An executable that runs program --root ROOT; it lies beside root, and root is made."""
    root.mkdir(parents=True, exist_ok=True)
    wrapper = root.parent / f"{Path(program).name}-wrapper"
    words = shlex.join([str(program), "--root", str(root), *options])
    wrapper.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def runc(root: Path) -> Path:
    """runc with its state in root."""
    need_root()
    return wrap(need_program("runc"), root)


def shim(root: Path) -> Path:
    """The runtime double with a shim (tests/helpers/shim-runtime), its state in root."""
    return wrap(SHIM_RUNTIME, root)


def reporting() -> Path:
    """The runtime that writes down how it was started (tests/helpers/report-runtime)."""
    return REPORT_RUNTIME


def delete_all(runtime: Path) -> None:
    """Force-delete every container that the (private) runtime still knows."""
    listed = subprocess.run([runtime, "list", "-q"], capture_output=True, text=True)
    for container in listed.stdout.split():
        subprocess.run(
            [runtime, "delete", "--force", container],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
        )


def state(runtime: Path, container: str) -> str:
    """The status field of `runtime state`, "" for a container that it does not know."""
    import json

    result = subprocess.run([runtime, "state", container], capture_output=True, text=True)
    return str(json.loads(result.stdout)["status"]) if result.returncode == 0 else ""


def environment(**more: str) -> dict[str, str]:
    """This process's environment with more in it."""
    return {**os.environ, **more}
