"""Two versions measured on the same impressions, with intervals.

Impressions of one user are not independent, so whole users are drawn again, with replacement (a
bootstrap over users); the same draws for both versions, so that their difference has an interval of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    scores = {"candidate": evidence.candidate}
    if evidence.current is not None:
        scores["current"] = evidence.current
    users, row = np.unique(evidence.user, return_inverse=True)
    label, size = evidence.label, _sums(row, np.ones(len(row)))
    both = ~np.isnan(metrics.by_user(row, label, evidence.candidate))
    ranked_by = "gauc" if int(both.sum()) >= sampling.users else "auc"
    weights = list(_draws(len(users), sampling))  # of each user, 1 + draws times
    found: dict[str, dict[str, Floats]] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, score in scores.items():
            area = np.where(both, metrics.by_user(row, label, score), 0)
            sums = [area * size, both * size, _sums(row, metrics.losses(label, score)), size]
            sums += [_sums(row, score), _sums(row, label)]
            table = np.stack(sums, 1)  # (users, 6)
            drawn = np.stack([each @ table for each in weights], 1)  # (6, 1 + draws)
            gauc = drawn[0] / drawn[1]
            found[name] = {
                "ranking": gauc if ranked_by == "gauc" else _aucs(row, label, score, weights),
                "log_loss": drawn[2] / drawn[3],
                "calibration": drawn[4] / drawn[5],
            }
        change: dict[str, Floats] = {}
        if "current" in found:
            one, two = found["candidate"], found["current"]
            change["ranking"] = one["ranking"] - two["ranking"]
            change["log_loss"] = one["log_loss"] / two["log_loss"] - 1
    return Comparison(
        impressions=len(label),
        users=len(users),
        positives=int(label.sum()),
        ranked_by=ranked_by,
        candidate=_figures(found["candidate"], sampling),
        current=_figures(found.get("current", {}), sampling),
        change=_figures(change, sampling),
    )


def _sums(row: npt.NDArray[np.int64], values: Floats) -> Floats:
    """The sum over the impressions of each user."""
    found: Floats = np.bincount(row, values).astype(np.float64)
    return found


def _draws(users: int, sampling: Sampling) -> Iterator[Floats]:
    """How often each user counts: once, then as drawn."""
    yield np.ones(users)
    draw = np.random.default_rng(sampling.seed)
    for _ in range(sampling.draws):
        yield np.bincount(draw.integers(0, users, users), minlength=users).astype(np.float64)


def _aucs(
    row: npt.NDArray[np.int64], label: Floats, score: Floats, weights: Sequence[Floats]
) -> Floats:
    """AUC when each user's impressions count as often as each of the weights says."""
    order = np.argsort(score, kind="stable")
    user, positive = row[order], (label[order] > 0).astype(np.float64)
    tied = np.append(0, np.flatnonzero(np.diff(score[order])) + 1)  # where each score begins
    found = []
    for weight in weights:
        each = weight[user]
        ones = np.add.reduceat(each * positive, tied)
        zeros = np.add.reduceat(each, tied) - ones
        below = np.cumsum(zeros) - zeros / 2  # zeros below a score, of ties one half
        found.append(float(ones @ below / (ones.sum() * zeros.sum())))
    return np.asarray(found)


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
