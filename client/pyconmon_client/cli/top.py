"""top: a live table of the running containers with CPU, memory and log rate.

On a terminal it fills the screen until `q` or ctrl-c; elsewhere it prints plain tables or, with
--json, one line of JSON a round.
"""

from __future__ import annotations

import dataclasses
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..container import Container
from ..errors import NotRunningError
from ..stats import Stats
from . import output
from .look import log_size
from .options import Context, json_option, pass_place
from .place import Place

_COLUMNS = ["NAME", "CPU %", "MEMORY", "LOG/S", "PIDS", "READ", "WRITTEN", "UP", "PID"]


@dataclasses.dataclass(slots=True)
class Row:
    """One container in one round; log_rate in bytes a second, None in its first."""

    container: Container
    pid: int
    stats: Stats
    log_rate: float | None


class Table:
    """The containers that run, sampled again and again."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._logs: dict[str, tuple[float, int]] = {}

    def sample(self) -> list[Row]:
        rows = []
        runtime = self._place.runtime
        for container in runtime.list():
            try:
                stats = runtime.stats(container)
            except NotRunningError:
                continue
            pid = container.init.pid if container.init else 0
            rows.append(Row(container, pid, stats, self._log_rate(container)))
        return rows

    def _log_rate(self, container: Container) -> float | None:
        now, size = time.monotonic(), log_size(container.log_path)
        before = self._logs.get(container.name)
        self._logs[container.name] = (now, size)
        if before is None or now <= before[0]:
            return None
        # A log that was rotated or removed begins anew.
        grown = size - before[1] if size >= before[1] else size
        return grown / (now - before[0])


@click.command()
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two rounds.",
)
@click.option(
    "-n",
    "--rounds",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="End after so many rounds. Default: one where there is no terminal, else without end.",
)
@json_option
@pass_place
def top(context: Context, interval: float, rounds: int | None, as_json: bool) -> int:
    """Show what the running containers use, again and again."""
    table = Table(context.place)
    live = sys.stdout.isatty() and not as_json
    if rounds is None and not live:
        rounds = 1
    try:
        if live:
            _show_live(table, interval, rounds)
        else:
            _print_rounds(table, interval, rounds or 1, as_json)
    except KeyboardInterrupt:
        pass
    return 0


def _print_rounds(table: Table, interval: float, rounds: int, as_json: bool) -> None:
    table.sample()  # CPU and log rate are differences
    for number in range(rounds):
        time.sleep(interval)
        rows = table.sample()
        if as_json:
            output.print_json_line([_as_json(row) for row in rows])
        else:
            if number:
                print()
            output.print_table(_COLUMNS, [_cells(row) for row in rows])
            sys.stdout.flush()


def _show_live(table: Table, interval: float, rounds: int | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    def screen() -> Group:
        rows = table.sample()
        title = Text(f"{len(rows)} running, every {interval:g} s, q ends", style="dim")
        return Group(title, output.rich_table(_COLUMNS, [_cells(row) for row in rows]))

    with (
        _keys() as pressed,
        Live(screen(), console=Console(), screen=True, auto_refresh=False) as live,
    ):
        while rounds is None or rounds > 1:
            if pressed(interval):
                return
            live.update(screen(), refresh=True)
            rounds = None if rounds is None else rounds - 1


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits for so many seconds, and tells whether `q` was typed meanwhile."""
    if not os.isatty(0):

        def sleep(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield sleep
        return
    before = termios.tcgetattr(0)

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0]:
                keys = os.read(0, 64)
                if not keys or b"q" in keys.lower():
                    return True
        return False

    tty.setcbreak(0, termios.TCSANOW)
    try:
        yield pressed
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def _cells(row: Row) -> list[str]:
    stats = row.stats
    rate = "-" if row.log_rate is None else output.size(row.log_rate)
    percent = "-" if stats.cpu_percent is None else f"{stats.cpu_percent:.1f}"
    state = row.container.state
    up = output.age(state.started.timestamp()) if state and state.started else "-"
    return [
        row.container.name,
        percent,
        output.size(stats.memory_rss),
        rate,
        str(stats.pids),
        output.size(stats.read_bytes),
        output.size(stats.write_bytes),
        up,
        str(row.pid),
    ]


def _as_json(row: Row) -> dict[str, Any]:
    known = dataclasses.asdict(row.stats)
    return {"name": row.container.name, "pid": row.pid, "log_rate": row.log_rate, **known}
