"""Statistics of a comparison: spread over seeds, and two paired tests that ask different things.

Over seeds: would another seed turn the order round, on these very impressions? Over users: would
other users? Neither speaks of another data set, another day or other settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95
DRAWS = 1000


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval; p is None where the test has none."""

    difference: float
    low: float
    high: float
    p: float | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The values themselves, their mean and sample standard deviation (None of a single one)."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": list(map(float, values))}


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Difference | None:
    """The paired t-test, two-sided (Student 1908): of n differences d between runs of one seed,
    ``t = mean(d) / (sd(d) / sqrt(n))`` with n - 1 degrees of freedom, and the t interval.

    None with fewer than two seeds. No p where all differences are alike, up to rounding.
    """
    from scipy.special import stdtr, stdtrit

    d = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    n = len(d)
    if n < 2:
        return None
    mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(n))
    if error <= 1e-12 * max(float(np.abs(ours).max()), float(np.abs(theirs).max())):
        return Difference(mean, mean, mean)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    return Difference(mean, mean - half, mean + half, float(2 * stdtr(n - 1, -abs(mean) / error)))


def redrawn(size: Floats, area: Floats, draws: int = DRAWS, seed: int = 0) -> Floats:
    """GAUC [1 + draws, models] of users drawn again with replacement, the same for all models.

    size [U] impressions and area [U, models] AUC of each user with both labels; the first row is
    of the users as they are. (Efron & Tibshirani, An Introduction to the Bootstrap, 1993: the unit
    that is drawn is the independent one, here a user.)
    """
    draw, users = np.random.default_rng(seed), len(size)
    table = np.column_stack([size[:, None] * area, size])  # (U, models + 1)
    rows = [table.sum(0)]
    for _ in range(draws):
        times = np.bincount(draw.integers(0, users, users), minlength=users)
        rows.append(times @ table)
    sums = np.stack(rows)
    found: Floats = sums[:, :-1] / sums[:, -1:]
    return found


def over_users(ours: Floats, theirs: Floats) -> Difference:
    """The difference of two columns of `redrawn` and its percentile interval (the same book,
    chapter 13)."""
    d = ours - theirs
    low, high = np.quantile(d[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(float(d[0]), float(low), float(high))
