"""REF computes what ours computes, so that a ratio of speeds compares the same function."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import graph, measure, quality, training
from bench.reference import MaskedDice, Reference, ReferenceTraining, padded
from model.din import DINConfig
from model.layers import Activation, Dice
from model.network import Network
from model.tensors import Tensors
from training.dataset import Dataset
from training.trainer import FitConfig
from training.world import World


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    return training.prepare(World(users=20, items=40, categories=10, interests=3).logs(40))


def network_of(data: Dataset, **options: object) -> Network:
    torch.manual_seed(0)
    config = dataclasses.replace(DINConfig(attention=(12, 8)), **options)
    sizes = {name: table.size for name, table in data.encoder.tables.items()}
    network = config.build(data.schema, sizes)
    graph.lively(network)
    return network


@pytest.mark.parametrize("unit", ["dice", "sigmoid", "prelu"])
@pytest.mark.parametrize("weights", ["raw", "softmax"])
def test_a_training_step_is_the_same_function(
    sets: dict[str, Dataset], unit: Activation, weights: str
) -> None:
    """Same weights, same impressions: same logits, loss and gradients."""
    train = sets["train"]
    network = network_of(train, attention_activation=unit, weights=weights).train()
    reference = Reference(network, own=True).train()
    batch, at = train.batch(*train.plan(64, 8, 0)[0])
    label = torch.from_numpy(train.label[at])
    logit, _ = network(Tensors.of(batch))
    other, _ = reference(Tensors.of(padded(train, at)))
    torch.testing.assert_close(other, logit, atol=1e-5, rtol=1e-5)
    for value in (logit, other):
        nn.functional.binary_cross_entropy_with_logits(value, label).backward()
    for name, weight in network.embeddings.weights().items():
        same(reference.embeddings.weights()[name].grad, weight.grad)
    first = reference.unit[0]
    assert isinstance(first, nn.Linear)
    same(first.weight.grad, network.interest.unit.first.weight.grad)
    same(reference.recency.grad, network.interest.recency.grad)
    ours = [each for each in network.modules() if isinstance(each, Dice)]
    theirs = [each for each in reference.modules() if isinstance(each, MaskedDice)]
    by_width = {len(each.alpha): each for each in theirs}
    assert len(ours) == len(theirs) == len(by_width)
    for dice in ours:
        twin = by_width[len(dice.alpha)]
        same(twin.alpha.grad, dice.alpha.grad)


def same(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), atol=1e-5, rtol=1e-4)


def test_dropped_behaviours_leave_ref_as_they_leave_ours(sets: dict[str, Dataset]) -> None:
    """With nearly all behaviours dropped both train, and no logit depends on the masked ones."""
    network = network_of(sets["train"], behaviour_dropout=0.5)
    step = ReferenceTraining(network, sets["train"], FitConfig(size=32), seed=0)
    assert step.network.behaviour_dropout == 0.5
    assert step.step() == 32


def test_ref_learns(sets: dict[str, Dataset]) -> None:
    """Steps of REF change every table that occurs, and its loss is finite."""
    network = network_of(sets["train"])
    reference = ReferenceTraining(network, sets["train"], FitConfig(size=32), seed=0)
    before = reference.network.embeddings.weights()["item_id"].detach().clone()
    for _ in range(3):
        reference.step()
    after = reference.network.embeddings.weights()["item_id"]
    assert torch.isfinite(after).all()
    assert (after != before).any()


@pytest.mark.parametrize("unit", ["dice", "sigmoid"])
def test_the_graph_yardstick_compares_the_same_function(unit: Activation) -> None:
    """Ours on the grid, as exported, and REF give the same logits; a row for each shape."""
    encoder = graph.encoder(longest=12)
    network = graph.network(encoder, unit)
    reference = Reference(network, own=False).eval()
    pair = graph.Pair(
        encoder,
        network,
        lambda batch: network(Tensors.of(batch, dense=True))[0].detach().numpy(),
        lambda batch: reference(Tensors.of(batch))[0].detach().numpy(),
    )
    rows = graph.measure(pair, [(1, 2), (12, 5), (5, 12)], rounds=1, peak=1e9)
    assert [(row["T"], row["N"]) for row in rows] == [(1, 2), (12, 5), (5, 12)]
    assert all(row["same"] for row in rows), rows
    assert all(row["ratio"]["median"] > 0 for row in rows)


def test_the_training_yardstick_measures_both(sets: dict[str, Dataset]) -> None:
    """A row has both rates; what they are is not asserted."""
    row = training.measure(sets, rounds=1, seconds=0.01)
    assert row["ours_per_s"]["median"] > 0
    assert row["reference_per_s"]["median"] > 0


def test_ref_is_trained_as_ours_is() -> None:
    """Where each batch has all impressions, so that neither order nor sparse updates matter, both
    rank alike after several steps: closer to each other than seeds are."""
    small = training.prepare(World(users=12, items=40, categories=10, interests=3).logs(40))
    assert len(small["train"]) <= FitConfig().size
    told = list[tuple[str, int, int]]()
    rows, over = quality.measure(small, 2, 4.0, lambda *each: told.append(each[:3]))
    assert told[-1] == ("REF, seed 1", 4, 4)
    first, second = rows
    assert abs(first["reference_gauc"] - second["reference_gauc"]) > 0.02
    for row in rows:
        assert row["ours_gauc"] == pytest.approx(row["reference_gauc"], abs=0.005)
    assert abs(over["difference"]) < 0.005


def test_figures_come_with_their_spread() -> None:
    """Median and quartiles of the interleaved turns."""
    taken = measure.interleaved({"a": lambda: 1.0, "b": lambda: 2.0}, rounds=3)
    assert measure.spread(taken["b"] / taken["a"]) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert np.all(taken["a"] == 1)
