"""The export: the graph computes what the network computes, or there is no graph."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from model.contract.batch import Batch, merge
from model.contract.encode import Encoder
from model.network import Network
from model.zoo import configure
from training.calibrate import Calibration
from training.dataset import learn_encoder
from training.export import (
    ParityError,
    exact_logits,
    export,
    parity,
    random_batch,
    run,
    session,
)
from training.world import World

CALIBRATION = Calibration((1.3,), (-0.4,))


def lively(encoder: Encoder, model: str, **options: Any) -> Network:
    """A network whose weights are large enough to matter, as trained ones are."""
    torch.manual_seed(0)
    sizes = {name: table.size for name, table in encoder.tables.items()}
    network = configure(model, options).build(encoder.schema, sizes).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(0, 0.5)
            if ".tables." in name or ".gates." in name:
                value[0] = 0
    return network


class Exported:
    """A network with its graph."""

    def __init__(self, encoder: Encoder, model: str, **options: Any) -> None:
        self.encoder, self.network = encoder, lively(encoder, model, **options)
        self.told: list[tuple[str, int, int]] = []
        self.graph = export(self.network, CALIBRATION, encoder, self.tell)
        self.session = session(self.graph)

    def tell(self, stage: str, done: int, total: int, figures: object) -> None:
        self.told.append((stage, done, total))

    def batch(self, users: int, length: int, candidates: int, **how: Any) -> Batch:
        return random_batch(self.encoder, users, length, candidates, **how)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """No user and no ad fields; the shop with all of them is exported in test_job.py."""
    return learn_encoder(World(users=20, items=60, categories=20, seed_clicks=5).logs(30))


@pytest.fixture(scope="module")
def din(encoder: Encoder) -> Exported:
    return Exported(
        encoder,
        "din",
        dim=4,
        weights="softmax",
        attention=[6],
        attention_activation="prelu",
        head=[8],
    )


@pytest.fixture(scope="module")
def base(encoder: Encoder) -> Exported:
    return Exported(encoder, "base", dim=4, pooling="mean", product=True, head=[8])


@pytest.fixture(scope="module")
def din_outer(encoder: Encoder) -> Exported:
    return Exported(encoder, "din", interaction="outer", weights="softmax", attention=[6], head=[8])


@pytest.fixture(scope="module")
def dien(encoder: Encoder) -> Exported:
    return Exported(encoder, "dien", head=[8])


@pytest.fixture(scope="module")
def dsin(encoder: Encoder) -> Exported:
    return Exported(encoder, "dsin", head=[8])


@pytest.fixture(scope="module")
def transformer(encoder: Encoder) -> Exported:
    return Exported(encoder, "transformer", dim=4, head=[8])


EVERY = ["din", "base", "din_outer", "dien", "dsin", "transformer"]


@pytest.mark.parametrize("name", EVERY)
def test_the_graph_is_the_network(name: str, request: pytest.FixtureRequest) -> None:
    """Every size, unknown ids and several users: within 1e-5, and every case was tried."""
    made: Exported = request.getfixturevalue(name)
    worst = parity(made.network, CALIBRATION, made.encoder, made.graph)
    longest = made.encoder.schema.history_length
    for candidates in (1, 2, 7, 500):
        for length in (0, 1, 5, longest):
            assert f"N={candidates} T={length}" in worst
    assert {"several users", "unknown ids"} <= set(worst)
    assert 0 < max(worst.values()) <= 1e-5


SMALL: dict[str, Any] = {"dim": 4, "head": [8]}


@pytest.mark.parametrize(
    ("model", "options", "logs"),
    [
        ("lr", {}, "encoder"),
        ("fnn", SMALL, "encoder"),
        ("wide_deep", SMALL, "shop_encoder"),
        ("pnn", {**SMALL, "products": "both"}, "encoder"),
        ("deepfm", SMALL, "encoder"),
        ("nfm", {**SMALL, "head_activation": "dice"}, "encoder"),
    ],
)
def test_the_graph_of_a_crossing_is_the_network(
    model: str, options: dict[str, Any], logs: str, request: pytest.FixtureRequest
) -> None:
    """Within 1e-5; the shop has two tasks, and fields of every group and kind."""
    of: Encoder = request.getfixturevalue(logs)
    tasks = len(of.schema.tasks)
    calibration = Calibration((1.3, 0.7)[:tasks], (-0.4, 0.2)[:tasks])
    network = lively(of, model, **options)
    graph = export(network, calibration, of)
    assert 0 < max(parity(network, calibration, of, graph).values()) <= 1e-5
    batches = [random_batch(of, 2, t, n, seed=t) for t, n in ((0, 3), (4, 40), (1, 1))]
    loaded = session(graph)
    alone = np.concatenate([run(loaded, each) for each in batches])
    np.testing.assert_allclose(run(loaded, merge(batches)), alone, rtol=0, atol=1e-5)
    assert alone.std() > 0.1


def test_how_far_it_is_is_counted(din: Exported) -> None:
    """In the exporter's own steps, then in cases compared; all of them in the end."""
    told = list(dict.fromkeys(din.told))
    parity(din.network, CALIBRATION, din.encoder, din.graph, din.tell)
    assert told == [("trace to ONNX", done, 4) for done in range(5)]
    compared = [done for stage, done, total in din.told if stage == "compare with PyTorch"]
    cases = len(compared) - 1
    assert compared == list(range(cases + 1))
    assert din.told[-1] == ("compare with PyTorch", cases, cases)


def test_the_calibration_is_part_of_the_graph(din: Exported) -> None:
    """The graph's logits are the network's times slope plus offset."""
    batch = din.batch(3, 4, 20, seed=5)
    plain = exact_logits(din.network, Calibration.identity(1), batch)
    assert plain.std() > 0.1
    expected = plain * 1.3 - 0.4
    np.testing.assert_allclose(run(din.session, batch), expected, rtol=0, atol=1e-5)


def test_a_graph_asks_for_what_its_network_reads(base: Exported, dsin: Exported) -> None:
    """Neither times, nor a grid of candidates, where all of a user's have one interest."""
    inputs = {each.name for each in base.session.get_inputs()}
    assert inputs == {"history", "item", "context", "owner", "length"}
    inputs = {each.name for each in dsin.session.get_inputs()}
    assert inputs == {"history", "ts", "item", "context", "length", "grid", "place"}


def test_a_graph_goes_by_the_sessions_of_a_request(dsin: Exported) -> None:
    """One, several, or as many as behaviours, more than the model was made for; in one call as
    alone."""
    batches = []
    for length, gaps in ((50, [0]), (50, [1]), (50, [0, 1, 0, 0]), (1, [0]), (60, [1])):
        pauses = np.resize(gaps, length)  # a page is a session: the gap is 0
        drawn = dsin.batch(1, length, 6, seed=3)
        batches.append(replace(drawn, ts=pauses.cumsum()[None]))
    exact = copy.deepcopy(dsin.network).double()
    expected = np.concatenate([exact_logits(exact, CALIBRATION, each) for each in batches])
    found = run(dsin.session, merge(batches))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    alone = np.concatenate([run(dsin.session, each) for each in batches])
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)
    assert np.abs(np.diff(expected.reshape(5, 6)[:3], axis=0)).max(1).min() > 1e-2


@pytest.mark.parametrize("name", EVERY)
def test_merging_requests_does_not_change_scores(name: str, request: pytest.FixtureRequest) -> None:
    """Requests of all lengths in one call score in onnxruntime as each alone."""
    made: Exported = request.getfixturevalue(name)
    batches = [
        made.batch(1, length, candidates, seed=length)
        for length, candidates in ((0, 3), (4, 9), (1, 1), (3, 40))
    ]
    alone = np.concatenate([run(made.session, batch) for batch in batches])
    np.testing.assert_allclose(run(made.session, merge(batches)), alone, rtol=0, atol=1e-5)
    assert alone.std() > 0.1


def test_a_graph_with_another_weight_is_refused(din: Exported) -> None:
    """Any change of a tensor that matters stops the export at the gate."""
    model = onnx.load_from_string(din.graph)
    largest = max(
        (each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT),
        key=lambda each: np.prod(each.dims),
    )
    changed = numpy_helper.to_array(largest).copy()
    changed[2:] += 1e-3
    largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
    with pytest.raises(ParityError, match=r"a logit is off by .*, more than 1e-05"):
        parity(din.network, CALIBRATION, din.encoder, model.SerializeToString())


def test_a_calibration_that_the_graph_does_not_have_is_refused(din: Exported) -> None:
    """The gate compares calibrated logits."""
    with pytest.raises(ParityError):
        parity(din.network, Calibration.identity(1), din.encoder, din.graph)


def test_a_graph_that_gives_no_numbers_is_refused(din: Exported) -> None:
    """NaN is no agreement."""
    model = onnx.load_from_string(din.graph)
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT:
            broken = np.full(tuple(each.dims), np.nan, np.float32)
            each.CopyFrom(numpy_helper.from_array(broken, each.name))
    with pytest.raises(ParityError, match="off by nan"):
        parity(din.network, CALIBRATION, din.encoder, model.SerializeToString())


def test_the_graph_says_how_much_each_behaviour_weighs(din: Exported) -> None:
    """Softmax weights [C, L] are zero outside what a candidate sees and add up to one within."""
    batch = merge([din.batch(1, 4, 3, seed=1), din.batch(1, 1, 2, seed=2)])
    found: onnxruntime.InferenceSession = din.session
    feeds = {each.name: batch.feeds()[each.name] for each in found.get_inputs()}
    weight = found.run(["weight"], feeds)[0]
    assert weight.shape == (5, 4)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)
    assert not weight[3:, 1:].any()


TWO = Calibration((1.3, 0.8), (-0.4, 0.2))
SEVERAL: dict[str, dict[str, Any]] = {
    "shared_bottom": {"bottom": [6]},
    "mmoe": {"experts": 3, "expert": [6]},
    "ple": {"expert": [6], "task_experts": 1, "head_activation": "prelu"},
    "esmm": {},
}


@pytest.fixture(scope="module")
def two_tasks() -> Encoder:
    """Clicks and conversions, with a user field."""
    world = World(users=20, items=60, categories=20, seed_clicks=5, conversions=True)
    return learn_encoder(world.logs(30))


def several(model: str, encoder: Encoder) -> Network:
    options = {"attention": [6], "weights": "softmax", "head": [6], **SEVERAL[model]}
    return lively(encoder, model, **options)


@pytest.mark.parametrize("model", SEVERAL)
def test_the_graph_of_several_tasks_is_the_network(model: str, two_tasks: Encoder) -> None:
    """Experts that end in Dice, gates and products: all tasks within 1e-5 in every case."""
    network = several(model, two_tasks)
    graph = export(network, TWO, two_tasks)
    assert 0 < max(parity(network, TWO, two_tasks, graph).values()) <= 1e-5


def test_a_product_keeps_its_logit_where_probabilities_do_not(two_tasks: Encoder) -> None:
    """Towers that are certain, of either task: the graph's float32 holds to float64."""
    network = several("esmm", two_tasks)
    with torch.no_grad():
        for tower in network.head.towers:
            tower.layers[-1].weight *= 200
            tower.layers[-1].bias *= 0
    exact = copy.deepcopy(network).double()
    batch = random_batch(two_tasks, 3, 4, 1000, seed=1)
    own: list[torch.Tensor] = []
    for tower in exact.head.towers:
        tower.register_forward_hook(lambda *call: own.append(call[2][:, 0]))
    expected = exact_logits(exact, TWO, batch)
    click, conversion = own
    for signs in itertools.product((1, -1), repeat=2):
        assert ((signs[0] * click > 40) & (signs[1] * conversion > 40)).any()
    found = run(session(export(network, TWO, two_tasks)), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
