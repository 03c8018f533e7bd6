"""What an entrant's test scores say, beyond the metrics of each run: by user, by length of the
history, and whether a probability is what it says.

All seeds of an entrant are looked at together: scores and labels are [seeds, I] and [I].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training import metrics
from training.comparison.paired import over_users, redrawn
from training.dataset import Dataset

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
EDGES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
BINS = 20


@dataclass(frozen=True, eq=False)
class Cells:
    """Impressions put together by user, or by user and length of the history."""

    row: Ints  # (I,) the cell of each impression
    bin: Ints  # (cells,) of `EDGES`; 0 where all lengths are one bin
    size: Floats  # (cells,) impressions
    both: npt.NDArray[np.bool_]  # (cells,) whether they have both labels

    @classmethod
    def of(cls, data: Dataset, task: int, by_length: bool) -> Cells:
        length = np.searchsorted(EDGES, data.stop - data.start, "right") - 1
        bins = length if by_length else np.zeros_like(length)
        name = data.user * len(EDGES) + bins
        cells, row = np.unique(name, return_inverse=True)
        size = np.bincount(row).astype(np.float64)
        positive = np.bincount(row, data.label[:, task])
        return cls(row, cells % len(EDGES), size, (positive > 0) & (positive < size))

    def areas(self, label: Labels, scores: Floats) -> Floats:
        """The AUC of each cell, as a mean over seeds [cells]; NaN without both labels."""
        found: Floats = np.mean([metrics.by_user(self.row, label, s) for s in scores], axis=0)
        return found


def reliability(label: Labels, scores: Floats) -> dict[str, list[float]]:
    """Mean probability and mean label of 20 bins of equal count, as means over seeds."""
    seeds = []
    for score in scores:
        parts = np.array_split(np.argsort(score, kind="stable"), min(BINS, len(score)))
        seeds.append([(score[part].mean(), label[part].mean()) for part in parts])
    predicted, observed = np.mean(seeds, axis=0).T
    return {"predicted": predicted.tolist(), "observed": observed.tolist()}


def by_history(
    cells: Cells, areas: Mapping[str, Floats], baseline: str, longest: int
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any] | None]]]:
    """The bins of history length that occur, and by label GAUC in each of them, with its
    difference to the baseline's and the interval of that; None where no user has both labels.

    A user's impressions in a bin are ranked among themselves; users of the bin are drawn again.
    No history is longer than ``longest``.
    """
    labels, bins = list(areas), []
    found: dict[str, list[dict[str, Any] | None]] = {label: [] for label in labels}
    for at in np.unique(cells.bin):
        here, inside = cells.bin == at, (cells.bin == at) & cells.both
        bins.append(
            {
                "lengths": _words(int(at), longest),
                "impressions": int(cells.size[here].sum()),
                "users": int(here.sum()),
                "users_with_both_labels": int(inside.sum()),
            }
        )
        if not inside.any():
            for label in labels:
                found[label].append(None)
            continue
        drawn = redrawn(cells.size[inside], np.stack([a[inside] for a in areas.values()], 1))
        theirs = drawn[:, labels.index(baseline)]
        for column, label in enumerate(labels):
            against = over_users(drawn[:, column], theirs).plain()
            found[label].append({"gauc": float(drawn[0, column]), "over_baseline": against})
    return bins, found


def _words(at: int, longest: int) -> str:
    """The lengths of a bin: 0, 1, 2-4, 5-9 ..."""
    low = EDGES[at]
    high = min(EDGES[at + 1] - 1, longest) if at + 1 < len(EDGES) else longest
    return str(low) if low == high else f"{low}-{high}"


def told(sets: Mapping[str, Dataset], tasks: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Counts of each split, and what its labels do not allow, in words."""
    counts, notes = {}, []
    for split, data in sets.items():
        positives = {task: int(data.label[:, at].sum()) for at, task in enumerate(tasks)}
        counts[split] = {
            "impressions": len(data),
            "users": len(np.unique(data.user)),
            "positives": positives,
        }
        if not len(data):
            notes.append(
                f"{split}: no impressions; of each run the last weights are kept, and its "
                "probabilities are not calibrated."
            )
            continue
        for task, positive in positives.items():
            if positive in (0, len(data)):
                what = {
                    "train": "nothing can be learnt of it",
                    "validation": "its probabilities are not calibrated, and log loss stands in "
                    "for its ranking",
                    "test": "AUC, GAUC, RelaImpr, NE and their tests are not defined",
                }[split]
                notes.append(
                    f"{split}, task {task}: all {len(data):,} labels are {int(positive > 0)}; "
                    f"{what}."
                )
    test = sets["test"]
    for at, task in enumerate(tasks):
        cells = Cells.of(test, at, by_length=False)
        single = int((cells.size == 1).sum())
        if left := int((~cells.both).sum()):
            notes.append(
                f"test, task {task}: {left:,} of {len(cells.size):,} users have labels of one "
                f"class only ({single:,} users have one impression); GAUC leaves them out."
            )
    return counts, notes
