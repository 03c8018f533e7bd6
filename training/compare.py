"""Two versions measured on the same impressions, with intervals.

Impressions of one user are not independent, so whole users are drawn again, with replacement (a
bootstrap over users); the same draws for both versions, so that their difference has an interval of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training import metrics

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sampling:
    """How intervals come about, and how many ``users`` with both labels GAUC needs: with fewer,
    AUC is looked at."""

    users: int = 30
    confidence: float = 0.95
    draws: int = 400
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Evidence:
    """Impressions [I] with what both versions say of them, of one task.

    ``slices`` are some of the impressions, by name. ``rate_before`` is the mean label of those
    before these; ``promised`` has, by gauc and auc, how the current version ranked when it was
    published.
    """

    user: npt.NDArray[np.int64]
    label: Floats
    candidate: Floats
    current: Floats | None = None
    slices: Mapping[str, Mask] = field(default_factory=dict)
    rate_before: float | None = None
    promised: Mapping[str, float] = field(default_factory=dict)

    def part(self, mask: Mask) -> Evidence:
        current = None if self.current is None else self.current[mask]
        return Evidence(self.user[mask], self.label[mask], self.candidate[mask], current)


@dataclass(frozen=True)
class Figure:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Comparison:
    """Both versions on the same impressions. ``ranked_by`` is gauc or auc; figures that the labels
    do not define are left out. ``change`` is the candidate's less the current one's ranking, and
    its log loss as a share of the current one's, less 1."""

    impressions: int
    users: int
    positives: int
    ranked_by: str
    candidate: Mapping[str, Figure]
    current: Mapping[str, Figure]
    change: Mapping[str, Figure]


def compare(evidence: Evidence, sampling: Sampling) -> Comparison:
    """Measure both versions, with intervals."""
    sides = {"candidate": evidence.candidate}
    if evidence.current is not None:
        sides["current"] = evidence.current
    users, row = np.unique(evidence.user, return_inverse=True)
    label = evidence.label
    area = {name: metrics.by_user(row, label, score) for name, score in sides.items()}
    counted = ~np.isnan(area["candidate"])
    ranked_by = "gauc" if int(counted.sum()) >= sampling.users else "auc"
    size = np.bincount(row).astype(np.float64)
    columns: dict[str, Floats] = {
        "size": size,
        "label": np.bincount(row, label),
        "ranked": np.where(counted, size, 0.0),
    }
    for name, score in sides.items():
        columns[f"{name} ranking"] = np.where(counted, np.nan_to_num(area[name]) * size, 0.0)
        columns[f"{name} loss"] = np.bincount(row, metrics.losses(label, score))
        columns[f"{name} sum"] = np.bincount(row, score)
    table = np.stack(list(columns.values()), 1)  # (users, sums)
    draws = np.random.default_rng(sampling.seed)
    weights = [np.ones(len(users))]
    weights += [
        np.bincount(draws.integers(0, len(users), len(users)), minlength=len(users)).astype(float)
        for _ in range(sampling.draws)
    ]
    totals = dict(zip(columns, np.stack([each @ table for each in weights], 1), strict=True))
    found: dict[str, dict[str, Floats]] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, score in sides.items():
            if ranked_by == "gauc":
                ranking = totals[f"{name} ranking"] / totals["ranked"]
            else:
                ranking = np.asarray(list(_aucs(row, label, score, weights)))
            found[name] = {
                "ranking": ranking,
                "log_loss": totals[f"{name} loss"] / totals["size"],
                "calibration": totals[f"{name} sum"] / totals["label"],
            }
        change: dict[str, Floats] = {}
        if "current" in found:
            one, two = found["candidate"], found["current"]
            change["ranking"] = one["ranking"] - two["ranking"]
            change["log_loss"] = one["log_loss"] / two["log_loss"] - 1
    figures = {name: _figures(each, sampling) for name, each in {**found, "change": change}.items()}
    return Comparison(
        impressions=len(label),
        users=len(users),
        positives=int(label.sum()),
        ranked_by=ranked_by,
        candidate=figures["candidate"],
        current=figures.get("current", {}),
        change=figures["change"],
    )


def _aucs(
    row: npt.NDArray[np.int64], label: Floats, score: Floats, weights: list[Floats]
) -> Iterator[float]:
    """AUC when each user's impressions count as often as each of the weights says."""
    order = np.argsort(score, kind="stable")
    user, positive = row[order], label[order] > 0
    tie = np.cumsum(np.diff(score[order], prepend=score[order[:1]]) != 0)
    for weight in weights:
        each = weight[user]
        ones = np.bincount(tie, each * positive)
        zeros = np.bincount(tie, each * ~positive)
        below = np.cumsum(zeros) - zeros / 2  # zeros below a score, of ties one half
        yield float(ones @ below / (ones.sum() * zeros.sum()))


def _figures(found: Mapping[str, Floats], sampling: Sampling) -> dict[str, Figure]:
    """Of values [1 + draws], the first being the figure itself."""
    share = (1 - sampling.confidence) / 2
    figures = {}
    for name, values in found.items():
        drawn = values[1:][np.isfinite(values[1:])]
        if np.isfinite(values[0]) and len(drawn):
            low, high = np.quantile(drawn, [share, 1 - share])
            figures[name] = Figure(float(values[0]), float(low), float(high))
    return figures
