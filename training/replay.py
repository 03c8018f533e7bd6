"""Replay: logged requests are scored again from the collected logs; what differs is skew.

A request is rebuilt from its score record and the history that the store held at that place of the
log, encoded and scored with its own version. The digests of the encoded rows are compared field by
field, the probabilities within a tolerance.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import polars as pl

from model.contract.bundle import Bundle
from model.contract.encode import FieldError, Request
from model.contract.ids import key
from model.contract.log import Snapshot, digests
from model.contract.repository import Repository
from terminal.progress import Update, quiet
from training.collected import Collected
from training.export import run, session
from training.histories import Found, Histories
from training.logs import LogsError
from training.past import place_of

TOLERANCE = 1e-4
"""Of a probability. A service may run on another processor, whose kernels add in another order: a
version is let through there with 1e-4 of a logit, which is 2.5e-5 of a probability at most."""
Floats = npt.NDArray[np.float64]
_LOST = "history_unavailable"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """One request: ``differs`` holds, for each field that was compared, whether it differs;
    ``errors`` |dp| [C] by task, none where it could not be encoded."""

    request_id: str
    version: int
    received: int
    differs: Mapping[str, bool]
    errors: Mapping[str, Floats]

    def first(self, tolerance: float) -> str | None:
        """The first field that differs, else the first score."""
        for name, differs in self.differs.items():
            if differs:
                return name
        wrong = (task for task, error in self.errors.items() if _too_large(error, tolerance))
        return next((f"score.{task}" for task in wrong), None)


@dataclass(frozen=True)
class Difference:
    """|dp| over all candidates, and of how many requests it was too large."""

    largest: float
    mean: float
    requests: int


@dataclass(frozen=True)
class Skew:
    """What a replay found. ``fields``: of how many requests each differs; ``skipped``: requests
    that could not be replayed, by reason; ``first``: the first request in time that differs, its
    version and the first field, or score, that does."""

    requests: int
    skipped: Mapping[str, int]
    fields: Mapping[str, int]
    scores: Mapping[str, Difference]
    first: Mapping[str, Any] | None


def replay(
    collected: Collected,
    repository: Repository,
    *,
    day: date | None = None,
    limit: int | None = None,
    sample: float = 1.0,
    tolerance: float = TOLERANCE,
    update: Update = quiet,
) -> Skew:
    """Replay the scores of a day, or of all; of a ``sample`` of the requests, drawn by id, and of
    these the newest ``limit``. Raises `BundleError`, and `LogsError` where nothing was logged."""
    if not collected.days("scores"):
        expected = "logged requests (DINSERVE_LOG_SHARE above 0 has the service log them)"
        raise LogsError(str(collected.folder), "scores", expected)
    scores = collected.scores(day, day).sort("received", "entry")
    if sample < 1:
        drawn = [key(f"replay:{each}") < sample * 2**64 for each in scores["request_id"]]
        scores = scores.filter(pl.Series(drawn, dtype=pl.Boolean))
    scores = scores.tail(limit) if limit is not None else scores
    why = _skipped(scores, repository)
    update("rebuild histories", 0, 0, {})
    last = None if day is None else day + timedelta(days=1)  # clocks differ
    done: list[Compared] = []
    wanted = scores.filter(why.is_null())
    for (version,), part in wanted.group_by("version", maintain_order=True):
        bundle = repository.open(version)
        graph = session(bundle.graph.read_bytes())
        histories = Histories.read(collected, bundle.schema, part.select("user_id").unique(), last)
        for row in part.iter_rows(named=True):
            done.append(_compare(row, bundle, graph, histories))
            update("replay", len(done), len(wanted), {})
    return _summed(done, dict(why.drop_nulls().value_counts(sort=True).rows()), tolerance)


def _skipped(scores: pl.DataFrame, repository: Repository) -> pl.Series:
    """Why a score can't be replayed, null where it can."""
    reasons = {
        "of another model": pl.col("model") != repository.name,
        "version not in the repository": ~pl.col("version").is_in(repository.versions()),
        "a candidate whose id is not known": pl.col("candidates")
        .list.eval(pl.element().is_null())
        .list.any(),
    }
    found = [pl.when(broken).then(pl.lit(why)) for why, broken in reasons.items()]
    return scores.select(pl.coalesce(found)).to_series()


def _compare(
    row: Row, bundle: Bundle, graph: onnxruntime.InferenceSession, histories: Histories
) -> Compared:
    about = (row["request_id"], row["version"], row["received"])
    if row["schema"] != bundle.schema.fingerprint:
        return Compared(*about, {"schema": True}, {})
    try:
        history = _history(row, bundle, histories)
        batch, _ = bundle.encoder.encode(
            Request(
                candidates=row["candidates"],
                history=history.records,
                user=json.loads(row["user"]),
                context=json.loads(row["context"]),
                columns=json.loads(row["columns"]),
            )
        )
    except FieldError as error:
        return Compared(*about, {error.field: True}, {})
    logged = json.loads(row["rows"])
    found = digests(batch, bundle.schema)
    differs = {name: logged.get(name) != digest for name, digest in found.items()}
    for what in ("length", "records"):
        differs[f"history ({what})"] = history.differs == what
    probability = 1 / (1 + np.exp(-run(graph, batch).astype(np.float64)))
    online = json.loads(row["probability"])
    errors = {
        task: np.abs(probability[:, at] - np.asarray(online[task], np.float64))
        for at, task in enumerate(bundle.schema.tasks)
    }
    return Compared(*about, differs, errors)


def _history(row: Row, bundle: Bundle, histories: Histories) -> Found:
    """The history that a score looked at, rebuilt. Raises `FieldError`."""
    if row["raw"] is not None:
        return Found(bundle.encoder.records(json.loads(row["raw"])))
    if row["degraded"] == _LOST:
        return Found(bundle.encoder.codec.empty())
    snapshot = Snapshot(row["length"], row["newest"], row["digest"])
    ms, _, number = row["entry"].partition("-")
    return histories.at(row["user_id"], place_of(int(ms)) + int(number), row["received"], snapshot)


def _summed(done: Sequence[Compared], skipped: Mapping[str, int], tolerance: float) -> Skew:
    fields: Counter[str] = Counter()
    errors: dict[str, list[Floats]] = {}
    for each in done:
        fields.update({name: int(differs) for name, differs in each.differs.items()})
        for task, error in each.errors.items():
            errors.setdefault(task, []).append(error)
    scores = {}
    for task, found in errors.items():
        every = np.concatenate(found)
        wrong = sum(_too_large(error, tolerance) for error in found)
        scores[task] = Difference(float(every.max()), float(every.mean()), wrong)
    first = None
    for each in sorted(done, key=lambda each: each.received):
        if differs := each.first(tolerance):
            named = {"request_id": each.request_id, "version": each.version, "differs": differs}
            first = first or named
    return Skew(len(done), skipped, dict(fields), scores, first)


def _too_large(error: Floats, tolerance: float) -> bool:
    return not bool((error <= tolerance).all())  # also where it is no number
