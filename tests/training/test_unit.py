"""The attention unit's hand-written graph: the same weights as the network in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model.contract.encode import Encoder
from model.din import Attention
from tests.training.test_export import lively
from training import unit
from training.calibrate import Calibration
from training.dataset import learn_encoder
from training.export import exact_logits, export, random_batch, run, session
from training.fold import fold
from training.world import World


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return learn_encoder(World(users=20, items=60, categories=20, seed_clicks=5).logs(30))


@pytest.mark.parametrize(
    "options",
    [
        {"attention": [8, 4], "attention_activation": "dice"},
        {"attention": [6], "attention_activation": "sigmoid", "weights": "softmax"},
        {"attention": [8, 6, 4], "attention_activation": "prelu"},
        {"attention": [5, 3], "attention_activation": "relu", "recency": False},
        {"attention": [7, 3], "interaction": "product"},
        {"attention": [7, 3], "interaction": "outer"},
        {"attention": [6], "attention_activation": "relu", "interaction": "outer"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_chunk_of_every_shape_is_scored_exactly(
    encoder: Encoder, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More candidates than behaviours or fewer, whole chunks and parts, one user and several."""
    monkeypatch.setattr(unit, "CHUNK", 12)
    network = lively(encoder, "din", head=[4], **options)
    graph = session(export(network, Calibration.identity(1), encoder))
    exact = network.double()
    for users, length, candidates in (
        (1, 5, 12),  # a row of own fills a chunk
        (1, 5, 40),  # more than fills it
        (1, 4, 5),  # 2 rows a chunk: 2 chunks
        (1, 7, 5),  # by candidate, the last chunk smaller
        (1, 5, 5),
        (1, 1, 1),
        (1, 0, 9),
        (3, 6, 20),
        (4, 9, 6),
    ):
        batch = random_batch(encoder, users, length, candidates, seed=length)
        expected = exact_logits(exact, Calibration.identity(1), batch)
        # float32 tells logits of 45, as these weights give, to 4e-6 at best.
        np.testing.assert_allclose(run(graph, batch), expected, rtol=5e-7, atol=1e-5)
        assert candidates == 1 or expected.std() > 0.01


def test_folding_changes_no_value(encoder: Encoder) -> None:
    """The folded layers are the layers, also where an alpha is 1 and a Dice has no gain."""
    network = lively(encoder, "din", attention=[8, 4], head=[4], dropout=0.5).double()
    attention = network.interest
    assert isinstance(attention, Attention)
    layers = torch.nn.Sequential(
        attention.unit.first, attention.unit.first_activation, *attention.unit.rest
    ).eval()
    with torch.no_grad():
        layers[1].alpha[0] = 1  # type: ignore[union-attr, index, operator]
        x = torch.randn(50, layers[0].in_features, dtype=torch.float64)  # type: ignore[call-overload]
        expected = layers(x)
        torch.testing.assert_close(fold(layers)(x), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1
