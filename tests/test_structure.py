"""The shape of the house: which module may import which, how long a module is, what a start costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.bundles import make_bundle
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON, ROOT
from tests.helpers.need import need

MONITOR = ROOT / "pyconmon"
CLIENT = ROOT / "client/pyconmon_client"

# From the bottom up. Imports go down only. A group in parentheses is one room of several files, whose
# files may import each other; other modules of one layer may not. A package stands for its modules.
LAYERS: list[tuple[str, list[str | tuple[str, ...]]]] = [
    ("base", ["__init__", "fds", "linux", "diag"]),
    ("engine", ["loop", "reaper", ("options", "usage", "checks")]),
    (
        "rooms",
        [
            ("runtime", "exit_report"),  # the two that fork a child which execs
            "console",
            ("stdio", "pace"),
            ("attach", "attach_client", "backlog"),
            "caller",
            "control",
            "notify",
            "oom",
            "sync_pipe",
            "logs",
            "journal",
            "process",
            "processes",
            "container",
        ],
    ),
    ("assemblies", ["creation", "streams", "endpoints", ("survival", "state")]),
    ("story", ["monitor"]),
    ("command", [("__main__", "recovery")]),
]

# Arrows up or sideways, each with its reason; all of them inside a function.
EXCEPTIONS = {
    ("checks", "logs"): "the grammar of -l belongs to the drivers",
}

# What a monitor may have loaded once it watches a container: C modules and what Python itself loads
# at its start (-IS). Anything else makes every container's start slower; import it where it is needed.
START_UP_MODULES = {
    "__main__", "_abc", "_codecs", "_collections_abc", "_frozen_importlib",
    "_frozen_importlib_external", "_imp", "_io", "_prctl", "_signal", "_socket", "_stat", "_struct",
    "_thread", "_warnings", "_weakref", "abc", "builtins", "codecs", "encodings",
    "encodings.aliases", "encodings.ascii", "encodings.latin_1", "encodings.utf_8", "errno", "fcntl",
    "genericpath", "io", "marshal", "mmap", "os", "os.path", "posix", "posixpath", "select", "stat", "struct",
    "sys", "termios", "time", "winreg", "zipimport", "__future__",
}  # fmt: skip


def modules(package: Path) -> dict[str, Path]:
    """Name below the package ("logs.record", "fds") -> file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        found[name.removesuffix(".__init__") if "." in name else name] = path
    return found


def imports(path: Path, package: str) -> Iterator[tuple[str, bool]]:
    """(module, at module level) of each import, without those that only type checkers see."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for each in node.orelse:
                yield from visit(each, top)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, top
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                yield f"{origin}.{alias.name}", top
        else:
            inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text()), True)


def monitor_imports() -> Iterator[tuple[str, str, bool]]:
    """(importer, imported, at module level) between the modules of pyconmon, packages as one."""
    names = modules(MONITOR)
    for name, path in names.items():
        package = "pyconmon.logs" if path.parent.name == "logs" else "pyconmon"
        for imported, top in imports(path, package):
            if not imported.startswith("pyconmon"):
                continue
            target = imported.removeprefix("pyconmon").lstrip(".").split(".")[0]
            yield name.split(".")[0], target if target in names else "__init__", top


def place(name: str) -> tuple[int, int]:
    """(layer, room) of a module."""
    for height, (_, rooms) in enumerate(LAYERS):
        for number, room in enumerate(rooms):
            if name == room or (isinstance(room, tuple) and name in room):
                return height, number
    raise AssertionError(f"pyconmon/{name}.py has no place in LAYERS yet: give it one")


def test_arrows_go_down_only() -> None:
    wrong = []
    for importer, imported, top in monitor_imports():
        above, below = place(importer), place(imported)
        if importer == imported or above == below or above[0] > below[0]:
            continue
        if (importer, imported) in EXCEPTIONS and not top:
            continue
        wrong.append(f"{importer} ({LAYERS[above[0]][0]}) -> {imported} ({LAYERS[below[0]][0]})")
    assert not wrong, "imports up or sideways:\n" + "\n".join(sorted(set(wrong)))


def test_every_exception_is_still_one() -> None:
    arrows = {(importer, imported) for importer, imported, _ in monitor_imports()}
    assert set(EXCEPTIONS) <= arrows


def test_client_and_monitor_know_nothing_of_each_other() -> None:
    for package, other in ((CLIENT, "pyconmon"), (MONITOR, "pyconmon_client")):
        for path in package.rglob("*.py"):
            inside = ".".join(path.relative_to(package.parent).parent.parts)
            for imported, _ in imports(path, inside):
                assert imported.split(".")[0] != other, f"{path} imports {imported}"


@pytest.mark.parametrize("package", [MONITOR, CLIENT], ids=["pyconmon", "pyconmon_client"])
def test_no_module_is_longer_than_400_lines(package: Path) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in package.rglob("*.py")
    }
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


@pytest.mark.parametrize("package", [MONITOR, CLIENT], ids=["pyconmon", "pyconmon_client"])
def test_every_module_says_what_it_is(package: Path) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in package.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_the_metadata_names_every_package() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(init.parent.relative_to(base).parts)
        for base, package in ((ROOT, MONITOR), (ROOT / "client", CLIENT))
        for init in package.rglob("__init__.py")
    }
    assert set(named) == there


# Runs the command as its launcher does, and writes down what has been loaded when it is done. It ends
# by os._exit, which its children do as well.
_LOADED = """
import os, sys
out = sys.argv.pop(1)
command = sys.argv.pop(1)
sys.argv[0] = command
really, here = os._exit, os.getpid()
def leave(status):
    if os.getpid() == here:
        with open(out, "w") as file:
            file.write("\\n".join(sorted(sys.modules)))
    really(status)
os._exit = leave
try:
    exec(compile(open(command).read(), command, "exec"))
except SystemExit as end:
    sys.stdout.flush()
    leave(end.code or 0)
"""


def loaded_modules(out: Path, *words: str | Path, **settings: object) -> set[str]:
    """The modules that a whole run of the command has loaded, our own left out."""
    interpreter, _, option = PYCONMON.read_text().splitlines()[0].removeprefix("#!").partition(" ")
    subprocess.run(
        [interpreter, option, "-c", _LOADED, out, PYCONMON, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
        **settings,  # type: ignore[call-overload]
    )
    return {name for name in out.read_text().split() if not name.startswith("pyconmon")}


def test_a_start_loads_little(
    tmp_path: Path, shim_runtime: Path, drive: Callable[..., Drive]
) -> None:
    """A whole life of a container, in one process: --sync."""
    need(os.access(PYCONMON, os.X_OK), "the pyconmon command")
    container = drive(["true"], runtime=shim_runtime, options=["--sync"])
    make_bundle(container.directory, ["true"])
    starter = tmp_path / "start-when-created"
    starter.write_text(
        f'#!/bin/sh\n{shim_runtime} "$@" || exit\ncase " $* " in *" create "*)\n'
        f"  {shim_runtime} start {container.ident} ;;\nesac\n"
    )
    starter.chmod(0o755)
    container.runtime = starter
    loaded = loaded_modules(
        tmp_path / "loaded", *container.arguments(), env={**os.environ, "_OCI_SYNCPIPE": ""}
    )
    assert container.wait_exit() == 0
    assert loaded - START_UP_MODULES == set()


def test_the_version_loads_little(tmp_path: Path) -> None:
    need(os.access(PYCONMON, os.X_OK), "the pyconmon command")
    assert loaded_modules(tmp_path / "loaded", "--version") - START_UP_MODULES == set()


def cpu_seconds(argv: list[str]) -> float:
    """What one run of it costs."""
    null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=null)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, argv
    return usage.ru_utime + usage.ru_stime


def test_the_version_costs_little_more_than_the_interpreter() -> None:
    """Podman asks for it again and again. CPU time, the best of many: other load does not count."""
    need(os.access(PYCONMON, os.X_OK), "the pyconmon command")
    interpreter = PYCONMON.read_text().splitlines()[0].removeprefix("#!").split()[0]
    bare, command = [], []
    for _ in range(10):
        for _ in range(20):
            bare.append(cpu_seconds([interpreter, "-IS", "-c", "pass"]))
            command.append(cpu_seconds([str(PYCONMON), "--version"]))
        if min(command) <= 1.7 * min(bare):
            break
    print(json.dumps({"bare": min(bare), "command": min(command)}), file=sys.stderr)
    assert min(command) <= 1.7 * min(bare)
