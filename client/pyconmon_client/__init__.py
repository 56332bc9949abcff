"""Containers for Python programs: create, start, exec in, attach to, stop and delete them.

A thin client of an OCI runtime (runc, crun) and a container monitor (pyconmon or conmon).
"""

from __future__ import annotations

from .attach import Attachment
from .bundle import Bundle
from .container import Container, ContainerState
from .errors import (
    AttachError,
    BundleError,
    ContainerNotFound,
    ContainerStateError,
    CreateError,
    CreateTimeout,
    ExecExitError,
    ExecStartError,
    ExecSyncError,
    ExecTimeout,
    ExitFileError,
    InvalidArgumentError,
    LogFormatError,
    MonitorError,
    NotRunningError,
    PyconmonError,
    RecordError,
    RuntimeCommandError,
    SyncPipeError,
    WaitTimeout,
)
from .events import ExitEvent, ExitEvents
from .exec_process import ExecProcess
from .exec_sync import ExecResult
from .logs import LogReader
from .mounts import Mount
from .run import RunError, RunResult
from .runtime import Runtime
from .stats import Stats
from .terminal import interact

__all__ = [
    "AttachError",
    "Attachment",
    "Bundle",
    "BundleError",
    "Container",
    "ContainerNotFound",
    "ContainerState",
    "ContainerStateError",
    "CreateError",
    "CreateTimeout",
    "ExecExitError",
    "ExecProcess",
    "ExecResult",
    "ExecStartError",
    "ExecSyncError",
    "ExecTimeout",
    "ExitEvent",
    "ExitEvents",
    "ExitFileError",
    "InvalidArgumentError",
    "LogFormatError",
    "LogReader",
    "MonitorError",
    "Mount",
    "NotRunningError",
    "PyconmonError",
    "RecordError",
    "RunError",
    "RunResult",
    "Runtime",
    "RuntimeCommandError",
    "Stats",
    "SyncPipeError",
    "WaitTimeout",
    "interact",
]
