"""What every case gets: the monitors, the workspace, the results, and how many rounds to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.results import Results
from benchmarks.workspace import Workspace


@dataclass
class Bench:
    """`monitors` maps names to paths: `conmon` first, any other C build, `pyconmon` last."""

    monitors: dict[str, str]
    space: Workspace
    quick: bool = False
    tiny: bool = False  # one round of next to nothing: proves that the harness works
    results: Results = field(default_factory=Results)
    say: Callable[[str], None] = lambda text: None

    def turns(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Each monitor's name and path, in turn, `rounds` times, the first one changing."""
        order = list(self.monitors.items())
        for number in range(1 if self.tiny else rounds):
            yield from order if number % 2 == 0 else reversed(order)

    def pick(self, full: int, quick: int, tiny: int) -> int:
        """The amount for the kind of run that this is."""
        return tiny if self.tiny else quick if self.quick else full
