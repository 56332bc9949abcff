"""Many container lives, some at a time, each checked: make soak.

    python -m soak [--minutes N | --short] [--jobs N] [--seed N] [--monitor PATH]

Containers that write and end in known ways, execs, clients that come and go, logs that rotate, monitors
that are killed and replaced. One container lives through it all, with a monitor that must end with the
descriptors and (nearly) the memory that it had at the beginning. Exit status 1 names what went wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import threading
import time
from pathlib import Path

from soak.lives import LIVES, Soak, Wrong, check, executed, measure, zombies_below
from tests.helpers import runtimes, session
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON
from tests.helpers.waiting import wait_until

MEMORY_MARGIN = 1024  # kB that the long-lived monitor may have grown by
SHORT = 8.0  # seconds
CHATTER = "while :; do echo still here; sleep 0.1; done"


def soak(seconds: float, jobs: int, seed: int, monitor: Path, runtime: Path) -> Soak:
    """Live until the time is over. Raises Wrong, AssertionError."""
    home = session.SESSION_DIR
    with Drive(["sh", "-c", CHATTER], home, monitor=monitor, runtime=runtime, name="long",
               options=["--log-size-max", "20000"]) as long:  # fmt: skip
        long.run()
        all_of_it = Soak(home, monitor, runtime, long)
        executed(all_of_it, random.Random(seed))  # whatever is loaded only then is loaded now
        before = measure(long.monitor_pid)
        deadline = time.monotonic() + seconds
        failures: list[BaseException] = []

        def worker(dice: random.Random) -> None:
            try:
                while time.monotonic() < deadline and not failures:
                    life = dice.choice(LIVES)
                    life(all_of_it, dice)
                    if life is not executed:
                        all_of_it.count("containers")
            except BaseException as error:
                failures.append(error)

        workers = [
            threading.Thread(target=worker, args=(random.Random(f"{seed}/{number}"),))
            for number in range(jobs)
        ]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        if failures:
            raise failures[0]
        # A client that has gone may not have been noticed yet.
        wait_until(lambda: measure(long.monitor_pid)[0] <= before[0], 20, "closed descriptors")
        grown = measure(long.monitor_pid)[1] - before[1]
        if grown > MEMORY_MARGIN:
            raise Wrong(f"the monitor grew by {grown} kB")
        check("zombies of the monitor", zombies_below(long.monitor_pid), [])
        all_of_it.done["kB that the monitor grew"] = grown
    return all_of_it


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description="Many container lives, each checked.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=30)
    length.add_argument("--short", action="store_true", help=f"{SHORT:g} seconds")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="at once")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--monitor", type=Path, default=PYCONMON)
    options = parser.parse_args()
    seconds = SHORT if options.short else options.minutes * 60
    print(f"soak: {options.monitor}, {seconds:g} s, seed {options.seed}", flush=True)
    session.SESSION_DIR.mkdir()
    try:
        runtime = runtimes.runc(session.SESSION_DIR / "runtime-root")
        done = soak(seconds, options.jobs, options.seed, options.monitor, runtime).done
        session.check()
    except (Wrong, AssertionError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    finally:
        session.sweep()
        shutil.rmtree(session.SESSION_DIR, ignore_errors=True)
    told = ", ".join(f"{count} {what}" for what, count in done.items())
    print(f"soak: {told}; nothing lost, nothing left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
