"""What is compared, and where all of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.comparison.entrants import Entrant, Lineup
from training.run import Run


@dataclass(frozen=True)
class Order:
    """A comparison on the prepared logs in ``data``; ``seeds`` of each entrant, from 0 on."""

    data: Path
    out: Path
    lineup: Lineup
    seeds: int
    threads: int

    def run(self, entrant: Entrant, seed: int) -> Run:
        return Run(self.out / "runs" / entrant.folder / f"seed-{seed}")

    def every(self) -> Iterator[tuple[Entrant, int]]:
        """All runs. Seeds are the outer loop: what else the machine does falls on all alike."""
        return ((entrant, seed) for seed in range(self.seeds) for entrant in self.lineup.entrants)
