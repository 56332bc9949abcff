"""Which processes belong to a container: its first one, and its monitor.

As created by this program, as recorded, or found from outside for a container that somebody else
started. Callers rely on None for what is gone or cannot be told for sure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import psutil

from .container import STOPPED, Container
from .errors import PyconmonError
from .monitor import ProcessId, parent_monitor
from .oci_runtime import OciRuntime


def read_pidfile(path: str, name: str = "") -> ProcessId | None:
    """The process that a pid file names; with a name, only if that is on its command line."""
    try:
        with open(path, "rb") as file:
            text = file.read(32).strip()
        process = ProcessId.of(int(text)) if text.isdigit() else None
        if process is None or not name:
            return process
        return process if name in psutil.Process(process.pid).cmdline() else None
    except (OSError, psutil.Error):
        return None


def successor(bundle: str) -> ProcessId | None:
    """The monitor that has taken over from one that died (pyconmon only), while it is there.

    It has written itself into the state file beside the container.
    """
    try:
        with open(os.path.join(bundle, "pyconmon-state.json"), "rb") as file:
            state = json.load(file)
        found = ProcessId(state["monitor_pid"], state["monitor_start"])
        return found if found.alive() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def init_of(
    container: Container, oci: OciRuntime, state: Mapping[str, Any] | None = None
) -> ProcessId | None:
    """The container's first process. The runtime is asked: unlike a pid file it is never stale.

    `state` is what the runtime has just said.
    """
    if container.init is None:
        try:
            state = oci.state(container.name) if state is None else state
            pid = 0 if state.get("status") == STOPPED else int(state.get("pid") or 0)
        except (PyconmonError, ValueError, TypeError):
            pid = 0
        container.init = ProcessId.of(pid) if pid > 0 else None
    return container.init


def monitor_of(container: Container) -> ProcessId | None:
    """The container's monitor: by its pid file, or as the parent of the first process.

    For one that has died, its successor if another program has called that.
    """
    if container.monitor is None or not container.monitor.alive():
        pidfile = os.path.join(container.bundle_path, "conmon.pid")
        found = read_pidfile(pidfile, container.name) or successor(container.bundle_path)
        if found is None and container.init is not None:
            found = parent_monitor(container.init, container.name)
        container.monitor = found or container.monitor
    return container.monitor
