"""The engine: what onnxruntime is asked, and that requests may share a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model.contract.encode import Request
from model.contract.repository import Repository
from service.engine import EngineError, OnnxEngine, pick_provider, warm_up
from service.scorer import Job, cost, expit, run
from service.verify import Version, verify

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def version(repository: Path) -> Version:
    return verify(Repository(repository, "toy"), 1, lambda graph: OnnxEngine.open(graph, "cpu"))


def job(version: Version, behaviours: int, candidates: list[str], explain: bool = True) -> Job:
    encoder = version.encoder
    history = encoder.records([{"item_id": f"i{n}", "ts": n} for n in range(behaviours)])
    request = Request(candidates=candidates, history=history)
    batch, _ = encoder.encode(request)
    return Job(version, request, batch, explain)


def jobs_of(version: Version) -> list[Job]:
    return [
        job(version, 0, ["i1"]),
        job(version, 5, [f"i{n}" for n in range(40)]),
        job(version, 2, ["unheard-of", "i3", "i3"], explain=False),
    ]


def test_a_score_does_not_depend_on_who_shares_the_call(version: Version) -> None:
    """Jobs run together give the logits and weights they give alone."""
    jobs = jobs_of(version)
    for one, together in zip(jobs, run(jobs), strict=True):
        [alone] = run([one])
        np.testing.assert_allclose(together.logit, alone.logit, atol=1e-6)
        assert together.weight is not None
        assert together.weight.shape == (one.batch.candidates, one.behaviours)
        if one.explain:
            assert alone.weight is not None
            np.testing.assert_allclose(together.weight, alone.weight, atol=1e-6)
        else:
            assert alone.weight is None


def test_the_cost_of_a_call_is_its_padded_pairs(version: Version) -> None:
    """Users x most candidates x longest history; an empty history counts as one behaviour."""
    jobs = jobs_of(version)
    assert [cost([each]) for each in jobs] == [1, 200, 6]
    assert cost(jobs) == 3 * 40 * 5


def test_warm_up_runs_all_shapes(version: Version) -> None:
    """No shape that the warm-up tries fails on a real graph."""
    warm_up(version.engine, version.schema)


def test_auto_takes_what_is_there() -> None:
    """Without CUDA in onnxruntime the automatic choice is the CPU."""
    assert pick_provider("cpu") == "cpu"
    if not HAS_CUDA:
        assert pick_provider("auto") == "cpu"


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_where_there_is_none_is_an_error() -> None:
    """Asking for a device that is not there is never silently answered with the CPU."""
    with pytest.raises(EngineError, match="cuda"):
        pick_provider("cuda")


def test_the_probe_graph_runs() -> None:
    """The graph that probes for a device is one that onnxruntime loads and runs."""
    from service.engine import _IDENTITY

    session = onnxruntime.InferenceSession(_IDENTITY, providers=["CPUExecutionProvider"])
    [output] = session.run(None, {"x": np.array([3], np.float32)})
    assert output.tolist() == [3]


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    """A file that onnxruntime can't load gives an error of ours."""
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"model\.onnx"):
        OnnxEngine.open(tmp_path / "model.onnx", "cpu")


def graph(path: Path, output: str, value: float) -> Path:
    """item [C, F] -> ``output`` [C, 1], all of it ``value`` + 0 * item."""
    item = helper.make_tensor_value_info("item", TensorProto.INT64, ["C", "F"])
    scores = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["C", 1])
    constants: list[Any] = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("value", TensorProto.FLOAT, [], [value]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    nodes = [
        helper.make_node("Cast", ["item"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["real", "axis"], ["sum"]),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "value"], [output]),
    ]
    body = helper.make_graph(nodes, "g", [item], [scores], constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_without_logit_is_refused(tmp_path: Path) -> None:
    """A graph must have the output that is served."""
    with pytest.raises(EngineError, match="logit"):
        OnnxEngine.open(graph(tmp_path / "model.onnx", "score", 0.0), "cpu")


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path, version: Version) -> None:
    """NaN never leaves the engine."""
    broken = OnnxEngine.open(graph(tmp_path / "model.onnx", "logit", float("nan")), "cpu")
    with pytest.raises(EngineError, match="finite"):
        broken.run(job(version, 1, ["i1"]).batch)


def test_a_graph_without_attention_has_no_weights(tmp_path: Path, version: Version) -> None:
    """A model that weighs no behaviours is served; it explains nothing."""
    plain = OnnxEngine.open(graph(tmp_path / "model.onnx", "logit", 2.0), "cpu")
    scores = plain.run(job(version, 3, ["i1", "i2"]).batch, weight=True)
    assert scores.logit.tolist() == [[2.0], [2.0]]
    assert scores.weight is None


def test_probabilities_of_extreme_logits_do_not_overflow() -> None:
    """The sigmoid is exact at both ends, and warns of nothing."""
    with np.errstate(all="raise", under="ignore"):
        found = expit(np.array([-1000.0, -1.0, 0.0, 1.0, 1000.0]))
    np.testing.assert_allclose(found, [0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1], 1e-15, 1e-300)
