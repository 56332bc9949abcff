"""The cases, in the order in which a run takes them: name -> (function, what it measures)."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.cases import attach, crowd, latency, podman, relay, startup

Case = Callable[[Bench], None]

CASES: dict[str, tuple[Case, str]] = {
    "version": (startup.version, "--version, beside an interpreter that does nothing"),
    "create": (startup.create_to_exit, "from the monitor's start to the exit file of `true`"),
    "exec": (startup.exec_true, "exec of `true` in the classic dialect, API 0 and API 1"),
    "relay": (relay.k8s_file, "monitor CPU and container's time for a gigabyte of output"),
    "none": (relay.no_log, "the same without a log"),
    "journald": (relay.journald, "the same into a socket that stands in for journald"),
    "trickle": (latency.trickle, "CPU for single bytes that come one by one"),
    "latency": (latency.line_latency, "from a line's write to its record in the log"),
    "attach": (attach.relay, "monitor CPU for output to 1 and 5 attached clients"),
    "crowd": (crowd.crowd, "memory of 1 to 500 containers, CPU of 100 idle and 50 busy ones"),
    "podman": (podman.run_true, "`podman run --rm` of `true`"),
}
