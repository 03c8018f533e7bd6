"""The trial: a canary that fails too often has to go, one that is unlucky has not."""

from __future__ import annotations

import random

import pytest

from service.trial import WINDOW, Trial


def fill(trial: Trial, *, canary: bool, count: int, failed: int) -> None:
    for at in range(count):
        trial.note(canary=canary, failed=at < failed)


@pytest.mark.parametrize(
    ("canary", "stable", "goes"),
    [
        ((199, 199), (0, 0), False),  # too few to judge
        ((200, 200), (0, 0), True),
        ((200, 0), (1000, 0), False),
        ((200, 9), (1000, 0), False),  # 2 % are 4, and luck makes up to 9.9
        ((200, 10), (1000, 0), True),
        ((1000, 33), (1000, 0), False),
        ((1000, 34), (1000, 0), True),
        ((1000, 120), (1000, 100), False),  # both suffer from what is not theirs
        ((1000, 200), (1000, 100), True),
    ],
)
def test_the_band_is_above_the_stable_versions_rate(
    canary: tuple[int, int], stable: tuple[int, int], goes: bool
) -> None:
    """Beyond the stable rate, 2 % and three standard deviations a canary goes."""
    trial = Trial(band=0.02, least=200)
    fill(trial, canary=False, count=stable[0], failed=stable[1])
    fill(trial, canary=True, count=canary[0], failed=canary[1])
    assert (trial.verdict() is not None) is goes


def test_the_verdict_says_the_counts() -> None:
    """So that the event tells what was seen."""
    trial = Trial(band=0.02, least=200)
    fill(trial, canary=False, count=300, failed=3)
    fill(trial, canary=True, count=250, failed=50)
    said = "50 of 250 requests failed, of the stable version's 3 of 300"
    assert trial.verdict() == said
    trial.clear()
    assert trial.verdict() is None


def test_old_outcomes_leave_the_window() -> None:
    """What failed before the last thousand requests counts no more."""
    trial = Trial(band=0.02, least=200)
    fill(trial, canary=True, count=WINDOW, failed=100)
    assert trial.verdict() is not None
    fill(trial, canary=True, count=WINDOW, failed=0)
    assert trial.verdict() is None


def test_a_canary_as_good_as_the_stable_version_stays() -> None:
    """Judged after each of 20,000 requests at the same rate of failures, it never goes."""
    random_ = random.Random(3)
    trial = Trial(band=0.02, least=200)
    for at in range(20_000):
        trial.note(canary=at % 2 == 0, failed=random_.random() < 0.05)
        if at % 10 == 0:
            assert trial.verdict() is None


def test_a_band_of_everything_never_judges() -> None:
    """A band of 1 turns the judgement off."""
    trial = Trial(band=1.0, least=1)
    fill(trial, canary=True, count=500, failed=500)
    assert trial.verdict() is None
