"""LR and Wide&Deep, against their formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model.contract.batch import Batch
from model.contract.ids import FIRST
from model.linear import LRConfig
from tests.model import by_hand, nets
from tests.model.by_hand import Weights

DIM = nets.SMALL["dim"]
both_forms = pytest.mark.parametrize("dense", [False, True])
both_poolings = pytest.mark.parametrize("mean", [False, True])


@both_forms
@both_poolings
def test_lr_is_a_weight_per_id(mean: bool, dense: bool) -> None:
    """Bias, the candidate's weights, and the behaviours' own ones pooled: nothing else."""
    network, batch = nets.network(f"lr {'mean' if mean else 'sum'}"), nets.batch(whole=dense)
    w = Weights.of(network)
    expected = [by_hand.linear(w, "linear", batch, c, mean) for c in range(batch.candidates)]
    np.testing.assert_allclose(nets.logits(network, batch, dense), expected, rtol=0, atol=1e-12)


def crosses(w: Weights, batch: Batch, c: int, mean: bool) -> np.ndarray:
    """The weight of each id of the candidate, once for each behaviour that has it too."""
    total, prefix = np.zeros(2), "crossing.crosses.weights"
    for row in by_hand.seen(batch, c):
        for column in range(4):
            mine = batch.item[c, column]
            theirs = row[:1] if column == 0 else row[1:4]
            if mine >= FIRST and mine in theirs:
                table = "genre" if column else "item_id"
                total += w.row(prefix, table, mine) * by_hand.share(batch, c, mean)
    return total


@both_forms
@both_poolings
def test_wide_and_deep_is_the_sum_of_its_halves(mean: bool, dense: bool) -> None:
    """The wide half has a weight per id and one per id that candidate and behaviour share."""
    network = nets.network(f"wide_deep {'mean' if mean else 'sum'}")
    batch, w = nets.batch(whole=dense), Weights.of(network)
    met = [crosses(w, batch, c, mean) for c in range(batch.candidates)]
    assert np.count_nonzero(np.abs(met).sum(1)) > 2
    expected = [
        by_hand.linear(w, "crossing.linear", batch, c, mean)
        + met[c]
        + by_hand.mlp(w, np.concatenate(by_hand.fields(w, batch, c, DIM, mean)))
        for c in range(batch.candidates)
    ]
    np.testing.assert_allclose(nets.logits(network, batch, dense), expected, rtol=0, atol=1e-12)


def test_linear_weights_start_at_zero() -> None:
    """An LR that was not trained says the same of everything."""
    network = LRConfig().build(nets.SCHEMA, nets.SIZES).double().eval()
    assert not nets.logits(network, nets.batch()).any()
