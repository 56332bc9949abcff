"""The examples of the guide: each is run as it stands there, and prints what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyconmon_client
from tests.helpers.bundles import rootfs
from tests.helpers.monitors import ROOT
from tests.helpers.session import TOKEN

GUIDE = (ROOT / "docs/guide.md").read_text()
_EXAMPLE = re.compile(
    r"^<!-- runnable -->\n```python\n(?P<code>.*?)^```\n\n```text\n(?P<output>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXAMPLES = [(match["code"], match["output"]) for match in _EXAMPLE.finditer(GUIDE)]


def test_every_marked_block_is_found() -> None:
    assert len(EXAMPLES) == GUIDE.count("<!-- runnable -->") >= 8


def here(code: str, runc: Path, monitor: Path, directory: Path) -> str:
    """The example with the paths of this machine, and a container name of this run."""
    places = {
        "/srv/rootfs": rootfs(),
        "/usr/sbin/runc": runc,
        "/usr/local/bin/pyconmon": monitor,
        "/run/example": directory / "state",
        "/var/log": directory,
        '"demo"': f'"{TOKEN}-demo"',
    }
    for there, where in places.items():
        code = code.replace(there, str(where))
    return code


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, runc: Path, monitor_path: Path, tmp_path: Path) -> None:
    code, output = EXAMPLES[number]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", here(code, runc, monitor_path, tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "client"), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == ""
    assert done.stdout == output
    assert done.returncode == 0
    assert not list(tmp_path.glob("pyconmon-*")), "temporary files are left"


def test_the_migration_table_names_what_there_is() -> None:
    """What stands behind a dot in the Python column is an attribute of one of these classes."""
    text = (ROOT / "docs/migration.md").read_text()
    column = [line.split("|")[2] for line in text.splitlines() if line.startswith("| `")]
    names = {name for cell in column for name in re.findall(r"\.([a-z_]+)", cell)}
    classes = (pyconmon_client.Runtime, pyconmon_client.Container)
    missing = {
        name for name in names - {"lock"} if not any(hasattr(each, name) for each in classes)
    }
    assert len(names) > 20
    assert missing <= {"aio"}


def test_the_reference_names_what_there_is() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    for path in re.findall(r"^::: pyconmon_client\.(\S+)", text, re.MULTILINE):
        found: object = pyconmon_client
        for name in path.split("."):
            if not hasattr(found, name):
                __import__(f"pyconmon_client.{path.rpartition('.')[0] or path}")
            found = getattr(found, name)
        assert found is not None


def test_the_guide_names_every_error() -> None:
    """Those that the package offers, but for the bases that stand for their subclasses."""
    errors = {name for name in pyconmon_client.__all__ if name.endswith(("Error", "Timeout"))}
    section = GUIDE.partition("## Errors")[2].partition("\n## ")[0]
    missing = {name for name in errors if f"`{name}`" not in section}
    assert missing <= {"ExecSyncError", "PyconmonError"}
