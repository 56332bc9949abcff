"""exec -d: a command in a container, with a monitor of its own in the background.

Callers rely on the command having started when `execute()` returns. Its folder below the state
directory goes with the container; nobody waits for it, its exit code is in the folder's `exit`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence

from .. import argv as argv_of
from .. import creation, spawn
from ..container import Container
from ..errors import CreateError, ExecStartError, PyconmonError
from ..process_spec import ExecSettings, exec_process
from .place import Place

_SECONDS = 60.0


def execute(
    place: Place,
    container: Container,
    command: Sequence[str],
    settings: ExecSettings,
    *,
    terminal: bool,
) -> int:
    """The command's pid. ExecStartError with the runtime's reason if it cannot be started."""
    parent = place.executions_directory(container.name)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="exec-", dir=parent)
    try:
        process = exec_process(container.bundle_path, command, settings, terminal=terminal)
        spec = os.path.join(directory, "process.json")
        with open(spec, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(process, file, ensure_ascii=False)
        argv = argv_of.modern_exec(
            container.name,
            place.runtime.path,
            os.path.join(directory, "pidfile"),
            spec,
            cuuid=os.path.basename(directory),
            log="none",
            terminal=terminal,
        )
        # Not in the foreground, and in a place of its own.
        argv.remove("--sync")
        argv += ["-b", directory, "-P", os.path.join(directory, "conmon.pid")]
        argv += ["--exit-dir", directory, "--full-attach"]
        request = creation.CreateRequest(
            place.runtime.conmon_path,
            argv,
            place.runtime.environment,
            directory,
            container.name,
            (-1, -1, -1),
            daemon=True,
            seconds=_SECONDS,
        )
        pid, child = _create(request, command)
    except (PyconmonError, OSError):
        shutil.rmtree(directory, ignore_errors=True)
        raise
    child.close()
    os.unlink(spec)
    return pid


def _create(request: creation.CreateRequest, command: Sequence[str]) -> tuple[int, spawn.Child]:
    """As of a container; but it is a command that could not be started."""
    try:
        return creation.create(request)
    except CreateError as error:
        why = str(error).partition(": ")[2]
        cause = f"could not run {' '.join(command)!r} in container {request.name}: {why}"
        raise ExecStartError(b"", error.stderr.encode(), -1, cause) from error
