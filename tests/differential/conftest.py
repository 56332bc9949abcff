"""The pair of monitors that are compared, each with a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.sessions import Script, differences, play
from tests.helpers.harness import Harness


@dataclass
class Pair:
    ours: Harness
    reference: Harness

    def differences(self, script: Script) -> list[str]:
        """What is not the same; the empty list is what we want."""
        return differences(play(self.ours, script), play(self.reference, script))


@pytest.fixture
def pair(tmp_path: Path, runc: Path, pyconmon: Path, conmon: Path) -> Iterator[Pair]:
    homes = [tmp_path / name for name in ("a", "b")]  # of one length: paths are in messages
    for home in homes:
        home.mkdir()
    made = Pair(Harness(homes[0], pyconmon, runc), Harness(homes[1], conmon, runc))
    yield made
    made.ours.close()
    made.reference.close()
