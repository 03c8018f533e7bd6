"""Drift: histograms of probabilities on fixed bins, and how far two are apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.repository import Repository
from training.drift import EDGES, HISTOGRAM, histogram, psi, validated

BINS = len(EDGES) + 1
COUNTS = st.lists(st.integers(0, 1000), min_size=BINS, max_size=BINS)


def test_probabilities_fall_into_bins_of_log_odds() -> None:
    """Even odds lie on the edge at 0, and so above it; the ends hold whatever is beyond."""
    counts = histogram([0.5, 0.5 - 1e-9, 0.0, 1.0, 1e-9])
    at = EDGES.index(0.0)
    assert (counts[at + 1], counts[at], counts[0], counts[-1]) == (1, 1, 2, 1)
    assert sum(counts) == 5
    assert histogram([]) == [0] * BINS


@given(st.lists(st.floats(0, 1), max_size=50))
def test_each_probability_counts_once(probability: list[float]) -> None:
    """Whatever it is."""
    assert sum(histogram(probability)) == len(probability)


@given(COUNTS.filter(any), COUNTS.filter(any))
def test_the_index_is_symmetric_and_no_less_than_zero(one: list[int], other: list[int]) -> None:
    """And 0 for the same shares, however many were counted."""
    assert psi(one, other) == pytest.approx(psi(other, one))
    assert psi(one, other) >= 0
    assert psi(one, [3 * count for count in one]) == pytest.approx(0)


def test_the_index_is_what_its_formula_says() -> None:
    """Half and half against a quarter and three quarters, by hand."""
    by_hand = (0.25 - 0.5) * np.log(0.25 / 0.5) + (0.75 - 0.5) * np.log(0.75 / 0.5)
    assert psi([5, 5], [25, 75]) == pytest.approx(by_hand)


def test_a_shift_is_told_from_chance() -> None:
    """A sample of the same model is far below the customary 0.1, twice the odds far above."""
    logits = np.random.default_rng(1).normal(-3, 1, 20_000)
    past, same, twice = logits[:10_000], logits[10_000:], logits[10_000:] + 0.7
    counts = [histogram(1 / (1 + np.exp(-each))) for each in (past, same, twice)]
    assert psi(counts[0], counts[1]) < 0.02
    assert psi(counts[0], counts[2]) > 0.25


def test_what_counts_nothing_has_no_index() -> None:
    """And other bins are no mistake to pass over."""
    assert np.isnan(psi([1, 2], [0, 0]))
    with pytest.raises(ValueError, match="bins"):
        psi([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    "metrics", [None, {}, {HISTOGRAM: {}}, {HISTOGRAM: {"ctr": [1]}}, {HISTOGRAM: {"ctr": "x"}}, []]
)
def test_a_version_without_a_histogram_has_none(tmp_path: Path, metrics: object) -> None:
    """Nor has one whose histogram is of other bins, or which is not there."""
    repository = Repository(tmp_path, "shop")
    if metrics is not None:
        (repository.folder / "1").mkdir(parents=True)
        (repository.folder / "1" / "manifest.json").write_text(json.dumps({"metrics": metrics}))
    assert validated(repository, 1, "ctr") is None


def test_a_version_has_the_histogram_it_was_published_with(tmp_path: Path) -> None:
    """Per task, in its manifest's metrics."""
    repository, counts = Repository(tmp_path, "shop"), histogram([0.1, 0.2])
    (repository.folder / "1").mkdir(parents=True)
    manifest = {"metrics": {HISTOGRAM: {"ctr": counts}}}
    (repository.folder / "1" / "manifest.json").write_text(json.dumps(manifest))
    assert validated(repository, 1, "ctr") == counts
    assert validated(repository, 1, "cvr") is None
