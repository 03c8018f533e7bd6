"""What a model costs: its parameters, the size of its graph, and the latency of scoring with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.onnx.errors import OnnxExporterError

from model.contract.encode import Encoder
from model.network import Network
from training.calibrate import Calibration
from training.export import ParityError, export, parity, random_batch, session
from training.run import Run

LENGTH, CANDIDATES = 100, 500
WARM_UP, ROUNDS = 3, 30


class ExportError(ValueError):
    """A network that has no graph, and why."""


def parameters(network: Network) -> dict[str, int]:
    """Trained numbers in embedding tables of ids, and in all other layers."""
    tables = {
        id(weight): weight.numel()
        for module in network.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for weight in module.parameters()
    }
    every = sum(weight.numel() for weight in network.parameters())
    return {"tables": sum(tables.values()), "layers": every - sum(tables.values())}


def file(run: Run) -> Path:
    """Where the graph of a run is kept."""
    return run.folder / "model.onnx"


def graph(run: Run, network: Network, calibration: Calibration, encoder: Encoder) -> Path:
    """The ``model.onnx`` of a bundle of this run, beside its weights; one that is there has been
    held against PyTorch. Raises `ExportError`.
    """
    path = file(run)
    if not path.exists():
        try:
            content = export(network, calibration, encoder)
            parity(network, calibration, encoder, content)
        except (ParityError, OnnxExporterError) as error:
            raise ExportError(" ".join(str(error).split())[:300]) from None
        unfinished = path.with_name(".model.onnx")
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    return path


def latency(
    graphs: Mapping[str, Path],
    encoder: Encoder,
    turned: Callable[[], None],
    rounds: int = ROUNDS,
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Milliseconds of a call by label (median, quartiles), and what a call holds.

    One user of T = 100 behaviours, whatever the schema keeps (ages that a model has no term for
    have that of the oldest), and N = 500 candidates, in onnxruntime on one CPU thread. The models
    take turns, after a warm-up, so that what else the machine does falls on all alike; each round
    of them is told.
    """
    feeds = random_batch(encoder, 1, LENGTH, CANDIDATES, seed=0).feeds()
    sessions = {label: session(path.read_bytes()) for label, path in graphs.items()}
    inputs = {label: {each.name for each in s.get_inputs()} for label, s in sessions.items()}
    taken: dict[str, list[float]] = {label: [] for label in graphs}
    for turn in range(WARM_UP + rounds):
        for label, each in sessions.items():
            given = {name: array for name, array in feeds.items() if name in inputs[label]}
            begin = time.perf_counter()
            each.run(["logit"], given)
            if turn >= WARM_UP:
                taken[label].append((time.perf_counter() - begin) * 1e3)
        turned()
    names = ("quarter", "median", "three_quarters")
    found = {
        label: dict(zip(names, np.quantile(ms, [0.25, 0.5, 0.75]).tolist(), strict=True))
        for label, ms in taken.items()
    }
    return found, {"behaviours": LENGTH, "candidates": CANDIDATES, "calls": rounds}


def machine() -> dict[str, Any]:
    """Where timings were taken."""
    name = ""
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "onnxruntime": onnxruntime.__version__,
    }
