"""Fails each system call of a monitor in turn, one run for each call site and errno: make faults.

    python -m faults [--minutes N] [--jobs N] [--seed N] [--only CALL] [--write FILE]

In every run the container's exit code has to arrive, or to be reported as lost, or the creation is
refused with a message: a wrong code, a hang or silence ends this with status 1. `--write` puts the
table into a document.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.plan import Job, all_jobs, sites
from faults.session import FINE, Surroundings
from tests.helpers import runtimes, session
from tests.helpers.monitors import PYCONMON

Results = dict[tuple[str, str], Counter[str]]


def table(results: Results) -> str:
    """The matrix as Markdown: a line for each call and errno."""
    lines = ["| call | errno | rounds | outcome |", "| --- | --- | ---: | --- |"]
    for (call, errno), outcomes in sorted(results.items()):
        told = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.most_common())
        shown = "killed there" if errno == "KILL" else errno
        lines.append(f"| {call} | {shown} | {outcomes.total()} | {told} |")
    return "\n".join(lines) + "\n"


def document(results: Results, known: dict[str, list[int]], left: int, seconds: float) -> str:
    """docs/faults.md."""
    total: Counter[str] = Counter()
    for outcomes in results.values():
        total.update(outcomes)
    rounds = total.total()
    summary = "\n".join(f"* {outcome}: {count}" for outcome, count in total.most_common())
    calls = sum(map(len, known.values()))
    return f"""# When system calls fail

`make faults` lives a container's whole life (created by runc, started, 301 lines of output, exit code 7,
an exit command) through a monitor of which one system call fails, again and again: each of the {calls}
calls that the monitor makes from its first step on (its own children excepted), with each errno that
the call may give, and once with the monitor killed there, after which `--recover` has to see to the
rest. Every container has to be accounted for:

* *right code*: as if nothing had happened;
* *right code, some output lost*: what could not be written to the log at that moment, or
  was still in the container's pipes when both the container and the monitor had died, is missing in it;
* *right code after recovery*: the monitor was killed, and its successor reported it;
* *reported lost*: the exit file says -1, as it does for a code that nobody can know; never another number;
* *refused with a message*: there was no container yet, the caller was told (or saw the pipe end with
  the killed monitor), nothing is left;
* *not reached*: that run had fewer such calls.

A wrong code, a hang, or silence about a container that ran is a failure of the tool. A short form of
it is part of the tests.

{rounds} runs, {left} of the plan left out for time; {seconds / 60:.0f} minutes on Linux
{platform.release().split("-")[0]}, Python {platform.python_version()}:

{summary}

{table(results)}"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description="Fail each system call in turn.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", metavar="CALL", help="this system call alone")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    session.SESSION_DIR.mkdir()
    results: Results = defaultdict(Counter)
    bad = 0
    begun = time.monotonic()
    try:
        runtime = runtimes.runc(session.SESSION_DIR / "runtime-root")
        where = Surroundings(session.SESSION_DIR, runtime)
        known = sites(where.baseline())
        plan = all_jobs(known, random.Random(options.seed))
        plan = [job for job in plan if options.only in (None, job.call)]
        print(f"faults: {PYCONMON}, {len(plan)} runs, seed {options.seed}", flush=True)
        deadline = begun + options.minutes * 60

        def one(job: Job) -> tuple[Job, str, str] | None:
            return None if time.monotonic() > deadline else (job, *where.run(job))

        with ThreadPoolExecutor(options.jobs) as pool:
            for result in pool.map(one, plan):
                if result is None:
                    continue
                job, outcome, detail = result
                results[job.call, job.errno][outcome] += 1
                if outcome not in FINE:
                    bad += 1
                    print(f"{outcome}: {job.inject}: {detail.strip()[-400:]}", flush=True)
    finally:
        session.sweep()
        shutil.rmtree(session.SESSION_DIR, ignore_errors=True)
    done = sum(outcomes.total() for outcomes in results.values())
    if options.write is not None:
        text = document(results, known, len(plan) - done, time.monotonic() - begun)
        options.write.write_text(text)
    else:
        print(table(results), end="")
    print(f"faults: {done} runs, {bad} of them bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
