"""Quality: what REF reaches when it is trained as ours is, by as many impressions in as many steps.

Both start with the same weights and have the same rates at each step, rising and falling as the
trainer's. REF takes shuffled impressions, each once an epoch. Mini-batch-aware regularisation is
off, since REF does not have it. Neither stops early: the last weights count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench.measure import spread
from bench.reference import Reference, padded
from model.tensors import Tensors
from terminal.progress import Update
from training.dataset import Dataset
from training.metrics import gauc
from training.recipe import settings
from training.trainer import FitConfig, Trainer, predict

Logits = npt.NDArray[np.float32]
TEST_SIZE = 512


def measure(
    sets: dict[str, Dataset], seeds: int, epochs: float, update: Update
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """A row per seed: test GAUC of both and samples/s of CPU time, all of training counted.

    And over the seeds: the mean difference with its standard error, and the ratio of speeds.
    """
    train, test = sets["train"], sets["test"]
    config, how = settings(train.schema.name, "din", [])
    how = replace(how, epochs=epochs, regularisation=0.0)
    sizes = {name: table.size for name, table in train.encoder.tables.items()}
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = config.build(train.schema, sizes)
        reference = Reference(network, own=True)
        trainer = Trainer(network, sets, how, seed=seed, run=Path("unused"))
        steps = trainer.steps
        plain = _reference(reference, train, how, seed, steps)
        ours = _timed(trainer.each_step(), f"ours, seed {seed}", steps, update)
        theirs = _timed(plain, f"REF, seed {seed}", steps, update)
        found = {"ours": predict(network, test), "reference": _padded(reference, test)}
        rows.append(
            {
                "seed": seed,
                **{f"{name}_gauc": _gauc(test, logit) for name, logit in found.items()},
                "ours_per_s": ours,
                "reference_per_s": theirs,
            }
        )
    apart = np.array([row["ours_gauc"] - row["reference_gauc"] for row in rows])
    ratio = np.array([row["ours_per_s"] / row["reference_per_s"] for row in rows])
    error = float(apart.std(ddof=1) / seeds**0.5) if seeds > 1 else None
    return rows, {"difference": float(apart.mean()), "error": error, "ratio": spread(ratio)}


def _timed(steps: Iterator[int], stage: str, total: int, update: Update) -> float:
    """Impressions per second of CPU time."""
    begin, samples = time.process_time(), 0
    for done, size in enumerate(steps, 1):
        samples += size
        update(stage, done, total, {})
    return samples / (time.process_time() - begin)


def _reference(
    network: Reference, data: Dataset, how: FitConfig, seed: int, steps: int
) -> Iterator[int]:
    tables = [table.weight for table in network.embeddings.tables.values()]
    those = {id(weight) for weight in tables}
    rest = [weight for weight in network.parameters() if id(weight) not in those]
    optimiser = torch.optim.Adam(
        [{"params": tables, "base": how.embedding_rate}, {"params": rest, "base": how.rate}]
    )
    network.train()
    for step, at in zip(range(steps), _shuffled(len(data), how.size, seed), strict=False):
        for group in optimiser.param_groups:
            rise = (step + 1) / (how.warm_up * steps + 1)
            group["lr"] = group["base"] * min(rise, 1 - step / steps)
        logit, _ = network(Tensors.of(padded(data, at)))
        label = torch.from_numpy(data.label[at])
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield len(at)


def _shuffled(length: int, size: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of epoch after epoch, each impression once in each."""
    generator = np.random.default_rng(seed)
    while True:
        yield from np.array_split(generator.permutation(length), ceil(length / size))


def _padded(network: Reference, data: Dataset) -> Logits:
    network.eval()
    with torch.inference_mode():
        parts = np.array_split(np.arange(len(data)), ceil(len(data) / TEST_SIZE))
        logits = [network(Tensors.of(padded(data, at)))[0].numpy() for at in parts]
    return np.concatenate(logits)


def _gauc(data: Dataset, logit: Logits) -> float:
    return gauc(data.user, data.label[:, 0], logit[:, 0])
