"""need(): a test says which part of the machine it cannot do without.

On a laptop a missing part skips the test; where the environment has CI set it fails, so that a
machine which lost a part does not look like one on which everything passes.
"""

from __future__ import annotations

import os
import shutil

import pytest


def need(ok: object, what: str) -> None:
    """Go on only if ok is true; what names the missing part ("runc", "root")."""
    if ok:
        return
    if os.environ.get("CI"):
        pytest.fail(f"this machine lacks {what}", pytrace=False)
    pytest.skip(f"needs {what}")


def need_program(name: str) -> str:
    """The absolute path of a program of this machine; without it as need()."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    need(path, name)
    assert path is not None
    return path


def need_root() -> None:
    """Most runtimes need it to make containers."""
    need(os.geteuid() == 0, "root")
