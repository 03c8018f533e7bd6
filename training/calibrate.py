"""Calibration: one slope and offset per task on the logit, fitted on validation data.

Platt scaling, ``logit' = slope * logit + offset``, which keeps every ranking and folds into the
exported graph; and the correction for negatives that were down-sampled when the logs were made
(He et al., ADKDD 2014, section 6.3): ``p' = p / (p + (1 - p) / kept)``, that is
``offset += log(kept)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """slope and offset, one of each per task."""

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def identity(cls, tasks: int) -> Calibration:
        return cls((1.0,) * tasks, (0.0,) * tasks)

    @classmethod
    def of(cls, fitted: Sequence[tuple[float, float]], negatives_kept: float) -> Calibration:
        """From slope and offset of each task (`platt`), where logs kept a share of negatives.

        Raises ValueError.
        """
        if not 0 < negatives_kept <= 1:
            raise ValueError("negatives_kept: expected a share in (0, 1]")
        correction = math.log(negatives_kept)
        return cls(
            tuple(slope for slope, _ in fitted), tuple(offset + correction for _, offset in fitted)
        )

    def apply(self, logit: Array) -> npt.NDArray[np.float64]:
        """Calibrated logits [n, tasks]."""
        return np.asarray(logit, np.float64) * self.slope + self.offset


def fit(logit: Array, label: Array, negatives_kept: float = 1.0) -> Calibration:
    """Platt's slope and offset for each task of logit, label [n, tasks].

    ``negatives_kept`` is the share of negatives that the logs kept, in (0, 1]. A task whose labels
    are all alike is left as it is. Raises ValueError.
    """
    fitted = [platt(logit[:, task], label[:, task]) for task in range(logit.shape[1])]
    return Calibration.of(fitted, negatives_kept)


def platt(logit: Array, ones: Array, count: Array | float = 1.0) -> tuple[float, float]:
    """Slope and offset by Newton's method on the two-parameter log loss, which is convex.

    logit [n]; of the ``count`` impressions that each stands for, ``ones`` have the label 1. Logits
    that rank worse than chance keep their slope, since a calibration may not turn a ranking round:
    only the offset is fitted then.
    """
    z, y = np.asarray(logit, np.float64), np.asarray(ones, np.float64)
    n = np.broadcast_to(np.asarray(count, np.float64), y.shape)
    if not 0 < y.sum() < n.sum():
        return 1.0, 0.0
    x = np.stack([z, np.ones_like(z)])  # (2, n)
    slope, offset = _newton(x, y, n)
    return (slope, offset) if slope > 0 else (1.0, _newton(x[1:], y, n, z)[0])


def _newton(x: Array, y: Array, n: Array, given: Array | float = 0.0) -> list[float]:
    """The weights of the rows of x (k, m), added to a ``given`` logit, with the least log loss."""
    at = np.eye(len(x))[0] if len(x) > 1 else np.zeros(1)
    for _ in range(50):
        p = sigmoid(given + at @ x)
        gradient = x @ (n * p - y)
        curvature = (x * (n * np.maximum(p * (1 - p), 1e-12))) @ x.T + 1e-9 * np.eye(len(x))
        step = np.linalg.solve(curvature, gradient)
        at -= step * min(1.0, 2 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    found: list[float] = at.tolist()
    return found


def sigmoid(logit: Array) -> npt.NDArray[np.float64]:
    """Probabilities of logits, in float64, without overflow."""
    z = np.asarray(logit, np.float64)
    tail = np.exp(-np.abs(z))
    share: npt.NDArray[np.float64] = np.where(z >= 0, 1, tail) / (1 + tail)
    return share
