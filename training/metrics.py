"""Metrics of click probabilities, over a whole test set at once, never averaged over batches.

label 0/1 [n], score or probability [n], user [n]; ties count half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Array = npt.NDArray[Any]


def _rank_auc(group: npt.NDArray[np.int64], label: Array, score: Array) -> tuple[Floats, Floats]:
    """AUC of each group 0..G-1 (NaN with one class only) and the group's size, by mid-ranks."""
    order = np.lexsort((score, group))
    g, s = group[order], score[order]
    y = np.asarray(label)[order].astype(np.float64)
    n = len(g)
    fresh = np.ones(n, bool)
    fresh[1:] = (g[1:] != g[:-1]) | (s[1:] != s[:-1])
    tie = np.cumsum(fresh) - 1
    begin = np.flatnonzero(fresh)
    end = np.append(begin[1:], n)
    rank = ((begin + end + 1) / 2)[tie]  # 1-based mid-rank over all rows
    size = np.bincount(g).astype(np.float64)
    first = np.cumsum(size) - size
    positive = np.bincount(g, weights=y)
    ranks = np.bincount(g, weights=y * rank) - positive * first
    negative = size - positive
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (ranks - positive * (positive + 1) / 2) / (positive * negative)
    return np.where(positive * negative > 0, area, np.nan), size


def auc(label: Array, score: Array) -> float:
    """Area under the ROC curve; NaN when there is one class only."""
    if not len(label):
        return float("nan")
    return float(_rank_auc(np.zeros(len(label), np.int64), label, score)[0][0])


def gauc(user: Array, label: Array, score: Array) -> float:
    """AUC per user weighted by the user's impressions; users with one class are left out.

    (Paper section 6.3, equation 10.) NaN when no user has both classes.
    """
    if not len(label):
        return float("nan")
    _, group = np.unique(user, return_inverse=True)
    area, size = _rank_auc(group.astype(np.int64), label, score)
    size = size[: len(area)]
    counted = ~np.isnan(area)
    return (
        float(np.average(area[counted], weights=size[counted])) if counted.any() else float("nan")
    )


def by_user(row: npt.NDArray[np.int64], label: Array, score: Array) -> Floats:
    """AUC of each user 0..U-1, by the user of each impression; NaN without both labels."""
    return _rank_auc(row, label, score)[0]


def rela_impr(measured: float, base: float) -> float:
    """Improvement over a base model (paper section 6.3, equation 11): 0 is none, 0.1 is 10 %."""
    return (measured - 0.5) / (base - 0.5) - 1


def improvement(measured: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """RelaImpr of every AUC and GAUC (of each task) that both have, by their names.

    Left out where the base model ranks as chance does or worse, which nothing can be measured by.
    """
    names = [name for name in measured if name.rpartition(".")[2] in ("auc", "gauc")]
    return {
        name: rela_impr(measured[name], base[name]) for name in names if base.get(name, 0.5) > 0.5
    }


def of_task(name: str, task: str, tasks: Sequence[str]) -> str:
    """What a metric is called: plain of the first of the tasks, else TASK.metric; RelaImpr of it
    is rela_impr.TASK.metric."""
    if task == tasks[0]:
        return name
    first, dot, last = name.rpartition(".")
    return f"{first}{dot}{task}.{last}"


def log_loss(label: Array, probability: Array) -> float:
    """Mean negative log likelihood, in nats; probabilities are kept within 1e-15 of 0 and 1."""
    return float(losses(label, probability).mean())


def losses(label: Array, probability: Array) -> npt.NDArray[np.float64]:
    """The log loss of each [n]."""
    p = np.clip(np.asarray(probability, np.float64), 1e-15, 1 - 1e-15)
    y = np.asarray(label, np.float64)
    found: npt.NDArray[np.float64] = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return found


def normalised_entropy(label: Array, probability: Array) -> float:
    """Log loss over that of always predicting the mean label (He et al., ADKDD 2014).

    NaN when there is one class only.
    """
    y = np.asarray(label, np.float64)
    if y.min() == y.max():
        return float("nan")
    return log_loss(y, probability) / log_loss(y, np.full(len(y), y.mean()))


def ece(label: Array, probability: Array, bins: int = 20) -> float:
    """Expected calibration error over ``bins`` bins of equal count."""
    order = np.argsort(probability, kind="stable")
    y = np.asarray(label, np.float64)[order]
    p = np.asarray(probability, np.float64)[order]
    parts = np.array_split(np.arange(len(p)), min(bins, len(p)))
    return float(sum(abs(p[part].mean() - y[part].mean()) * len(part) for part in parts) / len(p))


def all_metrics(user: Array, label: Array, probability: Array) -> dict[str, float]:
    """Every metric of one task by its name; what these labels do not define is left out."""
    mean = float(np.mean(label))
    found = {
        "auc": auc(label, probability),
        "gauc": gauc(user, label, probability),
        "log_loss": log_loss(label, probability),
        "normalised_entropy": normalised_entropy(label, probability),
        "ece": ece(label, probability),
        "calibration": float(np.mean(probability)) / mean if mean else float("nan"),
        "impressions": float(len(label)),
    }
    return {name: value for name, value in found.items() if not np.isnan(value)}
