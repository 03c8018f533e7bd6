"""The scoring graph: one call for one user, ours through the service's engine, REF as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.measure import interleaved, seconds, spread
from bench.reference import Reference
from model.contract.batch import Batch
from model.contract.catalogue import Catalogue
from model.contract.encode import Encoder, table_of
from model.contract.ids import Vocabulary
from model.contract.schema import Schema
from model.din import Attention, DINConfig
from model.layers import Activation, Dice
from model.network import Network
from service.engine import OnnxEngine
from training.calibrate import Calibration
from training.export import export, random_batch, run, session

WORLD = """
name = "bench"
history_length = {longest}

[[task]]
name = "ctr"

[[item]]
name = "item_id"

[[item]]
name = "category"
"""
SIZES = {"item_id": 10_000, "category": 100}
LONGEST = 500
DIM = 32  # of each of the two fields of an item, so D = 64
ATTENTION = (80, 40)
TOLERANCE = 1e-5


Score = Callable[[Batch], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Pair:
    """Ours and REF with the same weights: each takes a batch and gives logits [C, 1]."""

    encoder: Encoder
    network: Network
    ours: Score
    reference: Score


@dataclass(frozen=True)
class Exported:
    """A network's two graphs with the same weights, as ONNX."""

    encoder: Encoder
    network: Network
    ours: bytes
    reference: bytes

    def opened(self) -> Pair:
        """Both in onnxruntime: ours through the service's engine, REF in a session of its own."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(self.ours)
            engine = OnnxEngine.open(path, "cpu")
        naive = partial(run, session(self.reference))
        return Pair(self.encoder, self.network, lambda batch: engine.run(batch).logit, naive)


def encoder(longest: int) -> Encoder:
    """An encoder of the bench's schema: as many ids as `SIZES` says, each item in a category."""
    schema = Schema.parse(WORLD.format(longest=longest))
    texts = {name: [str(n) for n in range(size)] for name, size in SIZES.items()}
    tables = {
        name: table_of(field, Vocabulary.learn(texts[name], np.ones(SIZES[name], np.int64), 1))
        for name, field in schema.tables.items()
    }
    nothing = Catalogue.build([], np.zeros((0, schema.width("item")), np.int64))
    blank = Encoder(schema, tables, nothing)
    values = {name: [str(n % SIZES[name]) for n in range(SIZES["item_id"])] for name in SIZES}
    rows = np.concatenate([blank.column(each, values[each.name]) for each in schema.item], axis=1)
    return Encoder(schema, tables, Catalogue.build(texts["item_id"], rows))


def lively(network: Network) -> None:
    """Weights as large as training leaves them: a fresh network's logits are all close to 0."""
    with torch.no_grad():
        for weight in network.embeddings.weights().values():
            weight.mul_(20)
        attention = network.interest
        if isinstance(attention, Attention) and attention.recency is not None:
            attention.recency.normal_(0, 0.1)
        for module in network.modules():
            if isinstance(module, Dice):
                module.alpha.normal_(0, 0.3)
                module.norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]


def network(found: Encoder, unit: Activation) -> Network:
    """DIN with D = 64 and attention 80-40; ``unit`` is the attention's activation."""
    torch.manual_seed(0)
    config = DINConfig(dim=DIM, attention=ATTENTION, attention_activation=unit)
    sizes = {name: table.size for name, table in found.tables.items()}
    made = config.build(found.schema, sizes).eval()
    lively(made)
    return made


def exported(unit: Activation, longest: int = LONGEST) -> Exported:
    """Export ours and REF of one network."""
    found, plain = encoder(longest), Calibration.identity(1)
    ours = network(found, unit)
    naive = Reference(ours, own=False).eval()
    return Exported(found, ours, export(ours, plain, found), export(naive, plain, found))


def operations(candidates: int, behaviours: int, width: int, attention: Sequence[int]) -> int:
    """Floating point operations of the split attention: what an exact form can't do without."""
    per_pair = width * attention[0]
    per_pair += sum(a * b for a, b in zip(attention, (*attention[1:], 1), strict=True))
    return 2 * candidates * behaviours * (per_pair + width)


def measure(
    pair: Pair, shapes: Sequence[tuple[int, int]], rounds: int, peak: float
) -> list[dict[str, Any]]:
    """One row per (T, N): milliseconds of both, their ratio, our share of the sgemm peak."""
    rows = []
    for behaviours, candidates in shapes:
        batch = random_batch(pair.encoder, 1, behaviours, candidates, seed=candidates)
        ours, reference = pair.ours(batch), pair.reference(batch)  # and warm
        difference = float(np.abs(ours - reference).max())
        scale = max(1.0, float(np.abs(reference).max()))
        jobs = {
            "ours": partial(seconds, partial(pair.ours, batch)),
            "reference": partial(seconds, partial(pair.reference, batch)),
        }
        taken = interleaved(jobs, rounds)
        work = operations(candidates, behaviours, pair.network.width, ATTENTION)
        rows.append(
            {
                "T": behaviours,
                "N": candidates,
                "reference_ms": spread(taken["reference"] * 1e3),
                "ours_ms": spread(taken["ours"] * 1e3),
                "ratio": spread(taken["reference"] / taken["ours"]),
                "share_of_peak": work / float(np.median(taken["ours"])) / peak,
                "difference": difference,
                "same": difference <= TOLERANCE * scale,
            }
        )
    return rows
