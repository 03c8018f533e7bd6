"""Drift: how far the scores of now are spread otherwise than those of the validation set.

Scores are counted in fixed bins of log odds, half a unit wide, so that histograms of any two
models and times can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

EDGES = np.arange(-10.0, 10.5, 0.5)
"""Log odds [41] between the bins; the first and the last of the 42 bins are open."""


def histogram(probability: npt.NDArray[np.floating[Any]]) -> list[int]:
    """How many of the probabilities [n] fall into each bin, which has its lower edge within."""
    with np.errstate(divide="ignore"):
        odds = np.log(probability) - np.log1p(-np.asarray(probability, np.float64))
    at = np.searchsorted(EDGES, odds, side="right")
    found: list[int] = np.bincount(at, minlength=len(EDGES) + 1).tolist()
    return found


def psi(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index of two histograms: 0 is none, above 0.2 is usually called much.

    Each bin counts half a score more than it has, so that empty ones are no infinity. NaN when
    either is empty.
    """
    if not sum(expected) or not sum(found):
        return float("nan")
    one, two = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, found))
    one, two = one / one.sum(), two / two.sum()
    return float(np.sum((two - one) * np.log(two / one)))
