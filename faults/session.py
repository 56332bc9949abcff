"""One container's life through a monitor of which one system call fails, and what came of it.

strace follows the monitor alone (`--sync`: it does not go to the background), so that the runtime, the
exit command and the container are what they always are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from faults.plan import Job
from tests.helpers import session
from tests.helpers.drive import Drive
from tests.helpers.monitors import PYCONMON
from tests.helpers.need import need_program
from tests.helpers.recovering import box
from tests.helpers.waiting import gone, wait_until

CODE = 7
LINES = 300
# It ends when it may, so that a monitor which dies before that can be replaced before it.
SCRIPT = f"seq 1 {LINES}; echo err >&2; while [ ! -e /box/stop ]; do sleep 0.01; done; exit {CODE}"
PATIENCE = 20.0  # seconds without progress that count as a hang

# Outcomes. The first six are fine, the others are not.
RIGHT = "right code"
PARTLY = "right code, some output lost"
RECOVERED = "right code after recovery"
LOST = "reported lost"
REFUSED = "refused with a message"
UNREACHED = "not reached"
WRONG = "WRONG CODE"
HANG = "HANG"
SILENT = "NOTHING REPORTED"
FINE = (RIGHT, PARTLY, RECOVERED, LOST, REFUSED, UNREACHED)

_numbers = itertools.count(1)


class Surroundings:
    """Where the sessions happen: a folder, and a runtime with a state of its own."""

    def __init__(self, home: Path, runtime: Path) -> None:
        self.home = home
        self.runtime = runtime
        self.strace = need_program("strace")

    def baseline(self) -> Path:
        """The trace of a life without faults."""
        trace = self.home / "baseline"
        outcome, detail = self._life(["-e", "trace=all", "-o", str(trace)], None)
        if outcome != RIGHT:
            raise RuntimeError(f"without any fault: {outcome}, {detail}")
        return trace

    def run(self, job: Job) -> tuple[str, str]:
        """Live with that fault; (outcome, detail)."""
        trace = self.home / f"trace{next(_numbers)}"
        words = ["-e", f"trace={job.call}", "-e", f"inject={job.inject}", "-o", str(trace)]
        try:
            return self._life(words, trace)
        finally:
            trace.unlink(missing_ok=True)

    def _life(self, words: list[str], trace: Path | None) -> tuple[str, str]:
        wrapper = self.home / f"monitor{next(_numbers)}"
        command = " ".join([self.strace, "-qq", "-e", "signal=none", *words, str(PYCONMON)])
        wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        wrapper.chmod(0o755)
        with Drive(
            ["sh", "-c", SCRIPT],
            self.home,
            monitor=wrapper,
            runtime=self.runtime,
            options=["--sync", "--exit-command", "/bin/true"],
            edit=box(wrapper.with_suffix(".box")),
        ) as container:
            outcome, detail = _watch(container, wrapper.with_suffix(".box") / "stop")
            if outcome == RIGHT and trace is not None and "INJECTED" not in trace.read_text():
                outcome = UNREACHED
        _remove_cgroups(container)
        shutil.rmtree(container.directory, ignore_errors=True)
        shutil.rmtree(wrapper.with_suffix(".box"))
        wrapper.unlink()
        return outcome, detail


def _remove_cgroups(container: Drive) -> None:
    """A runtime that was killed with its monitor, half-way through, leaves its cgroups."""
    for path in session.cgroups():
        if path.name.startswith(f"{container.bundle.name}-"):
            with contextlib.suppress(OSError):
                for pid in (path / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(AssertionError):
                wait_until(partial(_removed, path), 10, f"the end of {path}")


def _removed(path: Path) -> bool:
    path.rmdir()
    return True


def _watch(container: Drive, stop: Path) -> tuple[str, str]:
    try:
        return _story(container, stop)
    except AssertionError as error:
        return HANG, str(error)
    except subprocess.TimeoutExpired as error:
        return HANG, str(error)


def _story(container: Drive, stop: Path) -> tuple[str, str]:
    process = container.launch().process
    assert process is not None
    try:
        answer = container.sync.line(PATIENCE / 4)
    except AssertionError:
        if container.status() != "created":
            raise
        # strace holds the pipe too, so that its end is not seen: what failed was the word to us.
        answer = {"data": int(container.pidfile.read_text())}
    if answer is None or answer.get("data", -1) <= 0:
        status = process.wait(PATIENCE)
        said = (answer or {}).get("message") or container.stderr
        if answer is None and container.status() == "created":
            # The monitor was killed between the runtime's work and its word to the caller, who sees
            # the pipe's end and has to clean up: nothing was promised.
            return (REFUSED, "pipe ended") if status != 0 else (SILENT, "created, not announced")
        if status == 0 or not (said or status < 0 or status > 128):
            return SILENT, f"status {status}, answer {answer}, said {said!r}"
        return REFUSED, said
    container.pid = answer["data"]
    container.start()
    deadline = time.monotonic() + 1
    while process.poll() is None and not _all_logged(container) and time.monotonic() < deadline:
        time.sleep(0.003)
    if process.poll() is not None:
        subprocess.run([PYCONMON, "--recover", container.directory], timeout=PATIENCE)
    stop.touch()
    deadline = time.monotonic() + PATIENCE
    while not container.exit_file.exists():
        if process.poll() is not None and not container.exit_file.exists():
            return _after_death(container)
        if time.monotonic() > deadline:
            return HANG, f"no exit file; {container.stderr}"
        time.sleep(0.003)
    code = int(container.exit_file.read_text())
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return HANG, f"it does not end; {container.stderr}"
    if code == CODE:
        return RIGHT if _all_logged(container) else PARTLY, container.stderr
    return (LOST if code == -1 else WRONG), f"{code}; {container.stderr}"


def _after_death(container: Drive) -> tuple[str, str]:
    """The monitor is gone, and there is no report: whoever comes next has to make it."""
    ended = time.monotonic() + PATIENCE
    while not container.exit_file.exists() and time.monotonic() < ended:
        done = subprocess.run(
            [PYCONMON, "--recover", container.directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode != 0:
            return SILENT, f"no recovery: {done.stderr}"
        if gone(container.pid) and not (container.directory / "pyconmon-state.json").exists():
            break
        time.sleep(0.02)
    if not container.exit_file.exists():
        return SILENT, f"nothing to recover; {container.stderr}"
    code = int(container.exit_file.read_text())
    if code == CODE:
        return RECOVERED if _all_logged(container) else PARTLY, ""
    return (LOST if code == -1 else WRONG), f"{code} after recovery"


def _all_logged(container: Drive) -> bool:
    expected = b"".join(b"%d\n" % line for line in range(1, LINES + 1))
    if not container.log.exists():
        return False
    return container.logged() == expected and container.logged("stderr") == b"err\n"
