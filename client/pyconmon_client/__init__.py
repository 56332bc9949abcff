"""Containers for Python programs: create, start, exec in, attach to, stop and delete them.

A thin client of an OCI runtime (runc, crun) and a container monitor (pyconmon or conmon).
"""

from __future__ import annotations

from .container import Container, ContainerState
from .errors import (
    ContainerNotFound,
    ContainerStateError,
    CreateError,
    CreateTimeout,
    ExecExitError,
    ExecStartError,
    ExecSyncError,
    ExecTimeout,
    ExitFileError,
    MonitorError,
    NotMonitored,
    PyconmonError,
    RecordError,
    RuntimeCommandError,
    SyncPipeError,
    WaitTimeout,
)
from .exec_sync import ExecResult
from .runtime import Runtime

__all__ = [
    "Container",
    "ContainerNotFound",
    "ContainerState",
    "ContainerStateError",
    "CreateError",
    "CreateTimeout",
    "ExecExitError",
    "ExecResult",
    "ExecStartError",
    "ExecSyncError",
    "ExecTimeout",
    "ExitFileError",
    "MonitorError",
    "NotMonitored",
    "PyconmonError",
    "RecordError",
    "Runtime",
    "RuntimeCommandError",
    "SyncPipeError",
    "WaitTimeout",
]
