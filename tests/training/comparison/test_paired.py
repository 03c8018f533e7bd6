"""Statistics against independent computations: scipy's own test, and users repeated one by one."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training import metrics
from training.comparison.paired import over_seeds, over_users, redrawn, spread

FIGURE = st.floats(0.4, 0.9)


@given(st.lists(st.tuples(FIGURE, FIGURE), min_size=2, max_size=8))
def test_the_test_over_seeds_is_scipy_s(pairs: list[tuple[float, float]]) -> None:
    """Difference, p and interval; no p where the differences are alike."""
    ours, theirs = zip(*pairs, strict=True)
    found = over_seeds(ours, theirs)
    assert found is not None
    differences = [a - b for a, b in pairs]
    assert found.difference == pytest.approx(statistics.fmean(differences), abs=1e-12)
    if statistics.stdev(differences) < 1e-9:
        assert found.p is None or found.high - found.low < 1e-7
        return
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)


def test_one_seed_tells_nothing_over_seeds() -> None:
    """No test, and no spread."""
    assert over_seeds([0.7], [0.6]) is None
    assert spread([0.7]) == {"mean": 0.7, "sd": None, "values": [0.7]}


def test_differences_that_are_alike_have_no_p() -> None:
    """Rounding makes no certainty of them."""
    found = over_seeds([0.7, 0.8, 0.65], [0.6, 0.7, 0.55])
    assert found is not None
    assert found.p is None
    assert found.low == found.high == pytest.approx(0.1)


def test_the_spread_is_that_of_a_sample() -> None:
    """n - 1 in the denominator."""
    values = [0.5, 0.6, 0.8]
    found = spread(values)
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["sd"] == pytest.approx(statistics.stdev(values))


def test_users_drawn_again_are_users_repeated() -> None:
    """GAUC of each draw is that of impressions with each drawn user in them as often as drawn."""
    draw = np.random.default_rng(1)
    user = np.repeat(np.arange(6), draw.integers(4, 9, 6))
    label = np.tile([0, 1], len(user))[: len(user)]
    scores = draw.random((2, len(user)))
    size = np.bincount(user).astype(float)
    area = np.stack([metrics.by_user(user, label, score) for score in scores], 1)
    found = redrawn(size, area, draws=5, seed=3)
    again = np.random.default_rng(3)
    rows = [np.arange(6), *(again.integers(0, 6, 6) for _ in range(5))]
    for drawn, gauc in zip(rows, found, strict=True):
        parts = [np.flatnonzero(user == each) for each in drawn]
        at = np.concatenate(parts)
        alias = np.repeat(np.arange(6), [len(part) for part in parts])
        expected = [metrics.gauc(alias, label[at], score[at]) for score in scores]
        assert gauc == pytest.approx(expected)


def test_the_interval_over_users_covers_the_truth() -> None:
    """Of 200 samples of users whose true difference is known, about 95 % of intervals hold it."""
    draw, held, truth = np.random.default_rng(0), 0, 0.02
    for seed in range(200):
        easy = draw.normal(0.7, 0.1, 80)
        area = np.stack([easy + draw.normal(truth, 0.05, 80), easy], 1)
        drawn = redrawn(np.full(80, 10.0), area, draws=200, seed=seed)
        found = over_users(drawn[:, 0], drawn[:, 1])
        held += found.low <= truth <= found.high
    assert 180 <= held <= 198
