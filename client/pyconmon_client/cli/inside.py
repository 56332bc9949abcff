"""Commands that look into a container or work in it: exec, attach, logs."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any

import click

from ..container import Container
from ..errors import ContainerStateError, InvalidArgumentError
from ..exec_process import ExecProcess
from ..process_spec import ExecSettings
from ..records import Line, parse_since
from ..terminal import DETACHED
from . import background, output, streams
from .life import detach_keys_option, report_exit
from .options import Context, json_option, name_argument, parse_environment, pass_place

_WORDS = {"allow_interspersed_args": False}


@click.command("exec", context_settings=_WORDS)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it; its output is dropped.")
@click.option("-u", "--user", metavar="UID[:GID]", help="Who executes it, in numbers.")
@click.option("-w", "--workdir", metavar="DIR", help="Its directory.")
@click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="An environment variable more; without value the caller's own. Repeatable.",
)
@json_option
@name_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@pass_place
def execute(
    context: Context,
    interactive: bool,
    tty: bool,
    detach: bool,
    user: str | None,
    workdir: str | None,
    env: tuple[str, ...],
    as_json: bool,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Execute a command in a running container. The exit status is the command's.

    Signals are passed on to it, a second one kills it. With a terminal, keys are.
    """
    place = context.place
    container = place.load(name)
    if user is not None and not all(part.isdigit() for part in user.split(":", 1)):
        raise InvalidArgumentError(f"--user {user}: give numbers, UID or UID:GID")
    words = parse_environment(env)
    if tty and not any(word.startswith("TERM=") for word in words):
        words.append(f"TERM={os.environ.get('TERM') or 'xterm'}")
    if detach:
        settings = ExecSettings(words or None, workdir, user)
        with output.status(f"starting {command[0]} in {name}"):
            pid = background.execute(place, container, command, settings, terminal=tty)
        if as_json:
            output.print_json({"name": name, "pid": pid})
        else:
            click.echo(str(pid))
        return 0
    if tty and as_json:
        raise click.UsageError("--json: a terminal's output can't be kept; leave out -t")
    at_terminal = tty and interactive and os.isatty(0)
    columns, rows = os.get_terminal_size(0) if at_terminal else (0, 0)
    with output.status(f"starting {command[0]} in {name}"):
        process = place.runtime.exec(
            container,
            command,
            stdin=interactive,
            terminal=tty,
            env=words or None,
            cwd=workdir,
            user=user,
            size=(rows, columns) if at_terminal else None,
        )
    with process:
        return _stay_with(process, container, interactive, as_json)


def _stay_with(
    process: ExecProcess,
    container: Container,
    stdin: bool,
    as_json: bool,
) -> int:
    kept = streams.Kept()
    write = kept.write if as_json else streams.write_through
    if process.attachment is not None:
        # It ends with us: there is nobody else who could attach to it.
        streams.converse(process.attachment, terminal=True, stdin=stdin, detach_keys="")
        return process.wait()
    with streams.signals_passed_on(process.send_signal):
        _see_started(process)
        if process.stdin is not None:
            streams.feed(process.stdin.write, process.stdin.close)
        try:
            streams.copy_output(process.output(), write)
        except BrokenPipeError:
            process.kill()
        code = process.wait()
    if as_json:
        output.print_json({"name": container.name, "exit_code": code, **kept.as_json()})
    return code


def _see_started(process: ExecProcess) -> None:
    """Until then it is the runtime that prints: why it cannot start it, which is our error's text."""
    poller = select.poll()
    poller.register(process.fileno(), select.POLLIN)
    while not process.pid and process.poll() is None:
        if not poller.poll():
            continue
        if process.poll() is None and not process.pid:
            process.wait()


@click.command()
@name_argument
@detach_keys_option
@click.option("--no-stdin", is_flag=True, help="Look on only.")
@json_option
@pass_place
def attach(context: Context, name: str, detach_keys: str, no_stdin: bool, as_json: bool) -> int:
    """Connect to a running container's streams.

    The exit status is the container's, 0 after detaching. Without a terminal signals end the
    command, and the container goes on.
    """
    runtime = context.place.runtime
    container = context.place.load(name)
    metadata: dict[str, Any] = container.metadata or {}
    kept = streams.Kept()
    if as_json and container.terminal:
        raise click.UsageError("--json: a terminal's output can't be kept")
    with context.place.kept(container), runtime.watch_exit(container) as watch:
        with runtime.attach(container) as attachment:
            ended = streams.converse(
                attachment,
                terminal=container.terminal,
                stdin=bool(metadata.get("stdin")) and not no_stdin,
                detach_keys=detach_keys,
                write=kept.write if as_json else streams.write_through,
                redraw=True,
            )
        if not ended:
            if as_json:
                output.print_json({"name": name, "result": DETACHED})
            elif os.isatty(2):
                print(f"\r\n{name} goes on", file=sys.stderr)
            return 0
        runtime.note_exit(container, watch.wait())
    return report_exit(container, kept.as_json() if as_json else None)


@click.command()
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, to its end.")
@click.option(
    "--tail", type=click.IntRange(min=0), metavar="LINES", help="Only so many last lines."
)
@click.option(
    "--since",
    metavar="TIME",
    help="Only from then on: 2026-01-31T12:00:00Z, or how long ago (1h30m).",
)
@click.option("-t", "--timestamps", is_flag=True, help="The time before each line.")
@json_option
@pass_place
def logs(
    context: Context,
    name: str,
    follow: bool,
    tail: int | None,
    since: str | None,
    timestamps: bool,
    as_json: bool,
) -> int:
    """Show what a container has printed, its stdout and stderr each on ours."""
    place = context.place
    container = place.load(name)
    if not os.path.exists(container.log_path) and not follow:
        raise ContainerStateError(f"container {name} has no log: {container.log_path} is gone")
    parse_since(since, time.time())
    reader = place.runtime.logs(
        container,
        follow=follow,
        tail=tail,
        since=since,
        timestamps=timestamps and not as_json,
        skip_bad=True,
    )
    try:
        with reader:
            for line in reader:
                _show(line, as_json)
    except KeyboardInterrupt:
        return 130
    return 0


def _show(line: Line, as_json: bool) -> None:
    if not as_json:
        file = sys.stderr.buffer if line.stream == "stderr" else sys.stdout.buffer
        file.write(line.data)
        file.flush()
        return
    text = line.data.decode("utf-8", "replace").removesuffix("\n")
    output.print_json_line({"time": line.timestamp, "stream": line.stream, "line": text})


COMMANDS: list[click.Command] = [execute, attach, logs]
