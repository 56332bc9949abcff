"""The fault tool in short: a few system calls fail, other ones each time, and nothing goes wrong."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faults.plan import ERRNOS, Job, all_jobs, few_jobs, sites
from faults.session import FINE, HANG, LOST, RECOVERED, REFUSED, RIGHT, Surroundings

RUNS = 25


@pytest.fixture
def surroundings(tmp_path: Path, runc: Path) -> Surroundings:
    return Surroundings(tmp_path, runc)


@pytest.mark.timeout(600)
def test_a_few_faults(surroundings: Surroundings) -> None:
    seed = random.randrange(1 << 32)
    jobs = few_jobs(sites(surroundings.baseline()), RUNS, random.Random(seed))
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(surroundings.run, jobs))
    bad = [
        f"{job.inject}: {outcome}: {detail}"
        for job, (outcome, detail) in zip(jobs, outcomes, strict=True)
        if outcome not in FINE
    ]
    assert not bad, f"seed {seed}:\n" + "\n".join(bad)


@pytest.mark.parametrize(
    ("job", "outcomes"),
    [
        (Job("pipe2", "EMFILE", 1), (REFUSED,)),
        (Job("fsync", "EIO", 1), (RIGHT,)),
        (Job("fsync", "KILL", 1), (RECOVERED,)),
        (Job("wait4", "EINTR", 1), (RIGHT,)),
        (Job("rename", "KILL", 2), (RECOVERED, LOST)),
    ],
    ids=lambda value: value.inject if isinstance(value, Job) else "",
)
def test_faults_of_known_outcome(
    surroundings: Surroundings, job: Job, outcomes: tuple[str, ...]
) -> None:
    outcome, detail = surroundings.run(job)
    assert outcome in outcomes, detail


def test_a_monitor_that_hangs_is_found_out(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 1.5\n")
    hanging.chmod(0o755)
    monkeypatch.setattr("faults.session.PYCONMON", hanging)
    monkeypatch.setattr("faults.session.PATIENCE", 0.5)
    assert surroundings.run(Job("fsync", "EIO", 1))[0] == HANG


def test_the_plan_has_every_site_with_every_errno() -> None:
    found = {"rename": [3, 4], "fsync": [9]}
    jobs = all_jobs(found, random.Random(1))
    for call, whens in found.items():
        for errno in [*ERRNOS[call], "KILL"]:
            for when in whens:
                assert Job(call, errno, when) in jobs
    assert len(jobs) == len(set(jobs))
    assert {job.call for job in jobs[:5]} == {"rename", "fsync"}


def test_sites_are_counted_from_the_beginning(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text(
        "read(3) = 1\nopenat(x) = 3\numask(022) = 0\nread(3) = 1\n+++ exited\nnosuch(1)\n"
    )
    assert sites(trace) == {"read": [2]}
