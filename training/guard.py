"""The guard: a canary whose predictions are plainly off in live traffic loses its share of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist

import numpy as np
import polars as pl

from model.contract.labels import LabelFile, Withdrawal


@dataclass(frozen=True)
class Band:
    """Where predicted / observed may lie, and what it takes to judge: so many impressions, so many
    clicks expected or seen, and an interval of that confidence that lies outside altogether.

    Clicks that are seen count too, or a version that predicts next to nothing were never judged.

    The confidence is high because it is asked again every half minute.
    """

    low: float = 0.8
    high: float = 1.25
    impressions: int = 1000
    clicks: float = 30.0
    confidence: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or not 0 < self.confidence < 1:
            raise ValueError("a band needs 0 < low < high and a confidence between 0 and 1")


@dataclass(frozen=True)
class Verdict:
    """``ratio`` is predicted / observed with its interval; ``broken`` None: too little to judge."""

    impressions: int
    expected: float
    clicks: int
    ratio: float
    low: float
    high: float
    broken: bool | None

    @property
    def said(self) -> str:
        """In words, for who looks at the labels later."""
        interval = f"{self.low:.2f} to {self.high:.2f}"
        return f"predicted/observed {self.ratio:.2f} ({interval}) on {self.impressions} impressions"


def guard(labels: LabelFile, rows: pl.DataFrame, band: Band) -> tuple[int, Verdict] | None:
    """Set the canary's share to 0 if its joined impressions among ``rows`` (`quality.JOINED`, of
    one task), from since the labels last changed for it, break the band; then its version and the
    verdict.

    Raises `LabelError` and OSError when the labels can't be read or changed.
    """
    found = labels.read()
    if found.canary is None or not found.canary_share:
        return None
    own = (pl.col("model") == labels.repository.name) & (pl.col("version") == found.canary)
    verdict = judge(rows.filter(own & (pl.col("received") >= _ms(found.canary_since))), band)
    if not verdict.broken:
        return None
    outside = f"outside {band.low:g} to {band.high:g}"
    labels.withdraw(Withdrawal(found.canary, found.canary_since, f"{verdict.said}, {outside}"))
    return found.canary, verdict


def judge(rows: pl.DataFrame, band: Band) -> Verdict:
    """Hold a version's joined impressions (`quality.JOINED`, one task) to a band.

    The clicks of one user go together, so the variance of their number is that of the sums of
    label - probability over users, and at least that of a Poisson number.
    """
    off = pl.col("label") - pl.col("probability")
    by_user = rows.group_by("user_id").agg(off.sum().alias("off"))["off"].to_numpy()
    expected, clicks = float(rows["probability"].sum()), int(rows["label"].sum())
    spread = math.sqrt(max(float(np.sum(by_user**2)), clicks, 1.0))
    reach = NormalDist().inv_cdf((1 + band.confidence) / 2) * spread
    low, high = expected / (clicks + reach), _over(expected, clicks - reach)
    enough = len(rows) >= band.impressions and max(expected, clicks) >= band.clicks
    outside = low > band.high or high < band.low
    ratio = _over(expected, clicks)
    return Verdict(len(rows), expected, clicks, ratio, low, high, outside if enough else None)


def _ms(instant: str) -> float:
    """ISO 8601 as ms since 1970; of none the beginning of time."""
    return datetime.fromisoformat(instant).timestamp() * 1000 if instant else -math.inf


def _over(expected: float, clicks: float) -> float:
    return expected / clicks if clicks > 0 else float("inf")
