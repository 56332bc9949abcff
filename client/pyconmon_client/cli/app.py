"""The group of commands, what holds for all of them, and errors as one line and an exit status."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..errors import PyconmonError
from . import ending, inside, life, look, output
from .options import Context
from .place import default_state_dir
from .top import top

_ERROR = 125
_CANNOT_EXECUTE = 126
_NOT_FOUND = 127
_INTERRUPTED = 130
_BROKEN_PIPE = 141

_MISSING = re.compile(r"\bexec(utable)?\b.*(not found|no such file)", re.IGNORECASE | re.DOTALL)
_REFUSED = re.compile(
    r"\bexec(utable)?\b.*(permission denied|is a directory)", re.IGNORECASE | re.DOTALL
)


class _NobodyReads(Exception):
    """A BrokenPipeError, which click would make an exit status 1."""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _NobodyReads from error


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    envvar="PYCONMON_STATE_DIR",
    help="Where records, bundles and logs are kept. Default: /run/pyconmon, for users other than "
    "root a folder in XDG_RUNTIME_DIR.",
)
@click.option(
    "--runtime",
    metavar="PATH",
    envvar="PYCONMON_RUNTIME",
    help="The OCI runtime. Default: runc, or else crun.",
)
@click.option(
    "--monitor",
    metavar="PATH",
    envvar="PYCONMON_MONITOR",
    help="The container monitor. Default: pyconmon, or else conmon.",
)
@click.option(
    "--cgroup-manager",
    type=click.Choice(["cgroupfs", "systemd"]),
    default="cgroupfs",
    show_default=True,
    help="Who makes the containers' cgroups.",
)
@click.pass_context
def cli(
    context: click.Context,
    state_dir: str | None,
    runtime: str | None,
    monitor: str | None,
    cgroup_manager: str,
) -> None:
    """Run and watch containers with an OCI runtime and a container monitor, without an engine."""
    context.obj = Context(state_dir or default_state_dir, runtime, monitor, cgroup_manager)


for _command in (*life.COMMANDS, *ending.COMMANDS, *inside.COMMANDS, *look.COMMANDS, top):
    cli.add_command(_command)


def run(argv: Sequence[str] | None = None) -> int:
    """The command's exit status; every error is one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = cli.main(words, prog_name="pyconmon-client", standalone_mode=False)
        # Here, not at the interpreter's end: there nobody could be told that it failed.
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _ERROR
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "pyconmon-client"
        return _say(f"{error.format_message().rstrip('.')} (see {path} --help)", _ERROR, words)
    except click.ClickException as error:
        return _say(error.format_message(), _ERROR, words)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except (_NobodyReads, BrokenPipeError):
        # Nobody reads our output any more; the flush at the end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE
    except (PyconmonError, OSError) as error:
        text = output.one_line(error)
        return _say(text, _status_of(text), words)


def _status_of(text: str) -> int:
    """What engines and shells say for a command that is not there, or is none."""
    if _MISSING.search(text):
        return _NOT_FOUND
    return _CANNOT_EXECUTE if _REFUSED.search(text) else _ERROR


def _say(text: str, status: int, words: Sequence[str]) -> int:
    ours = words[: words.index("--")] if "--" in words else words
    if "--json" in ours:
        print(json.dumps({"error": text, "status": status}), file=sys.stderr)
    else:
        print(output.error_line(text), file=sys.stderr)
    return status
