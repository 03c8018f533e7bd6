"""The engine: runs a bundle's graph. Knows arrays and devices, not requests.

`Engine` is what the rest of the service sees; `OnnxEngine` is onnxruntime behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.contract.batch import Batch
from model.contract.bundle import Reason
from model.contract.schema import Schema
from service.settings import Provider

Floats = npt.NDArray[np.float32]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_WARM_PAIRS = 100_000
_LARGEST_EXPONENT = 700.0  # of e, in float64
# An ONNX graph `y = Identity(x)`: shows whether the runtime really gets the device it offers.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


class EngineError(RuntimeError):
    """A provider or a graph that can't be used, and why: in words, and as one of the `Reason`s."""

    def __init__(self, message: str, reason: Reason = "engine") -> None:
        super().__init__(message)
        self.reason = reason


class Scores(NamedTuple):
    """``logit`` [C, tasks]; ``weight`` [C, L] of each behaviour for each candidate if asked."""

    logit: Floats
    weight: Floats | None = None


class Engine(Protocol):
    """Scores batches; may be called from several threads at a time."""

    @property
    def provider(self) -> str:
        """Where it runs: cpu or cuda."""
        ...

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        """Scores of a batch. Raises `EngineError` when one is not finite."""
        ...


def pick_provider(asked: Provider) -> str:
    """The provider to use, cpu or cuda. Raises `EngineError` for cuda where there is none."""
    if asked == "cpu":
        return "cpu"
    if _CUDA not in onnxruntime.get_available_providers():
        if asked == "cuda":
            raise EngineError("provider cuda: this onnxruntime has no CUDA; install the gpu extra")
        return "cpu"
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    if _CUDA in _session(_IDENTITY, "cuda", threads=1).get_providers():
        return "cuda"
    if asked == "cuda":
        raise EngineError("provider cuda: onnxruntime finds no usable CUDA device")
    return "cpu"


class OnnxEngine:
    """One graph in onnxruntime. ``threads`` compute one run; runs may go side by side."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._inputs = frozenset(each.name for each in session.get_inputs())
        self._outputs = frozenset(each.name for each in session.get_outputs())
        if "logit" not in self._outputs:
            raise EngineError("model.onnx: an output named logit expected")
        on_device = session.get_providers()[0] == _CUDA
        self._provider = "cuda" if on_device else "cpu"

    @classmethod
    def open(cls, graph: Path, provider: str, threads: int = 1) -> OnnxEngine:
        """Load a graph on a provider of `pick_provider`. Raises `EngineError`."""
        try:
            engine = cls(_session(str(graph), provider, threads))
        except EngineError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(f"model.onnx: {_first_line(error)}") from error
        if engine.provider != provider:
            raise EngineError(f"model.onnx: runs on {engine.provider}, not on {provider}")
        return engine

    @property
    def provider(self) -> str:
        return self._provider

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        names = ["logit", "weight"] if weight and "weight" in self._outputs else ["logit"]
        feeds = {name: a for name, a in batch.feeds().items() if name in self._inputs}
        try:
            logit, *rest = self._session.run(names, feeds)
        except Exception as error:  # as above
            reason: Reason = "engine" if self._takes(feeds) else "schema"
            raise EngineError(f"model.onnx: {_first_line(error)}", reason) from error
        if len(logit) != batch.candidates or not np.isfinite(logit).all():
            raise EngineError("model.onnx: a score is missing or not finite", "not_finite")
        return Scores(logit, rest[0] if rest else None)

    def _takes(self, feeds: Mapping[str, npt.NDArray[np.int64]]) -> bool:
        """Whether the graph's inputs are among these, of the same rank, and as wide where it says
        how wide: else it was made for another schema."""
        for each in self._session.get_inputs():
            found = feeds.get(each.name)
            if found is None or each.type != "tensor(int64)" or found.ndim != len(each.shape):
                return False
            if isinstance(each.shape[-1], int) and each.shape[-1] != found.shape[-1]:
                return False
        return True


def expit(logit: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-logit)) in float64, without overflow."""
    found: npt.NDArray[np.float64] = np.negative(logit, dtype=np.float64)
    np.minimum(found, _LARGEST_EXPONENT, out=found)
    np.exp(found, out=found)
    found += 1.0
    np.reciprocal(found, out=found)
    return found


def warm_up(engine: Engine, schema: Schema) -> None:
    """Run the shapes a service meets, so that no request pays for first allocations."""
    for batch in _shapes(schema):
        engine.run(batch)
        engine.run(batch, weight=True)


def _shapes(schema: Schema) -> Iterator[Batch]:
    """No, one and the most behaviours; few and many candidates."""
    for length in (0, 1, schema.history_length):
        for count in (1, 64, max(1, min(500, _WARM_PAIRS // max(1, length)))):
            yield of_padding(schema, count, length)


def of_padding(schema: Schema, candidates: int, behaviours: int) -> Batch:
    """A request of a size, all of it PAD, each behaviour a session of its own."""
    width = schema.width("item") + schema.width("behaviour")
    owner = np.zeros(candidates, np.int64)
    return Batch(
        history=np.zeros((1, behaviours, width), np.int64),
        ts=np.arange(behaviours)[None] * (1 + (schema.session_gap or 0)),
        user=np.zeros((1, schema.width("user")), np.int64),
        item=np.zeros((candidates, schema.width("item")), np.int64),
        ad=np.zeros((candidates, schema.width("ad")), np.int64),
        context=np.zeros((candidates, schema.width("context")), np.int64),
        owner=owner,
        start=owner,
        stop=owner + behaviours,
    )


def _session(graph: str | bytes, provider: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # A thread that spins between runs takes the core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [_CUDA, _CPU] if provider == "cuda" else [_CPU]
    return onnxruntime.InferenceSession(graph, options, providers=providers)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]
