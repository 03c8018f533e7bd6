"""What test scores say by user, by length of the history and by bin of probability."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training import metrics
from training.comparison.quality import Cells, by_history, reliability, told
from training.dataset import Dataset


@pytest.fixture
def test_set(shop_sets: dict[str, Dataset]) -> Dataset:
    return shop_sets["train"]  # the larger


def test_bins_of_history_hold_what_they_say(test_set: Dataset) -> None:
    """GAUC of each bin is that of its impressions alone, seeds averaged; counts add up."""
    draw = np.random.default_rng(0)
    label = test_set.label[:, 0]
    scores = {
        name: draw.random((2, len(test_set))) + gain * label
        for name, gain in (("good", 0.3), ("base", 0.0))
    }
    cells = Cells.of(test_set, 0, by_length=True)
    areas = {name: cells.areas(label, each) for name, each in scores.items()}
    bins, found = by_history(cells, areas, "base", longest=4)
    assert [each["lengths"] for each in bins] == ["0", "1", "2-4"]
    assert sum(each["impressions"] for each in bins) == len(test_set)
    length = test_set.stop - test_set.start
    for at, (low, high) in enumerate(((0, 0), (1, 1), (2, 4))):
        inside = (length >= low) & (length <= high)
        assert bins[at]["impressions"] == inside.sum()
        assert bins[at]["users"] == len(np.unique(test_set.user[inside]))
        gauc = {
            name: float(
                np.mean(
                    [metrics.gauc(test_set.user[inside], label[inside], s[inside]) for s in each]
                )
            )
            for name, each in scores.items()
        }
        for name in scores:
            assert found[name][at]["gauc"] == pytest.approx(gauc[name])
        lift = found["good"][at]["over_baseline"]
        assert lift["difference"] == pytest.approx(gauc["good"] - gauc["base"])
        assert lift["low"] < lift["difference"] < lift["high"]
    assert found["good"][2]["over_baseline"]["low"] > 0
    assert found["base"][2]["over_baseline"] == {"difference": 0, "low": 0, "high": 0, "p": None}


def test_a_bin_without_both_labels_has_no_figure(test_set: Dataset) -> None:
    """It is counted all the same."""
    label = np.where(test_set.stop > test_set.start, test_set.label[:, 0], 0)
    data = replace(test_set, label=label[:, None].astype(np.float32))
    cells = Cells.of(data, 0, by_length=True)
    score = np.random.default_rng(0).random((1, len(data)))
    bins, found = by_history(cells, {"a": cells.areas(data.label[:, 0], score)}, "a", longest=4)
    assert found["a"][0] is None
    assert found["a"][2] is not None
    assert bins[0]["users_with_both_labels"] == 0 < bins[0]["impressions"]


def test_reliability_is_what_ece_is_made_of() -> None:
    """With bins of one size the mean distance to the diagonal is the ECE."""
    draw = np.random.default_rng(0)
    score = draw.random(400)
    label = (draw.random(400) < score**2).astype(np.float32)
    found = reliability(label, np.stack([score, score]))
    distance = np.abs(np.subtract(found["predicted"], found["observed"]))
    assert len(distance) == 20
    assert distance.mean() == pytest.approx(metrics.ece(label, score))
    assert found["predicted"] == sorted(found["predicted"])


def test_labels_of_one_class_and_lonely_impressions_are_told(
    shop_sets: dict[str, Dataset],
) -> None:
    """By split and task, with what follows from it; of both classes nothing is said."""
    test = shop_sets["test"]
    counts, notes = told(shop_sets, ["click", "buy"])
    assert not any("all" in note.split() for note in notes)
    assert counts["test"]["positives"]["buy"] == test.label[:, 1].sum()
    alone = np.unique(test.user, return_index=True)[1]
    single = test.take(alone)
    none = replace(single, label=single.label * [1, 0])
    counts, notes = told({**shop_sets, "test": none, "validation": none}, ["click", "buy"])
    said = "\n".join(notes)
    assert f"test, task buy: all {len(alone)} labels are 0; AUC, GAUC" in said
    assert "validation, task buy: all" in said
    assert (
        f"test, task click: {len(alone)} of {len(alone)} users have labels of one class only "
        f"({len(alone)} users have one impression)" in said
    )
