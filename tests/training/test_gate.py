"""The gate: what passes, what is refused, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from training import metrics
from training.calibrate import sigmoid
from training.gate import RuleError, Rules, Verdict, judge, rules
from training.intervals import Evidence, Sampling, compare

QUICK = Sampling(draws=100)
RANDOM = np.random.default_rng(1).random(20_000)


def evidence(
    impressions: int = 20_000, users: int = 500, noise: float = 0.0, seed: int = 0, **more: Any
) -> Evidence:
    """Impressions whose true probabilities the current version knows; the candidate's logits are
    off by ``noise``."""
    draw = np.random.default_rng(seed)
    user = draw.integers(0, users, impressions)
    logit = draw.normal(-1, 1, impressions)
    label = (draw.random(impressions) < sigmoid(logit)).astype(np.float64)
    candidate = sigmoid(logit + noise * draw.normal(size=impressions))
    return Evidence(user, label, candidate, **{"current": sigmoid(logit), **more})


def judged(found: Evidence, **more: Any) -> Verdict:
    """By rules that, unless said, let through what is no better: one rule at a time."""
    return judge(found, Rules(**{"gain": -1, **more}), sampling=QUICK)


def test_figures_are_those_of_the_metrics() -> None:
    """GAUC, AUC, log loss and calibration over all impressions, ties and all."""
    found = evidence(3000, noise=0.5)
    found = replace(found, candidate=found.candidate.round(2).clip(0.01, 0.99))
    for users, name in ((30, "gauc"), (10_000, "auc")):
        compared = compare(found, Sampling(users=users, draws=20))
        assert compared.ranked_by == name
        expected = (
            metrics.gauc(found.user, found.label, found.candidate)
            if name == "gauc"
            else roc_auc_score(found.label, found.candidate)
        )
        assert compared.candidate["ranking"].value == pytest.approx(expected)
        loss = log_loss(found.label, found.candidate)
        assert compared.candidate["log_loss"].value == pytest.approx(loss)
        ratio = found.candidate.mean() / found.label.mean()
        assert compared.candidate["calibration"].value == pytest.approx(ratio)
        current = log_loss(found.label, found.current)
        assert compared.change["log_loss"].value == pytest.approx(loss / current - 1)


def test_intervals_are_those_of_drawing_users_anew() -> None:
    """Of 100 such sets of impressions, the interval of a ratio holds the truth, 1, in about 95,
    though all impressions of a user are clicked together."""
    held = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        user = np.repeat(np.arange(100), 10)
        label = np.repeat((draw.random(100) < 0.5).astype(np.float64), 10)
        found = compare(
            Evidence(user, label, np.full(1000, 0.5)), Sampling(draws=100, seed=seed)
        ).candidate["calibration"]
        held += found.low <= 1 <= found.high
    assert 88 <= held <= 99


def noisy(found: Evidence, noise: float) -> Evidence:
    """The current version's logits are off, and the candidate's are not."""
    other = evidence(len(found.label), noise=noise)
    assert (other.label == found.label).all()
    return replace(found, current=other.candidate)


def test_a_better_candidate_passes() -> None:
    """And so does the first version, which is compared with nothing."""
    for found in (noisy(evidence(), 0.1), evidence(noise=0.05, current=None)):
        verdict = judged(found)
        assert (verdict.status, verdict.reasons) == ("passed", ())


def test_a_candidate_that_is_no_better_is_refused() -> None:
    """Though it is worse by next to nothing, or the same; a rule says how much may be."""
    for found in (evidence(noise=0.05), evidence()):
        verdict = judge(found, Rules(), sampling=QUICK)
        assert verdict.status == "refused"
        [reason] = verdict.reasons
        loss = metrics.log_loss(found.label, found.candidate)
        assert reason.startswith(f"no better than the current version: log loss is {loss:.5f}, ")
        assert judged(found, gain=-0.005).passed
    better = noisy(evidence(), 0.1)
    assert judged(better, gain=0).passed
    assert not judged(better, gain=0.1).passed


@pytest.mark.parametrize(
    ("found", "status", "expected"),
    [
        (evidence(noise=1.5), "refused", "GAUC is lower than the current version's by 0.1"),
        (evidence(noise=1.5), "refused", "log loss is higher than the current version's by"),
        (replace(evidence(), candidate=RANDOM), "refused", "GAUC 0."),
        (replace(evidence(), candidate=RANDOM), "refused", "is not above that of chance, 0.5"),
        (evidence(400), "too_few", "too few impressions to tell: 400, "),
        (evidence(2000, 200, noise=0.3), "too_few", "may be lower than the current version's by"),
        (evidence(rate_before=0.1), "refused", "the labels are doubtful: 0.3"),
        (evidence(promised={"gauc": 0.99}), "refused", "and was 0.9900 when it was published"),
    ],
)
def test_reasons_say_what_is_wrong_with_figures(
    found: Evidence, status: str, expected: str
) -> None:
    """Each a sentence; what can't be told is told apart from what is worse."""
    verdict = judged(found)
    assert verdict.status == status
    assert any(expected in reason for reason in verdict.reasons), verdict.reasons


def test_labels_that_contradict_the_current_version_are_not_believed() -> None:
    """Turned round, they suit a candidate that learnt from them; the current one is right."""
    found = evidence()
    turned = replace(found, label=1 - found.label, candidate=1 - found.candidate)
    verdict = judged(turned)
    assert verdict.status == "refused"
    assert "by them the current version ranks worse than chance" in verdict.reasons[0]


@pytest.mark.parametrize(("factor", "passes"), [(1.05, True), (1.5, False), (0.6, False)])
def test_calibration_has_a_band(factor: float, passes: bool) -> None:
    """Scores that are too high or too low by more than a tenth are refused."""
    found = evidence(current=None)
    verdict = judged(replace(found, candidate=found.candidate * factor))
    assert verdict.passed == passes
    assert passes or verdict.reasons[0].startswith("calibration: mean predicted / observed is ")


@pytest.mark.parametrize("against", [True, False])
@pytest.mark.parametrize(
    ("users", "factor", "interval", "status"),
    [
        (2000, 1.07, "reaches out", "passed"),
        (2000, 1.12, "reaches in", "too_few"),
        (2000, 0.88, "reaches in", "too_few"),
        (2000, 1.3, "is outside", "refused"),
        (150, 1.0, "is wider", "too_few"),
        (150, 1.2, "is wider", "too_few"),
        (150, 1.263, "reaches in", "too_few"),
    ],
)
def test_calibration_that_cant_be_told_is_not_passed(
    users: int, factor: float, interval: str, status: str, against: bool
) -> None:
    """A value outside the band never passes, nor one whose interval is wider than the band; also
    where there is no current version, and where the current one is as wrong."""
    user = np.repeat(np.arange(users), 10)
    draw = np.random.default_rng(0)
    logit = np.log(0.03 / 0.97) + draw.normal(0, 1.5, len(user))
    label = (draw.random(len(user)) < sigmoid(logit)).astype(np.float64)
    score = sigmoid(logit)
    score *= factor * label.mean() / score.mean()
    verdict = judged(Evidence(user, label, score, score if against else None))
    assert verdict.overall is not None
    ratio = verdict.overall.candidate["calibration"]
    assert ratio.value == pytest.approx(factor)
    wide = ratio.high - ratio.low > 0.2
    outside = ratio.low > 1.1 or ratio.high < 0.9
    reaches = {
        "reaches out": not wide and (ratio.low < 0.9 or ratio.high > 1.1),
        "reaches in": not outside,
        "is wider": wide and not outside,
        "is outside": outside,
    }
    assert reaches[interval], ratio
    assert verdict.status == status
    assert all("mean predicted / observed" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(("factor", "refused"), [(1.1, False), (1.5, True), (0.6, True)])
def test_a_slice_is_calibrated_too(factor: float, refused: bool) -> None:
    """In a wider band; it refuses a first version, and one that is no worse than the current."""
    found = evidence(40_000)
    part = np.arange(40_000) < 1000
    score = np.where(part, found.candidate * factor, found.candidate)
    for current in (None, score):
        off = replace(found, candidate=score, current=current, slices={"new users": part})
        assert judged(replace(off, slices={})).passed
        verdict = judged(off)
        assert verdict.status == ("refused" if refused else "passed")
        start = "new users: mean predicted / observed is "
        assert [reason.startswith(start) for reason in verdict.reasons] == [True] * refused
        assert judged(off, slice_calibration_low=0.5, slice_calibration_high=2).passed


def test_a_slice_that_collapses_is_refused() -> None:
    """Though over all impressions nothing can be seen; a small one is not looked at."""
    found = evidence(40_000)
    part = np.zeros(40_000, bool)
    part[:400] = True
    broken = np.where(part, 1 - found.candidate, found.candidate)
    sliced = replace(found, candidate=broken, slices={"new items": part})
    assert judged(replace(sliced, slices={})).passed
    verdict = judged(sliced)
    assert verdict.status == "refused"
    assert all(reason.startswith("new items: ") for reason in verdict.reasons)
    assert judged(sliced, slice_impressions=500).passed
    assert verdict.slices["new items"].impressions == 400


def test_another_task_is_held_to_what_a_slice_is() -> None:
    """It refuses when it collapses, and not because nothing can be told of it."""
    first, broken, few = evidence(), evidence(noise=5), evidence(40, noise=5)
    found = judge(first, Rules(gain=-1), {"task buy": broken}, QUICK)
    assert found.status == "refused"
    assert found.reasons[0].startswith("task buy: GAUC is lower by ")
    assert judge(first, Rules(gain=-1), {"task buy": few}, QUICK).passed


def test_rules_are_set_by_name() -> None:
    """Others keep their defaults."""
    assert rules(["ranking=0.02", "impressions=9"]) == Rules(ranking=0.02, impressions=9)
    assert rules(["gain=-0.005"]) == Rules(gain=-0.005)  # the one that may be below 0


@pytest.mark.parametrize("given", ["colour=1", "ranking", "ranking=big", "ranking=-1", "users=1.5"])
def test_a_wrong_rule_is_an_error(given: str) -> None:
    """It names the rules there are."""
    with pytest.raises(RuleError, match=r"--rule \w+: .*one of impressions, "):
        rules([given])
