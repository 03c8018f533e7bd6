"""A tally: what metrics and calibration need to know of impressions that come part by part.

Up to `EXACT` impressions are kept, and all figures are those of `training.metrics`. Of more, each
task keeps fixed bins of the logit, 2^-12 wide from -16 to 16: how many impressions a bin has, how
many labels of 1, and their mean logit, which stands for each of them.

- GAUC is exact, since a user's impressions come in one part.
- AUC counts pairs within a bin as ties. It is off by no more than half the share of such pairs with
  unlike labels, which is told as ``auc_within``.
- Log loss, calibration and Platt's fit see each logit moved within its bin, by some 1e-4 to either
  side: with 60,000 impressions they are off by 1e-7, with 5,000,000 by less than 1e-8.
- ECE has bins of equal count only as far as the bins of the logit allow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training import calibrate, metrics
from training.calibrate import Calibration, sigmoid
from training.drift import histogram

EXACT = 4_000_000
WIDTH, RANGE = 2.0**-12, 16.0
BINS = int(2 * RANGE / WIDTH) + 1

Array = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass
class _Binned:
    """One task's bins, and the sums of its GAUC."""

    count: Floats = field(default_factory=lambda: np.zeros(BINS))
    ones: Floats = field(default_factory=lambda: np.zeros(BINS))
    logits: Floats = field(default_factory=lambda: np.zeros(BINS))
    area: float = 0.0
    weight: float = 0.0

    def add(self, user: Ints, label: Array, logit: Array) -> None:
        at = np.rint((np.clip(logit, -RANGE, RANGE) + RANGE) / WIDTH).astype(np.int64)
        self.count += np.bincount(at, minlength=BINS)
        self.ones += np.bincount(at, label, BINS)
        self.logits += np.bincount(at, logit, BINS)
        _, row, size = np.unique(user, return_inverse=True, return_counts=True)
        area = metrics.by_user(row.astype(np.int64), label, logit)
        counted = ~np.isnan(area)
        self.area += float(area[counted] @ size[counted])
        self.weight += float(size[counted].sum())

    def held(self) -> tuple[Floats, Floats, Floats]:
        """Mean logit, labels of 1 and impressions of each bin that has any, by rising logit."""
        some = self.count > 0
        count = self.count[some]
        return self.logits[some] / count, self.ones[some], count

    def measure(self, slope: float, offset: float) -> dict[str, float]:
        """Every metric by its name, as `metrics.all_metrics`; the logits are calibrated first."""
        logit, ones, count = self.held()
        probability = sigmoid(logit * slope + offset)
        total, positive = float(count.sum()), float(ones.sum())
        found = {"calibration": float(count @ probability) / positive} if positive else {}
        p = np.clip(probability, 1e-15, 1 - 1e-15)
        zeros = count - ones
        loss = -float(ones @ np.log(p) + zeros @ np.log1p(-p)) / total
        if 0 < positive < total:
            pairs, below = positive * (total - positive), np.cumsum(zeros) - zeros / 2
            rate = positive / total
            found["auc"] = float(ones @ below) / pairs
            found["auc_within"] = float(ones @ zeros) / 2 / pairs
            entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
            found["normalised_entropy"] = loss / float(entropy)
        if self.weight:
            found["gauc"] = self.area / self.weight
        group = ((np.cumsum(count) - count / 2) * 20 / total).astype(np.int64)
        off = np.bincount(group, count * probability) - np.bincount(group, ones)
        found |= {"log_loss": loss, "ece": float(np.abs(off).sum() / total), "impressions": total}
        order = ("auc", "auc_within", "gauc", "log_loss", "normalised_entropy", "ece")
        names = (*order, "calibration", "impressions")
        return {name: found[name] for name in names if name in found}


class Tally:
    """Impressions of some tasks; ``finite`` says whether all logits were."""

    def __init__(self, tasks: int, exact: int = EXACT) -> None:
        self.tasks, self.exact, self.finite = tasks, exact, True
        self._kept: list[tuple[Ints, Array, Array]] = []
        self._impressions = self._users = 0
        self._binned: list[_Binned] = []

    def add(self, user: Ints, label: Array, logit: Array) -> None:
        """Impressions [n] of a part: user [n], label and logit [n, tasks].

        Users of different parts are different ones, whatever their numbers.
        """
        self.finite &= bool(np.isfinite(logit).all())
        self._kept.append((user + self._users, label, logit))
        self._users += int(user.max(initial=-1)) + 1
        self._impressions += len(user)
        if self._impressions > self.exact and self.finite:
            self._binned = self._binned or [_Binned() for _ in range(self.tasks)]
            for one, labels, logits in self._kept:
                for task, binned in enumerate(self._binned):
                    binned.add(one, labels[:, task], logits[:, task])
            self._kept.clear()

    def calibrate(self, negatives_kept: float = 1.0) -> Calibration:
        """As `training.calibrate.fit`."""
        if not self._binned:
            _, label, logit = self._all()
            return calibrate.fit(logit, label, negatives_kept)
        fitted = [calibrate.platt(*binned.held()) for binned in self._binned]
        return Calibration.of(fitted, negatives_kept)

    def measure(self, by: Calibration) -> list[dict[str, float]]:
        """Of each task every metric by its name, of calibrated logits."""
        if not self._binned:
            user, label, logit = self._all()
            p = sigmoid(by.apply(logit))
            return [metrics.all_metrics(user, label[:, at], p[:, at]) for at in range(self.tasks)]
        pairs = zip(self._binned, by.slope, by.offset, strict=True)
        return [binned.measure(slope, offset) for binned, slope, offset in pairs]

    def histograms(self, by: Calibration) -> list[list[int]]:
        """Of each task the histogram of its probabilities (`training.drift`)."""
        if not self._binned:
            p = sigmoid(by.apply(self._all()[2]))
            return [histogram(p[:, at]) for at in range(self.tasks)]
        found = []
        for binned, slope, offset in zip(self._binned, by.slope, by.offset, strict=True):
            logit, _, count = binned.held()
            found.append(histogram(sigmoid(logit * slope + offset), count))
        return found

    def _all(self) -> tuple[Ints, Array, Array]:
        if not self._kept:
            return np.zeros(0, np.int64), *2 * (np.zeros((0, self.tasks), np.float32),)
        if len(self._kept) > 1:
            user, label, logit = zip(*self._kept, strict=True)
            self._kept = [(np.concatenate(user), np.concatenate(label), np.concatenate(logit))]
        return self._kept[0]
