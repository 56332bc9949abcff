"""The client for asyncio: the same containers, results and errors, with coroutines that wait on the
running event loop's own descriptors instead of blocking.
"""

from __future__ import annotations

from ..bundle import Bundle
from ..container import Container, ContainerState
from ..exec_sync import ExecResult
from ..run import RunError, RunResult
from .attach import Attachment
from .events import ExitEvents
from .exec_process import ExecProcess
from .logs import LogReader
from .runtime import Runtime

__all__ = [
    "Attachment",
    "Bundle",
    "Container",
    "ContainerState",
    "ExecProcess",
    "ExecResult",
    "ExitEvents",
    "LogReader",
    "RunError",
    "RunResult",
    "Runtime",
]
