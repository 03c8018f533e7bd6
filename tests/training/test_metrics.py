"""The metrics, against scikit-learn and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from training import metrics

# Few distinct scores, so that ties are common.
rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 8)), min_size=1, max_size=60
)
Rows = list[tuple[int, int, int]]


def arrays(found: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, label, score = np.array(found).T
    return user * 7 - 3, label, score / 8


def test_metrics_are_named_by_task() -> None:
    """Plain of the first, and RelaImpr before the task."""
    tasks = ("click", "buy")
    names = ("gauc", "rela_impr.gauc")
    assert [metrics.of_task(name, "click", tasks) for name in names] == [*names]
    assert [metrics.of_task(name, "buy", tasks) for name in names] == [
        "buy.gauc",
        "rela_impr.buy.gauc",
    ]


@given(found=rows)
def test_auc_is_scikit_learn_s(found: Rows) -> None:
    """Ties count half; with one class there is none."""
    _, label, score = arrays(found)
    if label.min() == label.max():
        assert np.isnan(metrics.auc(label, score))
    else:
        expected = sklearn.metrics.roc_auc_score(label, score)
        assert metrics.auc(label, score) == pytest.approx(expected, abs=1e-12)


@given(found=rows)
def test_gauc_is_the_loop_over_users(found: Rows) -> None:
    """AUC of each user weighted by its impressions; users with one class do not count."""
    user, label, score = arrays(found)
    total, weight = 0.0, 0
    for each in set(user):
        mine = user == each
        if len(set(label[mine])) == 2:
            total += mine.sum() * sklearn.metrics.roc_auc_score(label[mine], score[mine])
            weight += mine.sum()
    if weight:
        assert metrics.gauc(user, label, score) == pytest.approx(total / weight, abs=1e-12)
    else:
        assert np.isnan(metrics.gauc(user, label, score))


@given(found=rows)
def test_log_loss_is_scikit_learn_s(found: Rows) -> None:
    """Certain and wrong is costly but finite."""
    _, label, score = arrays(found)
    expected = sklearn.metrics.log_loss(label, np.clip(score, 1e-15, 1 - 1e-15), labels=[0, 1])
    assert metrics.log_loss(label, score) == pytest.approx(expected, rel=1e-9)


@given(found=rows, bins=st.integers(1, 8))
def test_ece_is_the_loop_over_bins(found: Rows, bins: int) -> None:
    """Bins of equal count in the order of probability, the first ones larger by the remainder."""
    _, label, score = arrays(found)
    order = sorted(range(len(score)), key=lambda at: score[at])
    count = min(bins, len(order))
    expected, begin = 0.0, 0
    for each in range(count):
        size = len(order) // count + (each < len(order) % count)
        part = order[begin : begin + size]
        expected += abs(sum(score[at] - label[at] for at in part)) / len(order)
        begin += size
    assert metrics.ece(label, score, bins) == pytest.approx(expected, abs=1e-12)


@given(found=rows)
def test_normalised_entropy_is_the_ratio_of_two_of_scikit_learn_s_log_losses(found: Rows) -> None:
    """That of the probabilities over that of the base rate; with one class there is none."""
    _, label, score = arrays(found)
    if label.min() == label.max():
        assert np.isnan(metrics.normalised_entropy(label, score))
        return
    sure = np.clip(score, 1e-15, 1 - 1e-15)
    base = np.full(len(label), label.sum() / len(label))
    expected = sklearn.metrics.log_loss(label, sure) / sklearn.metrics.log_loss(label, base)
    assert metrics.normalised_entropy(label, score) == pytest.approx(expected, rel=1e-9)


def test_normalised_entropy_is_one_for_the_mean_label() -> None:
    """A constant at the base rate gains nothing, the truth gains all."""
    label = np.array([0, 0, 0, 1])
    assert metrics.normalised_entropy(label, np.full(4, 0.25)) == pytest.approx(1)
    assert metrics.normalised_entropy(label, label) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("auc", "base", "percent"),
    [  # the paper's table of the public data sets: MovieLens, then Amazon Electronics
        (0.7263, 0.7300, -1.61),
        (0.7337, 0.7300, 1.61),
        (0.7348, 0.7300, 2.09),
        (0.7742, 0.8624, -24.34),
        (0.8818, 0.8624, 5.35),
        (0.8871, 0.8624, 6.82),
    ],
)
def test_rela_impr_gives_the_paper_s_figures(auc: float, base: float, percent: float) -> None:
    """Relative to what the base model has above chance."""
    assert 100 * metrics.rela_impr(auc, base) == pytest.approx(percent, abs=0.006)


def test_rela_impr_needs_a_base_that_ranks_better_than_chance() -> None:
    """Below it every improvement would have the wrong sign, at it there is no measure."""
    base = {"auc": 0.6, "gauc": 0.5, "conversion.auc": 0.43, "log_loss": 0.3}
    ours = {"auc": 0.7, "gauc": 0.7, "conversion.auc": 0.6, "log_loss": 0.2}
    assert metrics.improvement(ours, base) == {"auc": pytest.approx(1.0)}


def test_metrics_that_one_class_does_not_define_are_left_out() -> None:
    """No NaN or infinity is reported, and nothing warns."""
    always = {"auc", "gauc", "log_loss", "normalised_entropy", "ece", "calibration", "impressions"}
    user, score = np.zeros(4), np.full(4, 0.5)
    assert set(metrics.all_metrics(user, np.array([0, 1, 0, 1]), score)) == always
    found = metrics.all_metrics(user, np.ones(4), score)
    assert set(found) == {"log_loss", "ece", "calibration", "impressions"}
    found = metrics.all_metrics(user, np.zeros(4), score)
    assert set(found) == {"log_loss", "ece", "impressions"}
    two = metrics.all_metrics(np.arange(4), np.array([0, 1, 0, 1]), score)
    assert set(two) == always - {"gauc"}


def test_nothing_has_no_auc() -> None:
    """Of no impressions AUC and GAUC are NaN."""
    nothing = np.zeros(0)
    assert np.isnan(metrics.auc(nothing, nothing))
    assert np.isnan(metrics.gauc(nothing, nothing, nothing))
