"""Commands for containers that are there, by their names: stop, kill, wait, rm, recover."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from ..container import CREATED, RUNNING, STOPPED, Container
from ..errors import ContainerNotFound, PyconmonError
from . import output
from .options import Context, json_option, names_argument, pass_place
from .place import Place


def _each(
    context: Context,
    names: tuple[str, ...],
    as_json: bool,
    what: str,
    act: Callable[[Container], Any],
    show: Callable[[str, Any], str] = lambda name, _value: name,
) -> int:
    """Do it to all that are named; go on after an error, which the exit status then tells."""
    if not names:
        raise click.UsageError("give the name of a container")
    results: list[dict[str, Any]] = []
    failed = False
    for name in names:
        try:
            container = context.place.load(name)
            with output.status(f"{what} {name}"):
                value = act(container)
        except (PyconmonError, OSError) as error:
            failed = True
            text = output.one_line(error)
            results.append({"name": name, "error": text})
            if not as_json:
                print(output.error_line(text), file=sys.stderr)
        else:
            results.append({"name": name, "result": value})
            if not as_json:
                click.echo(show(name, value))
    if as_json:
        output.print_json(results)
    return 125 if failed else 0


@click.command()
@names_argument
@click.option(
    "-t",
    "--time",
    "seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take before it is killed.",
)
@click.option("-s", "--signal", "name", default="TERM", show_default=True, help="The first signal.")
@json_option
@pass_place
def stop(context: Context, names: tuple[str, ...], seconds: float, name: str, as_json: bool) -> int:
    """Signal containers, and kill those that do not end in time."""

    def act(container: Container) -> int:
        with context.place.kept(container):
            context.place.runtime.stop_container(container, seconds, name)
            return context.place.runtime.wait(container, 30.0)

    return _each(context, names, as_json, "stopping", act)


@click.command()
@names_argument
@click.option("-s", "--signal", "name", default="KILL", show_default=True, help="The signal.")
@json_option
@pass_place
def kill(context: Context, names: tuple[str, ...], name: str, as_json: bool) -> int:
    """Send a signal to containers' first processes."""

    def act(container: Container) -> str:
        context.place.runtime.kill_container(container, name)
        return name

    return _each(context, names, as_json, "signalling", act)


@click.command()
@names_argument
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait at most for each.",
)
@json_option
@pass_place
def wait(context: Context, names: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait until containers have ended, and print their exit codes (-1: unknown)."""

    def act(container: Container) -> int:
        with context.place.kept(container):
            return context.place.runtime.wait(container, timeout)

    return _each(context, names, as_json, "waiting for", act, lambda _name, code: str(code))


@click.command()
@names_argument
@click.option("-f", "--force", is_flag=True, help="Also those that run; they are killed.")
@click.option("-a", "--all", "everything", is_flag=True, help="All that have ended (-f: all).")
@json_option
@pass_place
def rm(
    context: Context, names: tuple[str, ...], force: bool, everything: bool, as_json: bool
) -> int:
    """Remove containers with their logs, and the bundles that were made for them."""
    place = context.place
    if everything and not names:
        names = tuple(name for name in place.names() if force or _has_ended(place, name))
        if not names:
            if as_json:
                output.print_json([])
            return 0

    def act(container: Container) -> bool:
        if not force and not _has_ended(place, container.name, CREATED):
            raise PyconmonError(f"container {container.name} runs: stop it first, or give -f")
        place.remove(container, force=True)
        return True

    return _each(context, names, as_json, "removing", act)


def _has_ended(place: Place, name: str, *or_status: str) -> bool:
    try:
        status = place.runtime.update_status(place.load(name)).status
    except ContainerNotFound:
        return True
    return status in (STOPPED, *or_status)


@click.command()
@names_argument
@click.option("-a", "--all", "everything", is_flag=True, help="All that lost their monitor.")
@json_option
@pass_place
def recover(context: Context, names: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Give containers whose monitor has died a new one (pyconmon only)."""
    place = context.place
    if everything and not names:
        names = tuple(name for name in place.names() if _is_orphan(place, name))
        if not names:
            if as_json:
                output.print_json([])
            return 0
    return _each(
        context,
        names,
        as_json,
        "recovering",
        place.runtime.recover,
        lambda name, new: f"{name}: {'has a new monitor' if new else 'has its monitor'}",
    )


def _is_orphan(place: Place, name: str) -> bool:
    try:
        container = place.load(name)
        state = place.runtime.update_status(container)
    except PyconmonError:
        return False
    return state.status in (CREATED, RUNNING) and state.monitored is False


@click.command(hidden=True)
@click.argument("name")
@click.argument("ident")
@pass_place
def cleanup(context: Context, name: str, ident: str) -> int:
    """Remove a container that has ended: what its monitor executes for --rm.

    The monitor waits for its exit command, and removal waits for the monitor: so this goes on in
    the background.
    """
    if os.fork():
        return 0
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    try:
        context.place.remove_at_its_end(name, ident)
    except (PyconmonError, OSError):
        pass  # somebody else has removed it
    os._exit(0)


COMMANDS: list[click.Command] = [stop, kill, wait, rm, recover, cleanup]
