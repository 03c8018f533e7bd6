"""The guard: a canary is judged on enough impressions, and withdrawn when it is plainly off."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model.contract.labels import LabelError, LabelFile
from model.contract.repository import Repository
from tests.support import publish_toy
from training.guard import Band, guard, judge

BAND = Band()


def impressions(
    count: int, truth: float, said: float, *, users: int = 10**9, seed: int = 0, **more: object
) -> pl.DataFrame:
    """Impressions of items clicked with probability ``truth`` that ``said`` was predicted for."""
    generator = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "model": "toy",
            "version": 2,
            "user_id": [str(n % users) for n in range(count)],
            "probability": np.full(count, said),
            "label": (generator.random(count) < truth).astype(np.int8),
            "received": 2**53,  # later than any label was given
            **more,
        }
    )


@pytest.mark.parametrize(
    ("truth", "said", "broken"),
    [(0.05, 0.05, False), (0.05, 0.10, True), (0.10, 0.05, True), (0.05, 0.06, False)],
)
def test_a_ratio_outside_the_band_is_seen(truth: float, said: float, broken: bool) -> None:
    """Twice or half of what comes of it is off; a fifth too much is not."""
    verdict = judge(impressions(20_000, truth, said), BAND)
    assert verdict.broken is broken
    assert verdict.low < verdict.ratio < verdict.high
    assert verdict.ratio == pytest.approx(said / truth, rel=0.1)


def test_too_little_is_not_judged() -> None:
    """Neither few impressions nor few clicks, expected or seen, however bad they look."""
    assert judge(impressions(999, 0.0, 0.5), BAND).broken is None
    assert judge(impressions(2000, 0.0, 0.0149), BAND).broken is None
    assert judge(impressions(1000, 0.0, 0.5), BAND).broken is True
    assert judge(impressions(2000, 0.01, 0.0001), BAND).clicks < 30
    assert judge(impressions(2000, 0.01, 0.0001), BAND).broken is None
    assert judge(impressions(1, 0.0, 0.5).clear(), BAND).broken is None


@pytest.mark.parametrize("said", [0.0, 0.0001, 0.0014])
def test_a_canary_that_predicts_far_too_low_is_off(said: float) -> None:
    """Though it expects fewer clicks than it takes to judge: those that are seen are enough."""
    verdict = judge(impressions(20_000, 0.05, said), BAND)
    assert verdict.expected < BAND.clicks < verdict.clicks
    assert verdict.broken is True


def test_an_interval_that_reaches_into_the_band_is_no_proof() -> None:
    """1.33 on 39 clicks may be chance; on 1,500 it is not."""
    few, many = (
        impressions(count, 0, 0.05).with_columns(
            (pl.int_range(pl.len()) < count * 0.0375).cast(pl.Int8).alias("label")
        )
        for count in (1040, 40_000)
    )
    assert judge(few, BAND).ratio == pytest.approx(judge(many, BAND).ratio, rel=0.01)
    assert judge(few, BAND).broken is False
    assert judge(many, BAND).broken is True


def test_clicks_of_one_user_go_together() -> None:
    """The same clicks by few users say less than by many."""
    rows = impressions(3000, 0.0, 0.05).with_columns(
        (pl.int_range(pl.len()) % 30 < 3).cast(pl.Int8).alias("label")
    )
    crowd = judge(rows, BAND)
    three = judge(
        rows.with_columns((pl.int_range(pl.len()) % 30).cast(pl.String).alias("user_id")), BAND
    )
    assert crowd.ratio == three.ratio
    assert crowd.broken is True
    assert three.broken is False


def test_a_sound_canary_is_seldom_blamed() -> None:
    """Asked of 300 samples of the least size, a calibrated model is off in none."""
    samples = [impressions(1000, 0.03, 0.03, seed=seed) for seed in range(300)]
    assert not any(judge(each, BAND).broken for each in samples)


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """A repository whose version 2 is a canary with a share of 0.2."""
    for bias in (0.0, 1.0):
        publish_toy(tmp_path, bias)
    labels = LabelFile(Repository(tmp_path, "toy"), by="test")
    labels.start_canary(2, 0.2)
    return labels


def test_a_canary_that_is_off_is_withdrawn(labels: LabelFile) -> None:
    """Its share goes to 0 and the labels say why, once."""
    rows = impressions(5000, 0.05, 0.2)
    found = guard(labels, rows, BAND)
    assert found is not None
    assert found[0] == 2
    after = labels.read()
    assert (after.stable, after.canary, after.canary_share) == (1, 2, 0.0)
    assert "predicted/observed" in after.changes[-1].why
    assert "outside 0.8 to 1.25" in after.changes[-1].why
    assert guard(labels, rows, BAND) is None
    assert labels.read() == after


def test_a_canary_that_is_started_again_is_judged_by_what_it_does_then(labels: LabelFile) -> None:
    """What it said before was of another trial."""
    time.sleep(0.01)
    rows = impressions(5000, 0.05, 0.2, received=int(time.time() * 1000))
    time.sleep(0.01)
    labels.stop_canary()
    again = labels.start_canary(2, 0.2)
    assert guard(labels, rows, BAND) is None
    assert labels.read() == again
    assert guard(labels, impressions(5000, 0.05, 0.2), BAND) is not None


@pytest.mark.parametrize("other", [{"version": 1}, {"model": "shop"}, {"probability": 0.05}])
def test_a_canary_answers_for_its_own_impressions_only(
    labels: LabelFile, other: dict[str, object]
) -> None:
    """Not for another version's, nor another model's; one that is right stays."""
    before = labels.read()
    assert guard(labels, impressions(5000, 0.05, 0.2, **other), BAND) is None
    assert labels.read() == before


def test_without_a_canary_there_is_nothing_to_guard(labels: LabelFile) -> None:
    """However wrong a version is."""
    labels.stop_canary()
    before = labels.read()
    assert guard(labels, impressions(5000, 0.05, 0.2), BAND) is None
    assert labels.read() == before


def test_labels_that_cant_be_read_are_said(labels: LabelFile) -> None:
    """The caller decides what to make of it."""
    labels.path.write_text("{")
    with pytest.raises(LabelError):
        guard(labels, impressions(5000, 0.05, 0.2), BAND)


@pytest.mark.parametrize("wrong", [{"low": 0}, {"low": 2, "high": 1}, {"confidence": 1}])
def test_a_band_makes_sense(wrong: dict[str, float]) -> None:
    """Or it is refused."""
    with pytest.raises(ValueError, match="band"):
        Band(**wrong)  # type: ignore[arg-type]
