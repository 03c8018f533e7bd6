"""Export: a trained network and its calibration to one ONNX graph, behind a parity gate.

The graph takes what it reads of `Batch.feeds()` and gives ``logit`` [C, tasks], calibrated, and
``weight`` [C, L]. Users, candidates and lengths are dynamic. `parity` compares it with the network
in float64.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
import torch._inductor.config  # seconds that torch would take at first use: `training.loading`
from torch import Tensor, nn

from model.contract.batch import Batch, merge
from model.contract.encode import Encoder
from model.dien import AUGRU
from model.din import LocalActivationUnit
from model.layers import MLP
from model.network import Network
from model.tensors import Dense, Tensors
from terminal.progress import Update, quiet
from training.calibrate import Calibration
from training.fold import fold
from training.loading import loading
from training.recurrent import AUGRUNode, RecurrentNode
from training.unit import UnitNode

OPSET = 20
TOLERANCE = 1e-5
CANDIDATES = (1, 2, 7, 500)
TRACED, COMPARED = "trace to ONNX", "compare with PyTorch"
# The exporter imports most of itself when it is first used; then it says each of 4 steps begun and
# done (trace, decompose, translate, optimise), which take about as long as 100 modules.
MODULES, STEPS, STEP = 950, 8, 100

Logits = npt.NDArray[np.float32]


class ParityError(ValueError):
    """The exported graph does not compute what the network computes."""


class Calibrated(nn.Module):
    """The network with its calibration, on the named inputs of the graph."""

    def __init__(self, network: nn.Module, calibration: Calibration, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)
        self.register_buffer("slope", torch.tensor(calibration.slope))
        self.register_buffer("offset", torch.tensor(calibration.offset))

    def forward(self, *arrays: Tensor) -> tuple[Tensor, Tensor]:
        feeds = dict(zip(self.names, arrays, strict=True))
        dense = Dense(**{name: feeds.pop(name) for name in Dense._fields})
        for name in {"user", "ad", "context"} - set(feeds):  # groups without fields are no inputs
            rows = feeds["history" if name == "user" else "item"].shape[0]
            feeds[name] = feeds["item"].new_zeros((rows, 0))
        stop = dense.length.index_select(0, feeds["owner"])
        tensors = Tensors(**feeds, start=stop * 0, stop=stop, dense=dense)
        logit, weight = self.network(tensors)
        return logit * self.slope + self.offset, weight


class _Said(io.TextIOBase):
    """Takes what the exporter prints, and counts the steps that it says are begun or done."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def write(self, text: str) -> int:
        self._count(STEP * text.count("[torch.onnx]"))  # before each line
        return len(text)


def export(
    network: nn.Module, calibration: Calibration, encoder: Encoder, update: Update = quiet
) -> bytes:
    """The graph as ONNX bytes. All sizes are dynamic; its inputs are what the network reads.

    Raises `ParityError` for a weight that is not finite.
    """
    # No size of the example, nor one that follows from it, may be 1: the exporter would fix it.
    length = 2 * encoder.schema.history_length + 9
    feeds = random_batch(encoder, users=3, length=length, candidates=7, seed=0).feeds()
    dynamic = torch.export.Dim.DYNAMIC
    shapes = [
        {0: dynamic, 1: dynamic} if name in ("history", "ts", "grid") else {0: dynamic}
        for name in feeds
    ]
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ParityError(f"{name}: a weight is not finite")
    network = copy.deepcopy(network).eval()
    functions = _prepared(network)
    module = Calibrated(network, calibration, list(feeds)).eval()
    for chatty in ("torch.onnx", "onnxscript"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        loading(update, TRACED, MODULES + STEPS * STEP) as count,
        redirect_stdout(_Said(count)),
    ):
        warnings.simplefilter("ignore")  # the exporter's own deprecations; parity is the judge
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(array) for array in feeds.values()),
            dynamic_shapes=(tuple(shapes),),
            input_names=list(feeds),
            output_names=["logit", "weight"],
            opset_version=OPSET,
            dynamo=True,
            verbose=True,
        )
    assert program is not None
    inputs = program.model.graph.inputs
    inputs[:] = [each for each in inputs if each.uses()]  # what this network does not read
    graph = program.model_proto
    graph.functions.extend(functions)
    return bytes(graph.SerializeToString())


def _prepared(network: nn.Module) -> list[onnx.FunctionProto]:
    """Bring our network into the form that is exported; the functions its graph will call."""
    if not isinstance(network, Network):  # a reference is exported as it is
        return []
    for each in [each for each in network.modules() if isinstance(each, MLP)]:
        each.layers = fold(each.layers).float()
    functions = []
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            match layer:
                case LocalActivationUnit():
                    node: nn.Module = UnitNode(layer)
                case AUGRU():
                    node = AUGRUNode(layer)
                case nn.GRU() | nn.LSTM():
                    node = RecurrentNode(layer)
                case _:
                    continue
            setattr(parent, name, node)
            if isinstance(node, UnitNode | AUGRUNode):
                functions.append(node.function(OPSET))
    return functions


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """An onnxruntime session on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(graph: onnxruntime.InferenceSession, batch: Batch) -> Logits:
    """Logits [C, tasks] of a batch."""
    feeds = batch.feeds()
    wanted = {each.name for each in graph.get_inputs()}
    logits: Logits = graph.run(["logit"], {k: v for k, v in feeds.items() if k in wanted})[0]
    return logits


def parity(
    network: Network,
    calibration: Calibration,
    encoder: Encoder,
    graph: bytes,
    update: Update = quiet,
) -> dict[str, float]:
    """The largest |dlogit| per case between the graph and the network in float64.

    N in {1, 2, 7, 500} candidates, T in {0, 1, 5, max} behaviours, ids known and unknown, one
    user and several. Raises `ParityError` above 1e-5.
    """
    exact = copy.deepcopy(network).double().eval()
    loaded = session(graph)
    longest = encoder.schema.history_length
    cases = {
        f"N={candidates} T={length}": random_batch(encoder, 1, length, candidates, seed=candidates)
        for length in sorted({0, 1, min(5, longest), longest})
        for candidates in CANDIDATES
    }
    several = [
        random_batch(encoder, 1, t, n, seed=t)
        for t, n in zip((0, min(5, longest), longest), (7, 2, 1), strict=True)
    ]
    cases["several users"] = merge(several)
    cases["unknown ids"] = random_batch(encoder, 2, min(5, longest), 7, seed=1, unknown=True)
    worst: dict[str, float] = {}
    for case, batch in cases.items():
        update(COMPARED, len(worst), len(cases), {})
        worst[case] = difference = _difference(exact, calibration, loaded, batch)
        if not difference <= TOLERANCE:
            raise ParityError(f"{case}: a logit is off by {difference:.2e}, more than {TOLERANCE}")
    update(COMPARED, len(worst), len(cases), {})
    return worst


def exact_logits(
    network: nn.Module, calibration: Calibration, batch: Batch
) -> npt.NDArray[np.float64]:
    """Calibrated logits [C, tasks] of a network already in float64 and eval mode."""
    with torch.inference_mode():
        return calibration.apply(network(Tensors.of(batch))[0].numpy())


def _difference(
    exact: nn.Module, calibration: Calibration, graph: onnxruntime.InferenceSession, batch: Batch
) -> float:
    return float(np.abs(run(graph, batch) - exact_logits(exact, calibration, batch)).max())


def random_batch(
    encoder: Encoder, users: int, length: int, candidates: int, *, seed: int, unknown: bool = False
) -> Batch:
    """A batch of rows drawn uniformly from the tables; all OOV when ``unknown``."""
    generator = np.random.default_rng(seed)
    schema = encoder.schema

    def rows(group: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        columns = [
            generator.integers(
                1, 2 if unknown else encoder.tables[field.table].size, (*shape, field.width)
            )
            for field in getattr(schema, group)
        ]
        return np.concatenate([np.zeros((*shape, 0), np.int64), *columns], -1)

    owner = np.sort(generator.integers(0, users, candidates))
    arrays = {
        "history": np.concatenate([rows(g, (users, length)) for g in ("item", "behaviour")], -1),
        "user": rows("user", (users,)),
        **{group: rows(group, (candidates,)) for group in ("item", "ad", "context")},
    }
    # Some pauses end a session, and some do not.
    pauses = generator.integers(0, 2 * (schema.session_gap or 0) + 2, (users, length))
    return Batch(
        **arrays,
        ts=pauses.cumsum(1),
        owner=owner,
        start=np.zeros(candidates, np.int64),
        stop=np.full(candidates, length),
    )
