"""Commands that tell: ps, inspect, version, completion."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from datetime import datetime
from typing import Any

import click
from click.shell_completion import get_completion_class

from ..container import CREATED, RUNNING, STOPPED, Container, ContainerState
from ..errors import ContainerNotFound, PyconmonError
from . import output
from .options import Context, json_option, names_argument, pass_place
from .place import Place

LOST = "lost"


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Only the names.")
@json_option
@pass_place
def ps(context: Context, everything: bool, quiet: bool, as_json: bool) -> int:
    """List containers."""
    found = []
    with output.status("asking the runtime"):
        for name in context.place.names():
            try:
                container = context.place.load(name)
            except PyconmonError:
                continue  # removed since, or somebody else's file
            state = look_at(context.place, container)
            if everything or state.status not in (STOPPED, LOST):
                found.append((container, state))
    if as_json:
        output.print_json([describe(container, state) for container, state in found])
    elif quiet:
        for container, _ in found:
            click.echo(container.name)
    else:
        rows = [_row(container, state) for container, state in found]
        output.print_table(["NAME", "STATUS", "PID", "CREATED", "COMMAND"], rows)
    return 0


def look_at(place: Place, container: Container) -> ContainerState:
    """Its state now; one that the runtime does not know (since a reboot) is lost."""
    try:
        return place.runtime.update_status(container)
    except ContainerNotFound:
        state = container.state or ContainerState(id=container.name)
        state.status = LOST
    except PyconmonError:
        state = container.state or ContainerState(id=container.name)
        state.status = state.status or "unknown"
    return state


def _row(container: Container, state: ContainerState) -> list[str]:
    status = state.status
    if status == STOPPED:
        status = f"stopped ({state.exit_code if state.exit_code_known else 'unknown'})"
        status += " out of memory" if state.oom_killed else ""
    elif status == RUNNING and state.started:
        status = f"running {output.age(state.started.timestamp())}"
    if state.status in (CREATED, RUNNING) and state.monitored is False:
        status += ", no monitor"
    created = f"{output.age(state.created.timestamp())} ago" if state.created else "-"
    words = " ".join((container.metadata or {}).get("command") or [])
    command = words if len(words) <= 40 else words[:37] + "..."
    pid = str(state.pid) if state.status in (CREATED, RUNNING) else "-"
    return [container.name, status, pid, created, command.encode("ascii", "replace").decode()]


def describe(container: Container, state: ContainerState) -> dict[str, Any]:
    """Everything that is known of a container, for JSON."""
    known: dict[str, Any] = {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in dataclasses.asdict(state).items()
    }
    if state.status != STOPPED:
        known["exit_code"] = None
    known.pop("id")
    metadata = container.metadata or {}
    return {
        "name": container.name,
        "id": container.id,
        **known,
        "bundle": container.bundle_path,
        "log": container.log_path,
        "terminal": container.terminal,
        "monitor_pid": container.monitor.pid if container.monitor else None,
        **{key: metadata.get(key) for key in ("command", "remove", "stdin", "timeout")},
    }


@click.command()
@names_argument
@json_option
@pass_place
def inspect(context: Context, names: tuple[str, ...], as_json: bool) -> int:
    """Print all that is known of containers, as a JSON list."""
    if not names:
        raise click.UsageError("give the name of a container")
    found = []
    for name in names:
        container = context.place.load(name)
        entry = describe(container, look_at(context.place, container))
        if entry["status"] == RUNNING:
            try:
                entry["stats"] = dataclasses.asdict(context.place.runtime.stats(container))
            except PyconmonError:
                entry["stats"] = None
        found.append(entry)
    output.print_json(found)
    return 0


@click.command()
@json_option
@pass_place
def version(context: Context, as_json: bool) -> int:
    """Print the versions of runtime and monitor, and which they are."""
    place = context.place
    try:
        said = subprocess.run(
            [place.runtime.conmon_path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise PyconmonError(f"could not ask {place.runtime.conmon_path}: {error}") from error
    # conmon version N, and then commit: C, which names pyconmon and its own version.
    facts = {
        "runtime": place.runtime.path,
        "runtime_version": place.runtime.version(),
        "monitor": place.runtime.conmon_path,
        "monitor_version": " ".join(said[2:3]),
        "monitor_commit": " ".join(said[4:]),
        "state_dir": place.directory,
    }
    if as_json:
        output.print_json(facts)
    else:
        for key, value in facts.items():
            click.echo(f"{key.replace('_', ' ') + ':':17} {value}")
    return 0


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what makes a shell complete this command's words.

    For bash: eval "$(pyconmon-client completion bash)" in ~/.bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    # The words only; click's own source() starts a bash to look at its version.
    made = kind(root, {}, "pyconmon-client", "_PYCONMON_CLIENT_COMPLETE")
    click.echo(made.source_template % made.source_vars())
    return 0


def log_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


COMMANDS: list[click.Command] = [ps, inspect, version, completion]
