"""Container: what a caller says about one container; ContainerState: what is known of it.

A Container is a plain description with a lock; it does nothing by itself. Runtime's operations
take it, and only they change its state.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .errors import ContainerStateError, InvalidArgumentError

if TYPE_CHECKING:
    from .monitor import ProcessId

# Runtimes are stricter, each in its way. This much is for our own files, and for their options.
_NAME = re.compile(r"(?!-)[^/\0-\x1f\x7f]+")

CREATED = "created"
RUNNING = "running"
STOPPED = "stopped"


@dataclass(slots=True)
class ContainerState:
    """The OCI state of a container, and what its monitor adds to it.

    `exit_code` counts only once `status` is "stopped"; it is -1 where nobody can know it any more
    (`exit_code_known` is then False). `monitored` is False for a container whose monitor is gone,
    None where no monitor is known. Times are aware datetimes; `finished` is the exit file's ctime.
    """

    oci_version: str = ""
    id: str = ""
    status: str = ""
    pid: int = 0
    bundle: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    created: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None
    exit_code: int = -1
    exit_code_known: bool = False
    monitored: bool | None = None
    oom_killed: bool = False

    def merge(self, reported: Mapping[str, Any]) -> None:
        """Take over what the runtime reports (its JSON); what it does not mention stays."""
        self.oci_version = str(reported.get("ociVersion", self.oci_version))
        self.id = str(reported.get("id", self.id))
        self.status = str(reported.get("status", self.status))
        self.pid = int(reported.get("pid") or 0)
        self.bundle = str(reported.get("bundle", self.bundle))
        self.annotations = dict(reported.get("annotations") or {})
        created = _parse_time(reported.get("created"))
        self.created = created or self.created


def _parse_time(text: Any) -> datetime | None:
    """An RFC 3339 time as Go prints it (nanoseconds; Python keeps microseconds), or None."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


class Container:
    """One container. `name` is its id for the OCI runtime, `bundle_path` its OCI bundle.

    `log_path` is where a monitor of the modern dialect writes the output in k8s-file form; empty
    means that the container writes to the caller's own stdout and stderr. `netns` is the path of a
    network namespace that somebody else made for it. The rest is the caller's own data, kept.
    """

    def __init__(
        self,
        id: str,
        name: str,
        bundle_path: str | os.PathLike[str],
        log_path: str | os.PathLike[str] = "",
        netns: str | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        image: Any = None,
        metadata: Any = None,
        sandbox: str = "",
        terminal: bool = False,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", ".."):
            raise InvalidArgumentError(
                f"name: {name!r}; give one path component without control characters that does not "
                "begin with '-'"
            )
        self._id = id
        self._name = name
        # Monitors start in the bundle, so a relative path would mean something else to them.
        self._bundle_path = os.path.abspath(bundle_path)
        self._log_path = os.path.abspath(log_path) if log_path else ""
        self._netns = str(netns) if netns is not None else None
        self._labels = dict(labels or {})
        self._annotations = dict(annotations or {})
        self._image = image
        self._metadata = metadata
        self._sandbox = sandbox
        self._terminal = terminal
        self.lock = threading.RLock()
        """Held by every operation that changes the container; reentrant."""
        self.state: ContainerState | None = None
        self.monitor: ProcessId | None = None
        """The monitor's process, as far as it is known."""
        self.init: ProcessId | None = None
        """The container's first process, as far as it is known."""
        self.dialect = ""
        """"classic" or "modern" once created: how its monitor was started."""

    @property
    def id(self) -> str:
        return self._id

    @property
    def name(self) -> str:
        return self._name

    @property
    def bundle_path(self) -> str:
        return self._bundle_path

    @property
    def log_path(self) -> str:
        return self._log_path

    @property
    def netns(self) -> str | None:
        return self._netns

    @property
    def labels(self) -> dict[str, str]:
        return self._labels

    @property
    def annotations(self) -> dict[str, str]:
        return self._annotations

    @property
    def image(self) -> Any:
        return self._image

    @property
    def metadata(self) -> Any:
        return self._metadata

    @property
    def sandbox(self) -> str:
        return self._sandbox

    @property
    def terminal(self) -> bool:
        return self._terminal

    @property
    def net_ns_path(self) -> str:
        """Path of the container's network namespace; ContainerStateError before the first state."""
        if self.state is None:
            raise ContainerStateError(
                f"could not name the network namespace of container {self._name}: "
                "its state is not known yet (update_status fills it in)"
            )
        return self._netns if self._netns is not None else f"/proc/{self.state.pid}/ns/net"

    def __repr__(self) -> str:
        status = self.state.status if self.state else "unknown"
        return f"<Container {self._name} {status} in {self._bundle_path}>"
