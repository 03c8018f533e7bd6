"""The tally: metrics of impressions that come part by part."""

from __future__ import annotations

import numpy as np
import pytest

from training import calibrate, metrics
from training.calibrate import Calibration, sigmoid
from training.drift import histogram
from training.tally import Tally


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """user [n], label and logit [n, 2] of two tasks whose logits are off by slope and offset."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(-1, 1.5, (count, 2))
    label = (draw.random((count, 2)) < sigmoid(truth)).astype(np.float32)
    return np.sort(draw.integers(0, count // 20, count)), label, (2 * truth + 1).astype(np.float32)


def tallied(count: int, exact: int, parts: int = 3) -> tuple[Tally, tuple[np.ndarray, ...]]:
    """A tally of impressions in parts whose users begin at 0 each, and those of all parts."""
    found, every = Tally(2, exact), []
    for part in range(parts):
        user, label, logit = drawn(count // parts, part)
        found.add(user, label, logit)
        every.append((user + part * count, label, logit))
    return found, tuple(np.concatenate(each) for each in zip(*every, strict=True))


def test_few_impressions_are_measured_exactly() -> None:
    """Calibration, metrics and histograms are to the bit those of all parts in one piece."""
    found, (user, label, logit) = tallied(3000, exact=3000)
    by = found.calibrate(0.5)
    assert by == calibrate.fit(logit, label, 0.5)
    p = sigmoid(by.apply(logit))
    for at, values in enumerate(found.measure(by)):
        assert values == metrics.all_metrics(user, label[:, at], p[:, at])
    assert found.histograms(by) == [histogram(p[:, at]) for at in range(2)]


def test_many_impressions_are_measured_to_a_stated_error() -> None:
    """GAUC exactly, AUC within what is told, the others to six digits."""
    found, (user, label, logit) = tallied(60_000, exact=59_999)
    by, exact = found.calibrate(), calibrate.fit(logit, label)
    assert by.slope == pytest.approx(exact.slope, abs=1e-6)
    assert by.offset == pytest.approx(exact.offset, abs=1e-6)
    assert by.slope[0] == pytest.approx(0.5, abs=0.02)  # it was fitted at all
    p = sigmoid(by.apply(logit))
    for at, values in enumerate(found.measure(by)):
        expected = metrics.all_metrics(user, label[:, at], p[:, at])
        within = values.pop("auc_within")
        assert 0 < within < 1e-4
        assert abs(values["auc"] - expected["auc"]) <= within
        assert values["gauc"] == pytest.approx(expected["gauc"], abs=1e-12)
        assert values["ece"] == pytest.approx(expected["ece"], abs=1e-4)
        assert list(values) == list(expected)
        for name in ("log_loss", "normalised_entropy", "calibration", "impressions"):
            assert values[name] == pytest.approx(expected[name], rel=1e-6)
    spread = [histogram(p[:, at]) for at in range(2)]
    off = np.abs(np.subtract(found.histograms(by), spread)).sum(1)
    assert np.all(off <= 2 * 60_000 * 1e-3)  # those within a bin of an edge
    assert [sum(each) for each in found.histograms(by)] == [60_000, 60_000]


def test_parts_after_the_limit_are_folded_as_they_come() -> None:
    """One by one or at once: the same figures."""
    one, _ = tallied(6000, exact=0)
    two, _ = tallied(6000, exact=5999)
    by = Calibration.identity(2)
    for first, second in zip(one.measure(by), two.measure(by), strict=True):
        assert first == pytest.approx(second, abs=1e-12)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_what_one_class_does_not_define_is_left_out(label: float) -> None:
    """The same figures as of few impressions, and the logits stay as they are."""
    user, _, logit = drawn(1000)
    found = {}
    for exact in (0, 1000):
        tally = Tally(2, exact)
        tally.add(user, np.full_like(logit, label), logit)
        by = tally.calibrate()
        assert by == Calibration.identity(2)
        found[exact] = tally.measure(by)[0]
    assert set(found[0]) == set(found[1000])
    assert "auc" not in found[0]


def test_logits_beyond_the_bins_keep_their_mean() -> None:
    """Those below -16 and above 16 share a bin at each end; the loss is of their mean."""
    logit = np.array([[-40.0], [-20.0], [20.0], [40.0]], np.float32)
    label = (logit > 0).astype(np.float32)
    tally = Tally(1, exact=0)
    tally.add(np.zeros(4, np.int64), label, logit)
    [found] = tally.measure(Calibration.identity(1))
    assert found["auc"] == 1
    assert found["log_loss"] == pytest.approx(np.log1p(np.exp(-30.0)), rel=1e-3)


def test_a_logit_that_is_no_number_is_told() -> None:
    user, label, logit = drawn(100)
    logit[7, 1] = np.nan
    for exact in (0, 100):
        tally = Tally(2, exact)
        tally.add(user, label, logit)
        assert not tally.finite
