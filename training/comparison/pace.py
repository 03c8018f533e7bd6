"""How fast each model trains, before it does: by a few steps of networks that are thrown away."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from terminal.progress import Update
from training.comparison.entrants import Entrant
from training.fit import Encoded
from training.trainer import Trainer, TrainingError, predict

STAGE, STEPS = "time some steps", 3
SCORED = 1024  # impressions


@dataclass(frozen=True)
class Pace:
    """Seconds of an impression, in training and when it is only scored."""

    train: float
    score: float


def measure(entrants: Collection[Entrant], encoded: Encoded, update: Update) -> dict[str, Pace]:
    """The pace of each by its label; 0 where the first steps fail, which its training will tell in
    its turn."""
    sizes = {name: table.size for name, table in encoded.encoder.tables.items()}
    some = encoded.whole("train").take(np.arange(min(SCORED, len(encoded.whole("train")))))
    found = dict[str, Pace]()
    for entrant in entrants:
        update(STAGE, len(found), len(entrants), {})
        network = entrant.config.build(encoded.logs.schema, sizes)
        trainer = Trainer(network, encoded.sets, entrant.how, seed=0, run=Path("unused"))
        found[entrant.label] = Pace(0.0, 0.0)
        with suppress(TrainingError):
            steps = trainer.each_step()
            next(steps)  # slower than those after it
            begin = time.perf_counter()
            impressions = sum(islice(steps, STEPS))
            trained = time.perf_counter()
            predict(network, some)
            scored = time.perf_counter()
            found[entrant.label] = Pace(
                (trained - begin) / max(impressions, 1), (scored - trained) / len(some)
            )
    if entrants:
        update(STAGE, len(found), len(entrants), {})
    return found
