"""Evidence for the gate: what a trained run and the current version say of the same impressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from model.contract.bundle import Bundle
from training.calibrate import sigmoid
from training.dataset import Dataset, build
from training.intervals import Evidence, Floats, Mask
from training.logs import SPLITS, Logs
from training.run import Run
from training.scores import scored
from training.trainer import predict
from training.window import Window

LENGTHS = (0, 1, 10, 50)


def gather(
    run: Run,
    logs: Logs,
    bundle: Bundle | None,
    logs_of_current: Logs,
    metrics: Mapping[str, Any],
    window: Window,
) -> dict[str, Evidence]:
    """The evidence of each task, by name, over the test impressions of the logs.

    ``logs_of_current`` are the same logs as the current version knows them. ``metrics`` are those
    it was published with. Users and items that were first met in the window are new.
    """
    encoder = run.encoder()
    test = build(logs, encoder)["test"]
    candidate = sigmoid(run.calibration().apply(predict(run.network(encoder), test)))
    current = None if bundle is None else scored(bundle, logs_of_current)
    slices = _slices(logs, test, window.begin(logs.schema))
    before = logs.events.filter(pl.col("split").is_in(["train", "validation"]))
    found = {}
    for at, task in enumerate(logs.schema.tasks):
        both = bundle is not None and task in bundle.schema.tasks
        theirs = bundle.schema.tasks.index(task) if bundle is not None and both else 0
        found[task] = Evidence(
            user=test.user,
            label=test.label[:, at].astype(np.float64),
            candidate=candidate[:, at],
            current=current[:, theirs] if current is not None and both else None,
            slices={} if at else slices,
            rate_before=float(before[task].to_numpy().mean()),
            promised=_promised(metrics, f"{task}." if theirs else "") if both else {},
        )
    return found


def _promised(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    test = metrics.get("test", {})
    return {name: test[prefix + name] for name in ("gauc", "auc") if prefix + name in test}


def _slices(logs: Logs, test: Dataset, begin: int) -> dict[str, Mask]:
    """Some of the test impressions, by name; none that holds all of them or none."""
    events = logs.events.sort("user_id", "ts", maintain_order=True)
    shown, before = events[test.event], logs.events.filter(pl.col("ts") < begin)
    length = test.stop - test.start
    slices: dict[str, Mask] = {}
    for name in ("user", "item"):
        known = before[f"{name}_id"].unique().implode()
        slices[f"new {name}s"] = ~shown[f"{name}_id"].is_in(known).to_numpy()
    for least, more in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        inside = length >= least if more is None else (length >= least) & (length < more)
        end = "or more" if more is None else f"to {more - 1}"
        slices["no history" if more == 1 else f"history of {least} {end}"] = inside
    return {name: mask for name, mask in slices.items() if mask.any() and not mask.all()}


def rows(logs: Logs) -> dict[str, int]:
    """How many impressions each split has."""
    counts = dict(logs.events["split"].drop_nulls().value_counts().rows())
    return {split: counts.get(split, 0) for split in SPLITS}


def same_impressions(one: Logs, two: Logs) -> bool:
    """Whether both have the same test impressions, in the same order."""
    names = ("user_id", "item_id", "ts")
    found = [logs.events.filter(pl.col("split") == "test").select(names) for logs in (one, two)]
    return found[0].equals(found[1])


def first_labels(logs: Logs, split: str) -> Floats:
    """The first task's labels of a split."""
    shown = logs.events.filter(pl.col("split") == split)
    return shown[logs.schema.tasks[0]].to_numpy().astype(np.float64)
