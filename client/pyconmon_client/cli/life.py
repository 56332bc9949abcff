"""Commands that begin a container's life: run, create, start."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from typing import Any

import click

from ..container import Container
from ..errors import PyconmonError
from ..keys import DEFAULT
from ..terminal import DETACHED
from . import output, streams
from .new import NewContainer, new_container_options
from .options import Context, json_option, name_argument, pass_place
from .place import Place, Wishes

detach_keys_option = click.option(
    "--detach-keys",
    default=DEFAULT,
    show_default=True,
    help="What takes the terminal back and leaves the container running; empty for nothing.",
)
_WORDS = {
    "allow_interspersed_args": False
}  # after the name (or rootfs) all words are the command's


@click.command(context_settings=_WORDS)
@click.option("-d", "--detach", is_flag=True, help="Print the name and leave it running.")
@detach_keys_option
@json_option
@new_container_options
@pass_place
def run(context: Context, /, detach: bool, detach_keys: str, as_json: bool, **options: Any) -> int:
    """Create and start a container, and show its output until it ends.

    The exit status is the container's. Input is passed with -i, a terminal given with -t. A signal
    is passed on to the container, a second one kills it.
    """
    new, place = NewContainer(**options), context.place
    if as_json and new.tty and not detach:
        raise click.UsageError("--json: a terminal's output can't be kept; leave out -t, or add -d")
    container = _create(place, new, leave_stdin_open=detach)
    if detach:
        _start_or_remove(place, container)
        _print_new(container, as_json)
        return 0
    with place.kept(container):
        return _accompany(place, container, new.remove, detach_keys, as_json, new=True)


@click.command(context_settings=_WORDS)
@json_option
@new_container_options
@pass_place
def create(context: Context, /, as_json: bool, **options: Any) -> int:
    """Create a container, for start to let it run."""
    _print_new(_create(context.place, NewContainer(**options)), as_json)
    return 0


def _create(place: Place, new: NewContainer, leave_stdin_open: bool = False) -> Container:
    name = new.chosen_name()
    place.check_free(name)
    with output.status(f"creating {name}"):
        bundle = new.make_bundle(place, name)
        wishes = Wishes(new.interactive, leave_stdin_open, new.remove, new.timeout)
        return place.create(name, bundle, wishes)


def _print_new(container: Container, as_json: bool) -> None:
    if not as_json:
        click.echo(container.name)
        return
    pid = container.state.pid if container.state else 0
    output.print_json({"name": container.name, "pid": pid, "bundle": container.bundle_path})


def _start_or_remove(place: Place, container: Container) -> None:
    """One that cannot be started is of no use to anybody."""
    try:
        with output.status(f"starting {container.name}"):
            place.runtime.start_container(container)
    except PyconmonError:
        place.remove(container, force=True)
        raise


@click.command()
@name_argument
@click.option("-a", "--attach", "attached", is_flag=True, help="Show its output until it ends.")
@detach_keys_option
@json_option
@pass_place
def start(context: Context, name: str, attached: bool, detach_keys: str, as_json: bool) -> int:
    """Let a created container run. With -a the exit status is the container's."""
    place = context.place
    container = place.load(name)
    if attached:
        if as_json and container.terminal:
            raise click.UsageError("--json: a terminal's output can't be kept; leave out -a")
        remove = bool((container.metadata or {}).get("remove"))
        with place.kept(container):
            return _accompany(place, container, remove, detach_keys, as_json)
    with output.status(f"starting {name}"):
        place.runtime.start_container(container)
    _print_new(container, as_json)
    return 0


def _accompany(
    place: Place,
    container: Container,
    remove: bool,
    detach_keys: str,
    as_json: bool,
    new: bool = False,
) -> int:
    """Start it attached, and stay with it to its end or until the user detaches."""
    runtime, kept = place.runtime, streams.Kept()
    init = container.init

    def send(number: int) -> None:
        if init is not None:
            init.send_signal(number)

    def begin() -> None:
        with output.status(f"starting {container.name}"):
            runtime.start_container(container)

    detached = False
    stdin = bool((container.metadata or {}).get("stdin"))
    # In a session at a terminal signals are keys, and its hang-up is no reason to end.
    session = container.terminal and stdin and os.isatty(0)
    passing = nullcontext() if session else streams.signals_passed_on(send)
    try:
        with runtime.watch_exit(container) as watch, passing:
            with runtime.attach(container) as attachment:
                try:
                    detached = not streams.converse(
                        attachment,
                        terminal=container.terminal,
                        stdin=stdin,
                        detach_keys=detach_keys,
                        write=kept.write if as_json else streams.write_through,
                        begin=begin,
                    )
                except BrokenPipeError:
                    send(signal.SIGKILL)  # as the end of a pipeline does with its beginning
            if detached:
                return _left(container, as_json)
            ended = watch.wait()
        runtime.note_exit(container, ended)
    except PyconmonError:
        remove = new
        raise
    finally:
        if remove and not detached:
            place.remove(container, force=True)
    return report_exit(container, kept.as_json() if as_json else None)


def _left(container: Container, as_json: bool) -> int:
    """The user has detached; the container goes on."""
    if as_json:
        output.print_json({"name": container.name, "result": DETACHED})
    elif os.isatty(2):
        print(
            f"\r\n{container.name} goes on: pyconmon-client attach {container.name}",
            file=sys.stderr,
        )
    return 0


def report_exit(container: Container, kept: dict[str, object] | None) -> int:
    """The exit status for a container that has ended; what stderr or --json has to say of it."""
    state = container.state
    assert state is not None
    limit = (container.metadata or {}).get("timeout")
    # The code that monitors report for one that they have ended themselves is -1.
    timed_out = bool(limit) and state.exit_code < 0
    if kept is not None:
        output.print_json(
            {
                "name": container.name,
                "exit_code": state.exit_code,
                "timed_out": timed_out,
                "oom_killed": state.oom_killed,
                **kept,
            }
        )
    elif timed_out:
        print(output.error_line(f"{container.name} ran for {limit} s, its limit"), file=sys.stderr)
    elif state.oom_killed:
        print(output.error_line(f"{container.name} ran out of memory"), file=sys.stderr)
    elif state.exit_code < 0:
        print(output.error_line(f"nobody knows {container.name}'s exit code"), file=sys.stderr)
    return state.exit_code & 0xFF


COMMANDS: list[click.Command] = [run, create, start]
