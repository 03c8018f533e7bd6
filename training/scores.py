"""Scores of impressions by a published version, in its own encoding and by its own graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from model.contract.bundle import Bundle
from model.contract.schema import Schema
from training.calibrate import sigmoid
from training.dataset import Dataset, build
from training.export import run, session
from training.logs import Logs, event_columns, item_columns, user_columns

SIZE = 512


def scored(bundle: Bundle, logs: Logs) -> npt.NDArray[np.float64]:
    """Probabilities [I, tasks] of the test impressions, as `training.dataset.build` orders them."""
    found = build(recast(logs, bundle.schema), bundle.encoder)["test"]
    graph = session(bundle.graph.read_bytes())
    logits = np.zeros(found.label.shape, np.float32)
    for begin, end in _batches(found):
        batch, at = found.batch(begin, end)
        logits[at] = run(graph, batch)
    return sigmoid(logits)


def recast(logs: Logs, schema: Schema) -> Logs:
    """Logs in the form of another schema: what they lack is missing, what is too much left out.

    A field of another kind is missing too. Tasks that the logs lack are 0 throughout.
    """
    if schema == logs.schema:
        return logs
    shown = pl.col("split").is_not_null()
    tasks = [task for task in schema.tasks if task not in logs.events.columns]
    events = logs.events.with_columns(
        pl.when(shown).then(pl.lit(0, pl.Int8)).alias(task) for task in tasks
    )
    known = {*event_columns(logs.schema), *event_columns(schema)}
    more = {name: kind for name, kind in events.schema.items() if name not in known}
    return replace(
        logs,
        schema=schema,
        events=_cast(events, {**event_columns(schema), **more}),
        items=_cast(logs.items, item_columns(schema)),
        users=_cast(logs.users, user_columns(schema)),
    )


def _cast(frame: pl.DataFrame, columns: dict[str, pl.DataType]) -> pl.DataFrame:
    return frame.select(
        pl.col(name) if frame.schema.get(name) == kind else pl.lit(None, kind).alias(name)
        for name, kind in columns.items()
    )


def _batches(data: Dataset) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Begin and end of blocks, some 512 impressions at a time. A graph shows every candidate the
    whole history, so those of a block all see the same."""
    places = np.stack([data.user, data.start, data.stop])
    fresh = np.flatnonzero((np.diff(places, prepend=-1) != 0).any(0))
    edges = np.append(fresh, len(data))
    group = edges[:-1] // SIZE
    parts = np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1)
    return [(edges[part], edges[part + 1]) for part in parts if len(part)]
