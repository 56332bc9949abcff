"""Container records on disk, so that a program that restarts finds what it had started.

One JSON file for each container, NAME.json in the runtime's container directory, written
atomically. Process ids count only within the boot in which they were written. What the caller gave
as image and metadata is kept if JSON can hold it, else as text.
"""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime
from typing import Any

from .container import Container, ContainerState
from .errors import RecordError
from .monitor import ProcessId

_VERSION = 1


def record_path(directory: str, name: str) -> str:
    return os.path.join(directory, f"{name}.json")


def save(directory: str, container: Container) -> None:
    """Write the record; no directory (an empty name) means no records."""
    if not directory:
        return
    make_directory(directory)
    state = container.state or ContainerState()
    record: dict[str, Any] = {
        "pyconmon_client": _VERSION,
        "id": container.id,
        "name": container.name,
        "bundle_path": container.bundle_path,
        "log_path": container.log_path,
        "netns": container.netns,
        "labels": container.labels,
        "annotations": container.annotations,
        "image": container.image,
        "metadata": container.metadata,
        "sandbox": container.sandbox,
        "terminal": container.terminal,
        "dialect": container.dialect,
        "boot_id": _boot_id(),
        "monitor": _pair(container.monitor),
        "init": _pair(container.init),
        "created": state.created.isoformat() if state.created else None,
        "started": state.started.isoformat() if state.started else None,
    }
    path = record_path(directory, container.name)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{container.name[:64]}.", dir=directory)
        try:
            with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                json.dump(record, file, default=str, ensure_ascii=False)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise RecordError(path, error.strerror or str(error)) from error


def make_directory(path: str) -> str:
    """The same path; RecordError if there is no directory, and none can be made."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise RecordError(path, error.strerror or str(error)) from error
    return path


def load(directory: str, name: str) -> Container:
    """The container of a record, its state and process ids filled in; RecordError otherwise."""
    path = record_path(directory, name)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            record = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(path, str(error)) from error
    if not isinstance(record, dict) or record.get("pyconmon_client") != _VERSION:
        raise RecordError(path, "not a container record of this client")
    try:
        container = _container(record)
    except (LookupError, TypeError, ValueError) as error:
        raise RecordError(path, f"{type(error).__name__}: {error}") from error
    if container.name != name:
        raise RecordError(path, f"it is that of container {container.name}")
    return container


def _container(record: dict[str, Any]) -> Container:
    container = Container(
        record["id"],
        record["name"],
        record["bundle_path"],
        record["log_path"],
        netns=record["netns"],
        labels=record["labels"],
        annotations=record["annotations"],
        image=record["image"],
        metadata=record["metadata"],
        sandbox=record["sandbox"],
        terminal=record["terminal"],
    )
    container.dialect = record["dialect"]
    if record["boot_id"] == _boot_id():
        container.monitor = _process(record["monitor"])
        container.init = _process(record["init"])
    container.state = ContainerState(
        id=container.name,
        bundle=container.bundle_path,
        pid=container.init.pid if container.init else 0,
        created=_time(record["created"]),
        started=_time(record["started"]),
    )
    return container


def remove(directory: str, name: str) -> None:
    if directory:
        try:
            os.unlink(record_path(directory, name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RecordError(record_path(directory, name), str(error.strerror)) from error


def names(directory: str) -> list[str]:
    """The names of all records, sorted; none if there is no directory."""
    try:
        entries = os.listdir(directory) if directory else []
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(directory, error.strerror or str(error)) from error
    # What is half written has a name that ends otherwise.
    return sorted(entry[:-5] for entry in entries if entry.endswith(".json") and entry != ".json")


def _pair(process: ProcessId | None) -> list[int] | None:
    return [process.pid, process.start_time] if process else None


def _process(pair: Any) -> ProcessId | None:
    if pair is None:
        return None
    pid, start_time = pair if isinstance(pair, list) and len(pair) == 2 else (0, 0)
    if not (type(pid) is type(start_time) is int and 0 < pid < 1 << 31):
        raise ValueError(f"{pair!r} is no process")
    return ProcessId(pid, start_time)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
