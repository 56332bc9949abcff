"""The command itself: help, errors, JSON, completion, the manual page, and what it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyconmon_client.cli.app import cli as group
from tests.cli.conftest import Cli
from tests.helpers.monitors import PYTHON, ROOT

PAGE = ROOT / "docs/man/pyconmon-client.1"

COMMANDS = {
    "attach", "completion", "create", "exec", "inspect", "kill", "logs", "ps", "recover", "rm",
    "run", "start", "stop", "top", "version", "wait",
}  # fmt: skip


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(group, ["--help"]).output
    listed = text.partition("Commands:")[2]
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("  ")} >= COMMANDS
    assert "cleanup" not in listed
    for command in COMMANDS - {"completion"}:
        text = CliRunner().invoke(group, [command, "-h"]).output
        assert "--json" in text, f"{command} has no --json"


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["ps", "--nonsense"],
        ["logs", "nobody"],
        ["attach", "nobody"],
        ["exec", "nobody", "true"],
        ["inspect", "nobody"],
        ["start", "nobody"],
        ["stop"],
        ["run", "true"],
        ["run", "--rootfs", "/no/such/directory", "true"],
        ["run", "--rootfs", "/", "--name", "a/b", "true"],
        ["run", "--rootfs", "/", "--name", "", "true"],
        ["run", "--rootfs", "/", "--name", "-x", "true"],
        ["run", "--rootfs", "/", "--name", "a b", "true"],
        ["run", "--rootfs", "/", "--memory", "much", "true"],
        ["run", "--rootfs", "/", "-v", "nonsense", "true"],
        ["run", "--rootfs", "/", "--mount", "type=nonsense", "true"],
        ["logs", "--tail", "-1", "nobody"],
        ["attach", "--detach-keys", "ctrl-", "nobody"],
    ],
    ids=" ".join,
)
def test_errors_are_one_line(cli: Cli, words: list[str]) -> None:
    done = cli(*words)
    assert (done.status, done.stdout) == (125, "")
    assert done.stderr.startswith("pyconmon-client: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "\033" not in done.stderr


def test_errors_quote_what_was_given(cli: Cli) -> None:
    """Not what was made of it."""
    done = cli("run", "--rootfs", "/", "-v", "nonsense", "true")
    assert "mounts: 'nonsense'; give 'source:destination'" in done.stderr
    done = cli("run", "--rootfs", "/", "--mount", "type=tmpfs,target=/x,mode=9", "true")
    assert "mode: '9'; give up to four octal digits" in done.stderr


def test_errors_as_json(cli: Cli) -> None:
    done = cli("inspect", "--json", "nobody")
    known = json.loads(done.stderr)
    assert known["status"] == done.status == 125
    assert "nobody" in known["error"]


def test_programs_that_are_not_there(tmp_path: Path) -> None:
    for option in ("--runtime", "--monitor"):
        words = ["--state-dir", str(tmp_path), option, "/no/program", "ps"]
        done = subprocess.run(
            [PYTHON, "-I", "-m", "pyconmon_client.cli", *words], capture_output=True, text=True
        )
        assert done.returncode == 125
        assert "/no/program" in done.stderr


def test_version(both: Cli) -> None:
    known = both("version", "--json").json
    assert known["runtime"] == str(both.runtime)
    assert known["monitor"] == str(both.monitor)
    assert known["runtime_version"][0].isdigit()
    assert known["monitor_version"].startswith("2.")
    text = both("version").stdout
    assert all(value in text for value in known.values())


def test_json_of_run(both: Cli, root: str) -> None:
    name = both.name()
    script = "echo out; echo err >&2; exit 3"
    done = both("run", "--json", "--rm", "--name", name, "--rootfs", root, "sh", "-c", script)
    assert done.status == 3
    assert done.json == {
        "name": name, "exit_code": 3, "timed_out": False, "oom_killed": False,
        "stdout": "out\n", "stderr": "err\n", "truncated": False,
    }  # fmt: skip
    assert done.stderr == ""


def complete(cli: Cli, tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    command = folder / "pyconmon-client"
    command.write_text(f'#!/bin/sh\nexec {PYTHON} -I -m pyconmon_client.cli "$@"\n')
    command.chmod(0o755)
    listed = " ".join(f"'{word}'" for word in ("pyconmon-client", *words))
    script = f"{cli('completion', 'bash').stdout}\nCOMP_WORDS=({listed})\nCOMP_CWORD={len(words)}\n"
    script += '_pyconmon_client_completion pyconmon-client\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYCONMON_STATE_DIR": str(cli.state_dir),
        "PYCONMON_RUNTIME": str(cli.runtime),
        "PYCONMON_MONITOR": str(cli.monitor),
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_in_bash(cli: Cli, tmp_path: Path) -> None:
    name = cli.sleeper()
    assert complete(cli, tmp_path, "st") == ["start", "stop"]
    assert complete(cli, tmp_path, "run", "--root") == ["--rootfs"]
    assert complete(cli, tmp_path, "stop", name[:-1]) == [name]
    assert complete(cli, tmp_path, "logs", "nobod") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).stdout
    assert "_PYCONMON_CLIENT_COMPLETE" in script
    assert "pyconmon-client" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True, timeout=60)


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra(package: str) -> None:
    """One line that says what to do, and no traceback."""
    text = f"import sys; sys.path.insert(0, {str(ROOT / 'client')!r}); sys.modules[{package!r}] = None;"
    text += "from pyconmon_client.cli import main; sys.exit(main(['ps', '-h']))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"pyconmon-client: the package {package} is missing: pip install 'pyconmon[cli]'\n"
    )


def test_the_manual_page_is_current() -> None:
    """Whoever changes an option runs scripts/make-client-man."""
    done = subprocess.run(
        [sys.executable, "-B", ROOT / "scripts/make-client-man", "-"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == PAGE.read_text()


def test_the_manual_page_names_every_command() -> None:
    text = PAGE.read_text().replace("\\-", "-")
    for command in COMMANDS:
        assert f".SS {command}" in text
    assert "--detach-keys" in text
