"""The comparison: models trained on one split, each from several seeds, and what came of them.

::

    OUT/runs/<label>/seed-<k>/   a run of `training.run`, with test.npy, the logits of the test
                                 impressions, and, of the first seed, model.onnx
    OUT/report.json, OUT/report.html

Nothing is done twice: a comparison that was killed goes on with the runs that are there.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from terminal.progress import Update
from training import checkpoint
from training.comparison import cost, pace, page
from training.comparison.entrants import Entrant
from training.comparison.order import Order
from training.comparison.report import report
from training.comparison.work import GUESS, Training, Work, kind
from training.fit import Encoded, describe, digest, encode, train
from training.logs import Logs
from training.trainer import TrainingError

JSON, HTML = "report.json", "report.html"
SHOWN = ("gauc", "auc", "log_loss")


def compare(order: Order, update: Update, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train what is not trained yet, and write both reports; what report.json says.

    ``tell`` gets a line for each run that ends. Raises what reading and training raise, and
    `RunError`, before any training, where a folder holds a run of other settings, and where another
    process trains a run.
    """
    torch.set_num_threads(order.threads)
    torch.use_deterministic_algorithms(True)
    update("read", 0, 0, {})
    logs, logs_digest = Logs.read(order.data), digest(order.data)
    about = {
        (entrant.label, seed): describe(
            order.data, logs_digest, entrant.model, entrant.config, entrant.how, seed, order.threads
        )
        for entrant, seed in order.every()
    }
    found = [order.run(each, seed).found(about[each.label, seed]) for each, seed in order.every()]
    encoded = encode(logs, order.data, update)
    if any(found):
        tell(f"{order.out}: going on with what is there")
    left = _left(order, about, tell)
    units = Counter[str]()
    for entrant, _ in left:
        units.update({kind(k, entrant.label): n for k, n in _units(entrant, encoded).items()})
    units |= {
        "scores": len(order.lineup.entrants),
        "graph": len([e for e in order.lineup.entrants if not cost.file(order.run(e, 0)).exists()]),
        "turn": cost.WARM_UP + cost.ROUNDS,
        "page": 1,
    }
    guess = dict(GUESS)
    paces = pace.measure({each.label: each for each, _ in left}.values(), encoded, update)
    for label, of in paces.items():
        guess |= {kind(k, label): seconds for k, seconds in asdict(of).items()}
    work = Work(update, units, guess)
    _train(order, left, encoded, about, work, tell)
    told = report(order, encoded, logs_digest, work)
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    _replace(order.out / JSON, f"{text}\n")
    _replace(order.out / HTML, page.html(told))
    work.end()
    return told


def _left(
    order: Order,
    about: Mapping[tuple[str, int], Mapping[str, Any]],
    tell: Callable[[str], None],
) -> list[tuple[Entrant, int]]:
    """The runs that are not finished."""
    every, left = list(order.every()), []
    for entrant, seed in every:
        run = order.run(entrant, seed)
        if run.found(about[entrant.label, seed]) and run.results():
            checkpoint.remove(run.folder)  # of a run that was killed right after its end
        else:
            left.append((entrant, seed))
    if ended := len(every) - len(left):
        tell(f"{ended} of {len(every)} runs are finished")
    return left


def _units(entrant: Entrant, encoded: Encoded) -> dict[str, int]:
    """Impressions that one run trains on and scores, if it does not stop early."""
    train, validation, test = (len(encoded.sets[n]) for n in ("train", "validation", "test"))
    evaluations = round(entrant.how.epochs * entrant.how.evaluations)
    return {
        "train": round(train * entrant.how.epochs),
        "score": evaluations * validation + validation + test,
    }


def _train(
    order: Order,
    left: Sequence[tuple[Entrant, int]],
    encoded: Encoded,
    about: Mapping[tuple[str, int], Mapping[str, Any]],
    work: Work,
    tell: Callable[[str], None],
) -> None:
    """Train the runs that are left."""
    runs = len(about)
    for at, (entrant, seed) in enumerate(left, runs - len(left) + 1):
        training = Training(work, entrant.label, _units(entrant, encoded))
        run, of = order.run(entrant, seed), about[entrant.label, seed]
        try:
            with run.alone():
                results = train(run, encoded, of, training, keep_logits=True)
        except TrainingError as error:
            raise TrainingError(f"{entrant.label}, seed {seed}: {error}") from None
        training.end()
        test = results["metrics"]["test"]
        figures = ", ".join(f"{name} {test[name]:.4f}" for name in SHOWN if name in test)
        tell(f"{at} of {runs} runs: {entrant.label}, seed {seed}: test {figures}")


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
