"""`python -m benchmarks`: runs the cases and prints, keeps and draws what came out.

Exit status 0 if every case ran, 1 if one failed, 2 for wrong usage. Missed targets are shown in the
table and do not change the status: numbers depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine, report, workspace
from benchmarks.bench import Bench
from benchmarks.cases import CASES

ABOUT = """\
Measures C conmon and pyconmon in turn on the same bundles under runc. CPU is the monitor's own
user and system time as the kernel counts it, without runtime and container. Left out: waiting for
disks, networks, real journald (a sink stands in), other runtimes than runc, terminals."""


def _shown(path: str) -> str:
    """A path as others can use it: below this checkout it is relative to it."""
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


def main(argv: list[str]) -> int:
    options = _options(argv)
    monitors = {"conmon": options.conmon[0]}
    monitors |= {f"conmon{n}": path for n, path in enumerate(options.conmon[1:], 2)}
    monitors["pyconmon"] = options.monitor
    for path in monitors.values():
        if not shutil.which(path):
            print(f"benchmarks: {path} is not there or not executable", file=sys.stderr)
            return 2
    workspace.enter_namespace()
    about: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kind": "tiny" if options.tiny else "quick" if options.quick else "full",
        "machine": machine.describe(),
        "monitors": {
            name: {"path": _shown(path), "version": machine.first_line([path, "--version"])}
            for name, path in monitors.items()
        },
    }
    if not options.tiny:
        print(ABOUT + "\n")
    space = workspace.Workspace()
    bench = Bench(monitors, space, options.quick, options.tiny)
    begin = time.monotonic()
    try:
        failed = _run_cases(bench, options.only or list(CASES))
    finally:
        space.close()
    about["seconds"] = round(time.monotonic() - begin, 1)
    print(bench.results.text_table())
    for line in bench.results.left_out:
        print(f"left out: {line}")
    publish = options.publish or (
        about["kind"] == "full" and not options.only and not options.output and not failed
    )
    folder = options.output or Path("docs/benchmarks" if publish else "build/benchmarks")
    for path in report.write(bench.results, about, folder):
        print(f"wrote {path}")
    if publish and report.write_page(bench.results, about, Path("docs/performance.md")):
        print("wrote the table in docs/performance.md")
    return 1 if failed else 0


def _options(argv: list[str]) -> argparse.Namespace:
    names = "\n".join(f"  {name:10}{text}" for name, (_, text) in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=ABOUT,
        epilog="cases:\n" + names,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="under a minute; smaller amounts")
    parser.add_argument(
        "--tiny", action="store_true", help="seconds; proves that the harness works"
    )
    parser.add_argument(
        "--only", action="append", choices=CASES, help="just this case (repeatable)"
    )
    parser.add_argument("--conmon", action="append", help="a C conmon (repeatable)")
    parser.add_argument("--monitor", default=_default_monitor(), help="the pyconmon to measure")
    parser.add_argument("--output", type=Path, help="folder for results.json and plots")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="put this run into docs/, which a full one does anyway",
    )
    options = parser.parse_args(argv)
    options.conmon = options.conmon or ["/usr/bin/conmon"]
    return options


def _default_monitor() -> str:
    return shutil.which("pyconmon", path=str(Path(sys.executable).parent)) or "pyconmon"


def _run_cases(bench: Bench, names: list[str]) -> list[str]:
    failed = []
    with _progress(len(names)) as (say, done):
        for name in names:
            bench.say = say
            say(name)
            try:
                CASES[name][0](bench)
            except Exception as error:
                # One case that cannot run must not cost the numbers of the others.
                failed.append(name)
                bench.results.leave_out(name, f"FAILED: {error}")
            done()
    return failed


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar on a terminal, silence elsewhere."""
    try:
        from rich.progress import Progress
    except ImportError:
        yield (lambda text: None), (lambda: None)
        return
    with Progress(disable=not sys.stdout.isatty(), transient=True) as progress:
        task = progress.add_task("", total=total)

        def say(text: str) -> None:
            progress.update(task, description=text)

        yield say, lambda: progress.advance(task)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
