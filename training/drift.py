"""Drift: how far the probabilities a model gives are from those it gave when it was validated.

Both are counted on the same fixed bins of log-odds, so that a histogram kept with a version
(``metrics["score_histogram"][task]`` of its manifest) can be held against any later day.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.contract.bundle import MANIFEST
from model.contract.repository import Repository

HISTOGRAM = "score_histogram"
EDGES = tuple(np.arange(-7.0, 3.5, 0.5).tolist())
"""Of log-odds: probabilities of 0.0009 to 0.95. What is beyond has a bin at each end."""
_LEAST = 1e-4  # share of a bin: an empty one must not make the index infinite


def histogram(probability: npt.ArrayLike, count: npt.ArrayLike | None = None) -> list[int]:
    """Counts [len(EDGES) + 1] of probabilities [n]; a value on an edge belongs above it.

    ``count`` [n] says how often each occurs, by default once.
    """
    p = np.clip(np.asarray(probability, np.float64), 1e-15, 1 - 1e-15)
    bins = np.searchsorted(EDGES, np.log(p) - np.log1p(-p), side="right")
    return [int(found) for found in np.bincount(bins, count, minlength=len(EDGES) + 1)]


def psi(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index of two histograms: the sum of (q - p) ln(q / p) over their shares.

    0 when they are alike; by custom above 0.1 is worth a look and above 0.25 a shift. NaN when one
    of them counts nothing. Raises ValueError for histograms of different bins.
    """
    if len(expected) != len(found):
        raise ValueError(f"{len(expected)} bins and {len(found)} are not the same")
    if not sum(expected) or not sum(found):
        return float("nan")
    p, q = (np.maximum(np.asarray(each) / sum(each), _LEAST) for each in (expected, found))
    return float(np.sum((q - p) * np.log(q / p)))


def validated(repository: Repository, version: int, task: str) -> list[int] | None:
    """The histogram that a version was published with; None where there is none on these bins.

    The manifest is read alone: the digests of a whole bundle are for whoever serves it.
    """
    try:
        manifest = json.loads((repository.folder / str(version) / MANIFEST).read_bytes())
        found = manifest["metrics"][HISTOGRAM][task]
        counts = [int(count) for count in found]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return counts if len(counts) == len(EDGES) + 1 else None
