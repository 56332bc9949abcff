"""scripts/setup, scripts/install-conmon, the Makefile and .ci/run, as users and CI run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON, ROOT
from tests.helpers.need import need, need_program, need_root
from tests.helpers.session import SESSION_DIR


def run(*words: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A command from the checkout, without a terminal."""
    settings = {"cwd": ROOT, "timeout": 100, **settings}
    result: subprocess.CompletedProcess[str] = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, **settings
    )
    return result


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup reads, to do things to it."""
    copy = tmp_path / "checkout"
    for name in ("scripts", ".ci"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_a_second_setup_has_nothing_to_do() -> None:
    need(os.access(PYCONMON, os.X_OK), "a checkout that has been set up")
    run("scripts/setup", "run", check=True)
    again = run("scripts/setup", "run", check=True)
    assert (again.stdout, again.stderr) == ("", "")


def test_without_root_setup_says_what_to_install(checkout: Path) -> None:
    need_root()
    fakes = checkout / "fakes"
    fakes.mkdir()
    (fakes / "dpkg-query").write_text("#!/bin/sh\nexit 1\n")
    (fakes / "dpkg-query").chmod(0o755)
    nobody = [need_program("setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    for folder in (checkout, *checkout.parents):
        if folder.is_relative_to(SESSION_DIR):
            folder.chmod(0o755)
    result = run(*nobody, "scripts/setup", "run", cwd=checkout,
                 env={"PATH": f"{fakes}:/usr/bin:/bin"})  # fmt: skip
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "please run as root: apt-get install --no-install-recommends runc" in last


def test_an_unknown_kind_is_refused(checkout: Path) -> None:
    result = run("scripts/setup", "everything", cwd=checkout)
    assert (result.returncode, result.stderr) == (2, "usage: scripts/setup [run|test|docs|bench]\n")


def test_make_names_every_target() -> None:
    listed = run("make", check=True).stdout
    for target in ("run", "test", "bench", "install-conmon", "uninstall-conmon", "clean"):
        assert f"make {target} " in listed


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """pyconmon installed below a prefix in which somebody else's file is."""
    need(os.access(PYCONMON, os.X_OK), "a checkout that has been set up")
    prefix = tmp_path / "usr"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/other").write_text("other")
    run("scripts/install-conmon", prefix, check=True)
    return prefix


def test_the_installed_copy_stands_alone(
    prefix: Path, drive: Callable[..., Drive], shim_runtime: Path
) -> None:
    for command in ("bin/pyconmon", "bin/conmon", "libexec/pyconmon/conmon"):
        version = run(prefix / command, "--version", check=True, env={}, cwd="/")
        assert version.stdout.startswith("conmon version ")
        assert version.stderr == ""
    texts = [path for path in prefix.rglob("*") if path.is_file() and path.suffix != ".so"]
    assert [path for path in texts if os.fsencode(ROOT) + b"/" in path.read_bytes()] == []
    container = drive(["sh", "-c", "exit 4"], monitor=prefix / "bin/conmon", runtime=shim_runtime)
    assert container.run().wait_exit() == 4
    container.wait_monitor()
    # Bytecode is complete: a start must not have to write any.
    compiled = {path.name.split(".")[0] for path in prefix.rglob("*.pyc")}
    assert compiled == {path.stem for path in prefix.rglob("*.py")}


def test_the_units_run_the_installed_copy(prefix: Path) -> None:
    units = prefix / "lib/systemd/system"
    for unit in ("pyconmon@.service", "pyconmon-recover@.service"):
        named = [word for word in (units / unit).read_text().split() if "/pyconmon" in word]
        programs = [word.rpartition("=")[2].lstrip("-") for word in named if "=" in word]
        ours = [Path(program) for program in programs if program.startswith(str(prefix))]
        assert ours and all(os.access(program, os.X_OK) for program in ours)


def test_uninstalling_leaves_what_was_there(prefix: Path) -> None:
    run("scripts/install-conmon", prefix, check=True)  # over itself
    run("scripts/install-conmon", "--uninstall", prefix, check=True)
    assert [str(path.relative_to(prefix)) for path in prefix.rglob("*")] == ["bin", "bin/other"]
    again = run("scripts/install-conmon", "--uninstall", prefix)
    assert (again.returncode, again.stderr) == (
        1,
        f"install-conmon: nothing of ours in {prefix}\n",
    )


def test_a_conmon_of_somebody_else_stays(tmp_path: Path) -> None:
    need(os.access(PYCONMON, os.X_OK), "a checkout that has been set up")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/conmon").write_text("theirs")
    run("scripts/install-conmon", tmp_path, check=True)
    run("scripts/install-conmon", "--uninstall", tmp_path, check=True)
    assert (tmp_path / "bin/conmon").read_text() == "theirs"


@pytest.mark.parametrize(
    ("first", "results", "second", "status"),
    [
        (0, False, 1, 0),  # all is well
        (2, True, 0, 0),  # what failed passes the second time
        (2, True, 1, 1),  # it fails again
        (2, False, 0, 2),  # no test ever ran
    ],
)
def test_ci_runs_once_more_what_failed(
    checkout: Path, first: int, results: bool, second: int, status: int
) -> None:
    cache = ".pytest_cache/v/cache"
    left = f"mkdir -p {cache}; echo some >{cache}/lastfailed;" if results else ""
    (checkout / "Makefile").write_text(f"test:\n\t@{left} exit {min(first, 1)}\n")
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {second}\n')
    python.chmod(0o755)
    # What an earlier run left must not count.
    (checkout / cache).mkdir(parents=True)
    (checkout / cache / "lastfailed").write_text("old")
    result = run("bash", ".ci/run", cwd=checkout)
    assert result.returncode == status
    assert ("--last-failed-no-failures=none" in result.stdout) == results


def test_a_short_soak() -> None:
    need_root()
    need_program("runc")
    result = run(sys.executable, "-m", "soak", "--short", "--monitor", PYCONMON)
    assert (result.returncode, result.stderr) == (0, "")
    assert "nothing lost, nothing left" in result.stdout
    assert "recoveries" in result.stdout or "execs" in result.stdout
