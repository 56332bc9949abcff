"""What happens in a soak: one life of a container each time, drawn by lot, and checked to the byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.bundles import no_pid_namespace
from tests.helpers.drive import Attached, Drive
from tests.helpers.recovering import STATE, kill_monitor, recover, wait_kept
from tests.helpers.waiting import wait_until


class Wrong(Exception):
    """Something was not reported as it happened."""


def check(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found!r} instead of {expected!r}")


@dataclass
class Soak:
    """Where it happens, and what has happened so far."""

    home: Path
    monitor: Path
    runtime: Path
    long: Drive  # a container that lives through it all
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.done[what] += 1

    def container(self, script: str, **settings: object) -> Drive:
        return Drive(
            ["sh", "-c", script],
            self.home,
            monitor=self.monitor,
            runtime=self.runtime,
            **settings,  # type: ignore[arg-type]
        )


def plain(soak: Soak, dice: random.Random) -> None:
    """A container that writes, and exits or is killed."""
    lines, code = dice.randrange(1, 20000), dice.randrange(0, 126)
    number = dice.choice([0, 0, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
    end = f"kill -{number} $$" if number else f"exit {code}"
    script = f"seq 1 {lines}; echo to stderr >&2; {end}"
    with soak.container(script, edit=no_pid_namespace) as container:
        container.run()
        check(f"code of {script!r}", container.wait_exit(), 128 + number if number else code)
        check("digest of stdout", hash(container.logged()), hash(numbers(lines)))
        check("stderr", container.logged("stderr"), b"to stderr\n")
        container.wait_monitor()
    shutil.rmtree(container.directory)


def numbers(last: int) -> bytes:
    return b"".join(b"%d\n" % line for line in range(1, last + 1))


def rotating(soak: Soak, dice: random.Random) -> None:
    """Its log rotates, by size and because somebody asks for it."""
    lines, limit = dice.randrange(2000, 20000), dice.choice([4000, 60000])
    options = ["--log-size-max", str(limit), "--log-rotate", "--log-max-files", "3000"]
    with soak.container(f"seq 1 {lines}; sleep 0.05; exit 9", options=options) as container:
        container.run()
        for _ in range(dice.randrange(4)):
            try:
                container.ctl("2 0 0")
            except OSError:
                break
        check("code of one that rotates", container.wait_exit(), 9)
        container.wait_monitor()
        parts = sorted(
            container.directory.glob("ctr.log.*"), key=lambda part: -int(part.suffix[1:])
        )
        joined = b"".join(part.read_bytes() for part in [*parts, container.log])
        container.log.write_bytes(joined)
        check("rotated stdout", hash(container.logged()), hash(numbers(lines)))
    shutil.rmtree(container.directory)


def killed(soak: Soak, dice: random.Random) -> None:
    """Its monitor is killed, some times, and it is recovered."""
    code = dice.randrange(0, 126)
    script = (
        "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i; case $i in *00) sleep 0.01;; esac; "
        f"done; exit {code}"
    )
    with soak.container(f"trap 'touch /tmp/stop' USR1; {script}") as container:
        wait_kept(container.run())
        for _ in range(dice.choice([1, 1, 2, 3])):
            time.sleep(dice.uniform(0, 0.1))
            kill_monitor(container)
            done = recover(container.directory)
            check("status of a recovery", (done.returncode, done.stderr), (0, ""))
            soak.count("recoveries")
        wait_until(lambda: container.logged(), what="the container's output")
        container.kill("USR1")
        check("code after recoveries", container.wait_exit(), code)
        container.wait_monitor()
        lines = container.logged()
        check("stdout over recoveries", hash(lines), hash(numbers(lines.count(b"\n"))))
        check("state left", (container.directory / STATE).exists(), False)
    shutil.rmtree(container.directory)


def attached(soak: Soak, dice: random.Random) -> None:
    """Clients that come before it starts get everything, whatever others do."""
    lines = dice.randrange(1, 20000)
    with soak.container(f"seq 1 {lines}; exit 3", stdin=True) as container:
        container.create()
        good = [container.attach() for _ in range(dice.randrange(1, 4))]
        gone = container.attach()
        container.attach()  # never reads
        readers = [threading.Thread(target=client.all) for client in good]
        for reader in readers:
            reader.start()
        container.start()
        gone.close()
        check("code with clients", container.wait_exit(), 3)
        for reader in readers:
            reader.join(30)
        for client in good:
            check("what a client got", hash(client.stdout), hash(numbers(lines)))
        check("stdout with clients", hash(container.logged()), hash(numbers(lines)))
    shutil.rmtree(container.directory)


def executed(soak: Soak, dice: random.Random) -> None:
    """Commands in the long-lived container, some past their time, and clients that come and go."""
    for _ in range(4):
        code = dice.randrange(0, 126)
        command = soak.long.exec(["sh", "-c", f"seq 1 {code + 1}; exit {code}"])
        check("code of an exec", command.wait(), code)
        check("output of an exec", command.logged(), numbers(code + 1))
        with soak.lock:
            soak.long.execs.remove(command)
        command.close()
        shutil.rmtree(command.directory)
        soak.count("execs")
        Attached(soak.long.directory / "attach").close()


LIVES = [plain, plain, rotating, killed, attached, executed, executed]


def measure(pid: int) -> tuple[int, int]:
    """(descriptors, private kB) of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private"))
    return len(os.listdir(f"/proc/{pid}/fd")), private


def zombies_below(pid: int) -> list[str]:
    """Children of a process that it should have reaped."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=,args=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [line for line in listed.stdout.splitlines() if line.split()[1].startswith("Z")]
