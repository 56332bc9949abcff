"""What README.md promises: its example runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.bundles import rootfs
from tests.helpers.monitors import PYCONMON, ROOT
from tests.helpers.need import need, need_program, need_root
from tests.helpers.waiting import wait_until

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_example_runs(tmp_path: Path, runc: Path) -> None:
    need(os.access(PYCONMON, os.X_OK), "the pyconmon command")
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 12
    places = {
        "/usr/sbin/runc": runc,
        "/run/example": tmp_path / "records",
        "/usr/local/bin/pyconmon": PYCONMON,
        "/srv/rootfs": rootfs(),
        "/tmp/example.log": tmp_path / "log",
    }
    for usual, ours in places.items():
        assert example.count(usual) == 1
        example = example.replace(usual, str(ours))
    # Wherever the bundle lands, it is to be below our directory.
    result = subprocess.run(
        [sys.executable, "-c", example],
        env={**os.environ, "PYTHONPATH": str(ROOT / "client"), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("b'container\\n'\n7\n", "")
    assert (tmp_path / "log").read_text().endswith(" stdout F hello\n")


def test_the_commands_exist() -> None:
    shown = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(blocks("sh")) + README))
    assert {"run", "test", "help", "install-conmon"} <= shown
    for target in shown - {"one"}:
        if re.search(rf"`make {target}\b|^make {target}\b|sudo make {target}\b", README, re.M):
            done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_the_links_lead_somewhere() -> None:
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name}: {target}"


def cgroups(name: str) -> set[str]:
    """The cgroups of that name."""
    return {where for where, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(where) == name}


def naming(text: str) -> list[int]:
    """The processes that have it on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.fsencode(text) in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


def test_make_run_tells_the_story_and_leaves_nothing() -> None:
    need_root()
    need_program("runc")
    before = set(os.listdir("/tmp"))
    groups = cgroups("first")
    result = subprocess.run(
        [sys.executable, ROOT / "examples/first_container"],
        env={"PATH": os.environ["PATH"], "PYCONMON": str(PYCONMON)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("1. ", "hello from process 1", "exit code 3", "bundle/exit: 7", "6. delete"):
        assert word in result.stdout
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("first-container")}
    assert left == set()
    place = re.search(r"/tmp/first-container-\w+", result.stdout)
    assert place is not None
    assert place[0] not in Path("/proc/self/mountinfo").read_text()
    assert cgroups("first") <= groups
    wait_until(lambda: not naming(place[0]), what="the end of all that it started")


def test_make_run_without_root_says_so() -> None:
    """One line, whether or not anything had to be installed."""
    need_root()
    # Somebody else who may still read the checkout, wherever that is.
    nobody = [need_program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups",
              "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # fmt: skip
    result = subprocess.run(
        [*nobody, sys.executable, ROOT / "examples/first_container"],
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "first_container: please run it as root (runc makes cgroups)\n"
