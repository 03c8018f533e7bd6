"""Calibration: Platt's two numbers and the correction for dropped negatives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from training.calibrate import Calibration, fit, sigmoid


def world(size: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True logits and labels drawn from them, [n, 1] each."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(-2, 1.5, (size, 1))
    return truth, (draw.random((size, 1)) < sigmoid(truth)).astype(float)


def test_platt_recovers_slope_and_offset() -> None:
    """Logits that are a known line off come back."""
    truth, label = world()
    found = fit((truth + 0.7) / 1.8, label)
    assert found.slope[0] == pytest.approx(1.8, abs=0.06)
    assert found.offset[0] == pytest.approx(-0.7, abs=0.06)


def test_platt_is_logistic_regression_without_penalty() -> None:
    """Each task has the numbers that scikit-learn finds for it."""
    truth, label = world(3000)
    two = np.concatenate([truth * 0.4 + 1, truth * 2], 1)
    found = fit(two, np.concatenate([label, 1 - label[::-1]], 1)[:, [0, 0]])
    for task in range(2):
        oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(two[:, [task]], label[:, 0])
        assert found.slope[task] == pytest.approx(oracle.coef_[0, 0], rel=1e-5)
        assert found.offset[task] == pytest.approx(oracle.intercept_[0], rel=1e-5)


def test_dropped_negatives_are_corrected_for() -> None:
    """Trained where one negative in ten was kept: the probabilities are those of all traffic."""
    truth, label = world()
    kept = 0.1
    stays = (label[:, 0] == 1) | (np.random.default_rng(1).random(len(label)) < kept)
    learnt = truth - np.log(kept)  # what a perfect model of the sample would say
    naive, right = fit(learnt[stays], label[stays]), fit(learnt[stays], label[stays], kept)
    probability = sigmoid(right.apply(learnt))
    assert abs(probability - sigmoid(truth)).max() < 0.03
    assert probability.mean() == pytest.approx(label.mean(), rel=0.03)
    assert sigmoid(naive.apply(learnt)).mean() > 2 * label.mean()
    one = sigmoid(naive.apply(learnt))  # He et al. (2014): p / (p + (1 - p) / kept)
    np.testing.assert_allclose(probability, one / (one + (1 - one) / kept), rtol=1e-9)


def test_a_ranking_is_never_changed() -> None:
    """Slopes are positive, also where the logits rank worse than chance."""
    truth, label = world(2000)
    for logit in (truth, -truth, truth * 0):
        found = fit(logit, label, 0.5)
        assert found.slope[0] > 0
        np.testing.assert_array_equal(
            np.argsort(found.apply(logit)[:, 0], kind="stable"),
            np.argsort(logit[:, 0], kind="stable"),
        )
    upside_down = fit(-truth, label)
    assert upside_down.slope == (1.0,)
    assert sigmoid(upside_down.apply(-truth)).mean() == pytest.approx(label.mean(), rel=1e-6)


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_is_left_as_it_is(value: int) -> None:
    """There is nothing to fit, with no rows either."""
    logit = np.linspace(-1, 1, 10)[:, None]
    assert fit(logit, np.full((10, 1), value)) == Calibration.identity(1)
    assert fit(logit[:0], np.zeros((0, 1))) == Calibration.identity(1)


def test_labels_that_a_threshold_parts_stay_finite() -> None:
    """The best slope is infinite; a large one is enough."""
    logit = np.linspace(-1, 1, 10)[:, None]
    found = fit(logit, (logit > 0).astype(float))
    assert np.isfinite([*found.slope, *found.offset]).all()
    assert found.slope[0] > 10


@pytest.mark.parametrize("kept", [0, -0.5, 1.5, float("nan")])
def test_a_share_of_kept_negatives_is_a_share(kept: float) -> None:
    """Zero, more than one and NaN are refused."""
    with pytest.raises(ValueError, match="negatives_kept"):
        fit(np.zeros((2, 1)), np.array([[0], [1]]), kept)


def test_sigmoid_does_not_overflow() -> None:
    """Huge logits give 0 and 1."""
    found = sigmoid(np.array([-1e4, -2.0, 0.0, 2.0, 1e4]))
    np.testing.assert_allclose(found, [0, 1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2), 1])
