"""The attention unit's hand-written graph: the weights of the unit in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model.contract.encode import Encoder
from model.din import Attention, LocalActivationUnit
from tests.training.test_export import lively
from training import unit
from training.dataset import learn_encoder
from training.export import OPSET, session
from training.fold import fold
from training.world import World


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return learn_encoder(World(users=20, items=60, categories=20, seed_clicks=5).logs(30))


def graph(of: LocalActivationUnit) -> onnxruntime.InferenceSession:
    """The function that stands in for a unit in exported graphs, alone: q and k to weight."""
    node = unit.UnitNode(copy.deepcopy(of))
    call = helper.make_node(unit.NAME, ["q", "k", *node.names], ["weight"], domain=unit.DOMAIN)
    of_three_axes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None])
        for name in ("q", "k", "weight")
    ]
    constants = [numpy_helper.from_array(getattr(node, name).numpy(), name) for name in node.names]
    model = helper.make_model(
        helper.make_graph([call], "unit", of_three_axes[:2], of_three_axes[2:], constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(unit.DOMAIN, 1)],
        functions=[node.function(OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return session(model.SerializeToString())


@pytest.mark.parametrize(
    "options",
    [
        {"attention": [8, 4], "attention_activation": "dice"},
        {"attention": [6], "attention_activation": "sigmoid"},
        {"attention": [8, 6, 4], "attention_activation": "prelu"},
        {"attention": [5, 3], "attention_activation": "relu"},
        {"attention": [7, 3], "interaction": "product"},
        {"attention": [7, 3], "interaction": "outer"},
        {"attention": [6], "attention_activation": "relu", "interaction": "outer"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_chunk_of_every_shape_is_weighed_exactly(
    encoder: Encoder, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More candidates than behaviours or fewer, whole chunks and parts, one user and several."""
    monkeypatch.setattr(unit, "CHUNK", 12)
    attention = lively(encoder, "din", head=[4], **options).interest
    assert isinstance(attention, Attention)
    loaded, exact = graph(attention.unit), copy.deepcopy(attention.unit).double()
    generator = np.random.default_rng(0)
    for users, length, candidates in (
        (1, 5, 12),  # a row of own fills a chunk
        (1, 5, 40),  # more than fills it
        (1, 4, 5),  # 2 rows a chunk: 2 chunks
        (1, 7, 5),  # by candidate, the last chunk smaller
        (1, 5, 5),
        (1, 1, 1),
        (1, 1, 9),
        (3, 6, 20),
        (4, 9, 6),
    ):
        q, k = (
            generator.normal(0, 0.5, (users, rows, attention.width)).astype(np.float32)
            for rows in (candidates, length)
        )
        with torch.no_grad():
            expected = exact.grid(*(torch.from_numpy(each).double() for each in (q, k))).numpy()
        found = loaded.run(["weight"], {"q": q, "k": k})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
        assert expected.size == 1 or expected.std() > 0.01


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
