"""Training: samples/s of the trainer's steps, batch assembly included, against REF's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.measure import interleaved, spread
from bench.reference import ReferenceTraining
from training import readers, world
from training.dataset import Dataset, build, learn_encoder
from training.logs import Logs
from training.recipe import settings
from training.trainer import Trainer

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def sources(users: int, large: bool = True) -> dict[str, Callable[[], Logs]]:
    """The logs that are there: the synthetic world always, real ones where they were put. To read
    ``large`` ones takes longer than a quick run may."""
    found: dict[str, Callable[[], Logs]] = {
        "synthetic": lambda: world.World(users=users).logs(),
    }
    if (REAL / "amazon-beauty.events.csv.gz").exists():
        found["amazon-beauty"] = lambda: readers.read_amazon(REAL / "amazon-beauty")
    if large and (REAL / "ml-1m.zip").exists():
        found["ml-1m"] = lambda: readers.read_movielens(
            REAL / "ml-1m.zip", REAL / "ml-1m.test_users.txt"
        )
    return found


def measure(sets: dict[str, Dataset], rounds: int, seconds: float) -> dict[str, Any]:
    """One row: samples/s of both over ``rounds`` turns of about ``seconds`` each."""
    train = sets["train"]
    config, how = settings(train.schema.name, "din", [])
    torch.manual_seed(0)
    sizes = {name: table.size for name, table in train.encoder.tables.items()}
    network = config.build(train.schema, sizes)
    reference = ReferenceTraining(network, train, how, seed=0)
    trainer = Trainer(network, sets, how, seed=0, run=Path("unused"))
    steps = _steps(trainer)
    jobs: dict[str, Callable[[], float]] = {
        "ours": lambda: _rate(lambda: next(steps), seconds),
        "reference": lambda: _rate(reference.step, seconds),
    }
    for job in jobs.values():
        job()  # warm
    taken = interleaved(jobs, rounds)
    lengths = train.stop - train.start
    return {
        "longest": train.schema.history_length,
        "mean_length": float(lengths.mean()),
        "batch": how.size,
        "reference_per_s": spread(taken["reference"]),
        "ours_per_s": spread(taken["ours"]),
        "ratio": spread(taken["ours"] / taken["reference"]),
    }


def prepare(logs: Logs) -> dict[str, Dataset]:
    return build(logs, learn_encoder(logs))


def _steps(trainer: Trainer) -> Iterator[int]:
    """The trainer's own steps, epoch after epoch: assembly, forward, backward, update."""
    while True:
        yield from trainer.each_step()
        trainer.progress.step = 0


def _rate(step: Callable[[], int], seconds: float) -> float:
    begin, samples = time.process_time(), 0
    while (taken := time.process_time() - begin) < seconds or not samples:
        samples += step()
    return samples / taken
