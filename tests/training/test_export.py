"""The export: the graph computes what the network computes, or there is no graph."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from model.contract import bundle
from model.contract.batch import Batch, merge
from model.contract.encode import Encoder
from model.contract.repository import Repository
from model.network import Network
from model.zoo import CONFIGS, configure
from service.engine import OnnxEngine
from service.sweep import sweep
from service.verify import TOLERANCE
from training.calibrate import Calibration
from training.dataset import learn_encoder
from training.export import (
    MODULES,
    STEP,
    STEPS,
    ParityError,
    exact_logits,
    export,
    parity,
    random_batch,
    run,
    session,
)
from training.golden import golden_requests
from training.logs import Logs
from training.world import World

CALIBRATION = Calibration((1.3,), (-0.4,))
TWO = Calibration((1.3, 0.8), (-0.4, 0.2))
SMALL: dict[str, Any] = {"dim": 4, "head": [8]}
CROSSINGS: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({}, "logs"),
    "fnn": (SMALL, "logs"),
    "wide_deep": (SMALL, "shop_logs"),
    "pnn": ({**SMALL, "products": "both"}, "logs"),
    "deepfm": (SMALL, "logs"),
    "nfm": ({**SMALL, "head_activation": "dice"}, "logs"),
}
SEVERAL: dict[str, dict[str, Any]] = {
    "shared_bottom": {"bottom": [6]},
    "mmoe": {"experts": 3, "expert": [6]},
    "ple": {"expert": [6], "task_experts": 1, "head_activation": "prelu"},
    "esmm": {},
}


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
    """A network with its graph, and the logs that it is for."""

    def __init__(self, logs: Logs, model: str, **options: Any) -> None:
        self.logs, self.encoder = logs, learn_encoder(logs)
        self.network = lively(self.encoder, model, **options)
        self.calibration = CALIBRATION if len(logs.schema.tasks) == 1 else TWO
        self.told: list[tuple[str, int, int]] = []
        self.graph = export(self.network, self.calibration, self.encoder, self.tell)
        self.session = session(self.graph)

    def tell(self, stage: str, done: int, total: int, figures: object) -> None:
        self.told.append((stage, done, total))

    def batch(self, users: int, length: int, candidates: int, **how: Any) -> Batch:
        return random_batch(self.encoder, users, length, candidates, **how)


@pytest.fixture(scope="module")
def logs() -> Logs:
    """No user and no ad fields; the shop with all of them is exported in test_job.py."""
    return World(users=20, items=60, categories=20, seed_clicks=5).logs(30)


@pytest.fixture(scope="module")
def two_tasks() -> Logs:
    """Clicks and conversions, with a user field."""
    world = World(users=20, items=60, categories=20, seed_clicks=5, conversions=True)
    return world.logs(30)


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest) -> Callable[[str], Exported]:
    """Any model of the zoo, exported once."""

    @cache
    def made(model: str) -> Exported:
        if model in CROSSINGS:
            options, logs = CROSSINGS[model]
            return Exported(request.getfixturevalue(logs), model, **options)
        if model in SEVERAL:
            options = {"attention": [6], "weights": "softmax", "head": [6], **SEVERAL[model]}
            return Exported(request.getfixturevalue("two_tasks"), model, **options)
        found: Exported = request.getfixturevalue(model)
        return found

    return made


@pytest.fixture(scope="module")
def din(logs: Logs) -> Exported:
    return Exported(
        logs,
        "din",
        dim=4,
        weights="softmax",
        attention=[6],
        attention_activation="prelu",
        head=[8],
    )


@pytest.fixture(scope="module")
def base(logs: Logs) -> Exported:
    return Exported(logs, "base", dim=4, pooling="mean", product=True, head=[8])


@pytest.fixture(scope="module")
def din_outer(logs: Logs) -> Exported:
    return Exported(logs, "din", interaction="outer", weights="softmax", attention=[6], head=[8])


@pytest.fixture(scope="module")
def dien(logs: Logs) -> Exported:
    return Exported(logs, "dien", head=[8])


@pytest.fixture(scope="module")
def dsin(logs: Logs) -> Exported:
    return Exported(logs, "dsin", head=[8])


@pytest.fixture(scope="module")
def transformer(logs: Logs) -> Exported:
    return Exported(logs, "transformer", dim=4, head=[8])


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


@pytest.mark.parametrize("model", CROSSINGS)
def test_the_graph_of_a_crossing_is_the_network(
    model: str, exported: Callable[[str], Exported]
) -> None:
    """Within 1e-5; the shop has two tasks, and fields of every group and kind."""
    made = exported(model)
    worst = parity(made.network, made.calibration, made.encoder, made.graph)
    assert 0 < max(worst.values()) <= 1e-5
    batches = [made.batch(2, t, n, seed=t) for t, n in ((0, 3), (4, 40), (1, 1))]
    alone = np.concatenate([run(made.session, each) for each in batches])
    np.testing.assert_allclose(run(made.session, merge(batches)), alone, rtol=0, atol=1e-5)
    assert alone.std() > 0.1


def test_how_far_it_is_is_counted(din: Exported) -> None:
    """In modules and the exporter's own steps, then in cases compared; all of them in the end."""
    total = MODULES + STEPS * STEP
    assert {(stage, of) for stage, _, of in din.told} == {("trace to ONNX", total)}
    traced = [done for _, done, _ in din.told]
    assert traced[0] == 0
    assert traced == sorted(traced)
    assert traced[-1] == total
    steps = [after - before for before, after in itertools.pairwise(traced)]
    assert steps.count(STEP) in (STEPS - 1, STEPS)  # the last may be cut
    parity(din.network, CALIBRATION, din.encoder, din.graph, din.tell)
    compared = [done for stage, done, total in din.told if stage == "compare with PyTorch"]
    cases = len(compared) - 1
    assert compared == list(range(cases + 1))
    assert din.told[-1] == ("compare with PyTorch", cases, cases)


@pytest.mark.parametrize("model", CONFIGS)
def test_a_service_takes_a_version_of_every_model(
    model: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Its files, the encoding of its golden requests, their scores on the service's engine, and
    every row of its tables."""
    made = exported(model)
    requests = golden_requests(made.logs)
    batch = bundle.encode_golden(made.encoder, requests)
    exact = exact_logits(copy.deepcopy(made.network).double(), made.calibration, batch)
    assert exact.std() > 0.1
    repository = Repository(tmp_path, made.logs.schema.name)
    number = repository.publish(
        lambda folder: bundle.write(
            folder,
            schema_text=made.logs.schema_text,
            encoder=made.encoder,
            graph=made.graph,
            golden=bundle.Golden(requests, batch, exact.astype(np.float32)),
            metrics={},
            lineage={},
        )
    )
    opened = repository.open(number)
    opened.check_encoding()
    engine = OnnxEngine.open(opened.graph, "cpu")
    opened.check_scores(lambda golden: engine.run(golden).logit, TOLERANCE["cpu"])
    sweep(engine, opened.encoder)


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


@pytest.mark.parametrize("model", SEVERAL)
def test_the_graph_of_several_tasks_is_the_network(
    model: str, exported: Callable[[str], Exported]
) -> None:
    """Experts that end in Dice, gates and products: all tasks within 1e-5 in every case."""
    made = exported(model)
    worst = parity(made.network, made.calibration, made.encoder, made.graph)
    assert 0 < max(worst.values()) <= 1e-5


def test_a_product_keeps_its_logit_where_probabilities_do_not(
    exported: Callable[[str], Exported],
) -> None:
    """Towers that are certain, of either task: the graph's float32 holds to float64."""
    encoder = exported("esmm").encoder
    network = copy.deepcopy(exported("esmm").network)
    with torch.no_grad():
        for tower in network.head.towers:
            tower.layers[-1].weight *= 200
            tower.layers[-1].bias *= 0
    exact = copy.deepcopy(network).double()
    batch = random_batch(encoder, 3, 4, 1000, seed=1)
    own: list[torch.Tensor] = []
    for tower in exact.head.towers:
        tower.register_forward_hook(lambda *call: own.append(call[2][:, 0]))
    expected = exact_logits(exact, TWO, batch)
    click, conversion = own
    for signs in itertools.product((1, -1), repeat=2):
        assert ((signs[0] * click > 40) & (signs[1] * conversion > 40)).any()
    found = run(session(export(network, TWO, encoder)), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
