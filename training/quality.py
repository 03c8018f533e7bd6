"""Live quality: what a version said of its latest impressions, against what came of them.

An impression is an event with the action "impression"; the score of the same user, request and
item says what was predicted, and an event of a task's action with these three what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from model.contract.schema import SHOWN, Schema
from training import drift, metrics
from training.entries import EVENTS, SCORES
from training.shown import NEAREST

_REQUEST = ["user_id", "request_id"]
_PAIR = [*_REQUEST, "item_id"]
_OF_EVENTS = [*_PAIR, "received", "action"]
_OF_SCORES = [
    *(*_REQUEST, "received", "model", "version", "candidates", "probability"),
    *("unknown", "length", "degraded"),
]
PREDICTED = {
    **dict.fromkeys(_PAIR, pl.String()),
    "received": pl.Int64(),  # of the impression
    "model": pl.String(),
    "version": pl.Int64(),
    "task": pl.String(),
    "probability": pl.Float64(),
}
JOINED = {**PREDICTED, "label": pl.Int8()}


@dataclass(frozen=True)
class Span:
    """The impressions looked at: those of ``seconds``, up to ``delay`` seconds ago, since a click
    takes its time. At most so many ``events`` and scored ``candidates`` are kept."""

    seconds: float = 3600.0
    delay: float = 300.0
    events: int = 1_000_000
    candidates: int = 2_000_000

    def since(self, now: int) -> int:
        """When what is looked at begins, in ms; ``now`` in ms."""
        return now - round((self.seconds + self.delay) * 1000)

    def until(self, now: int) -> int:
        return now - round(self.delay * 1000)


@dataclass(frozen=True)
class Quality:
    """Of one version and task. ``ratio`` is predicted / observed, infinite before the first click;
    ``log_loss`` in nats; ``auc`` NaN with one class only; ``histogram`` as `drift.histogram`."""

    impressions: int
    clicks: int
    expected: float
    ratio: float
    log_loss: float
    auc: float
    histogram: list[int]


@dataclass(frozen=True)
class Requests:
    """Of one version: shares of candidates that its catalogue lacks, and of users without a
    history, by which a model knows a user (requests for which the store had failed say nothing)."""

    requests: int
    unknown_items: float
    unknown_users: float


class Window:
    """What was shown in the latest time and what came of it, in memory."""

    def __init__(self, schema: Schema, span: Span) -> None:
        self.actions = dict(zip(schema.tasks, schema.actions, strict=True))
        self.span = span
        events = pl.DataFrame(schema=EVENTS).select(_OF_EVENTS)
        self._waiting = events  # impressions whose score has not come yet
        self._predicted = pl.DataFrame(schema=PREDICTED)
        self._outcomes = events
        self._scores = pl.DataFrame(schema=SCORES).select(_OF_SCORES)

    def add(self, events: pl.DataFrame, scores: pl.DataFrame, now: int) -> None:
        """Take in rows of collected logs, and let go what is too old or too much.

        An impression is joined when both are there; for a score that comes later it waits until it
        is old enough to be looked at.
        """
        recent = pl.col("received") >= self.span.since(now)
        whole = pl.concat([self._scores, scores.select(_OF_SCORES)]).filter(recent)
        newer = pl.col("candidates").list.len().cum_sum(reverse=True)
        self._scores = whole.sort("received").filter(newer <= self.span.candidates)

        events = events.filter(recent & pl.col("request_id").is_not_null()).select(_OF_EVENTS)
        outcomes = events.filter(pl.col("action").is_in(list(self.actions.values())))
        self._outcomes = self._latest(pl.concat([self._outcomes, outcomes]), recent)
        shown = pl.concat([self._waiting, events.filter(pl.col("action") == SHOWN)])
        shown = shown.join(self._predicted, on=_PAIR, how="anti")
        fresh = predicted(shown, self._scores, list(self.actions))
        self._predicted = self._latest(pl.concat([self._predicted, fresh]), recent)
        young = pl.col("received") > self.span.until(now)
        waiting = shown.join(self._scores, on=_REQUEST, how="anti").filter(young)
        self._waiting = self._latest(waiting, recent)

    def forget(self, users: Collection[str]) -> None:
        """Let go what is of erased users."""
        others = ~pl.col("user_id").is_in(list(users))
        self._waiting = self._waiting.filter(others)
        self._predicted = self._predicted.filter(others)
        self._outcomes = self._outcomes.filter(others)
        self._scores = self._scores.filter(others)

    def impressions(self, now: int) -> pl.DataFrame:
        """Those that are old enough, with what came of them (`JOINED`), task by task."""
        settled = pl.col("received").is_between(self.span.since(now), self.span.until(now))
        return labelled(self._predicted.filter(settled), self._outcomes, self.actions)

    def _latest(self, rows: pl.DataFrame, recent: pl.Expr) -> pl.DataFrame:
        return rows.filter(recent).sort("received").tail(self.span.events)

    def requests(self) -> dict[tuple[str, int], Requests]:
        """By model and version."""
        of = ["model", "version"]
        count = pl.col("candidates").list.len().sum()
        table = self._scores.group_by(of).agg(
            pl.len().alias("requests"),
            (pl.col("unknown").list.len().sum() / count).alias("unknown_items"),
        )
        sound = self._scores.filter(pl.col("degraded").is_null())
        users = sound.group_by(*of, "user_id").agg(pl.col("length").max() == 0)
        users = users.group_by(of).agg(pl.col("length").mean().alias("unknown_users"))
        table = table.join(users, on=of, how="left")
        table = table.with_columns(pl.col("unknown_users").fill_null(math.nan))
        return {
            (row.pop("model"), row.pop("version")): Requests(**row)
            for row in table.iter_rows(named=True)
        }


def predicted(shown: pl.DataFrame, scores: pl.DataFrame, tasks: Sequence[str]) -> pl.DataFrame:
    """Impressions [n] per task with what was predicted for them (`PREDICTED`), each once: ``shown``
    joined with the score of the same user, request and item; of several the last one before."""
    shown = shown.select(*_PAIR, "received").unique(_PAIR, keep="first", maintain_order=True)
    said = scores.join(shown, on=_REQUEST, how="semi")
    said = said.rename({"candidates": "item_id", "received": "#said"})
    found = [pl.DataFrame(schema=PREDICTED)]
    for task in tasks:
        given = pl.Struct({task: pl.List(pl.Float64())})
        column = pl.col("probability").str.json_decode(given).struct.field(task)
        each = said.with_columns(column.alias("probability"), pl.lit(task).alias("task"))
        # A version may have had other tasks; then the list is null.
        each = each.filter(pl.col("probability").list.len() == pl.col("item_id").list.len())
        each = each.explode("item_id", "probability")
        rows = shown.join(each, on=_PAIR).sort(NEAREST, maintain_order=True)
        rows = rows.unique(_PAIR, keep="first", maintain_order=True)
        found.append(rows.select(list(PREDICTED)))
    return pl.concat(found)


def labelled(
    rows: pl.DataFrame, outcomes: pl.DataFrame, actions: Mapping[str, str]
) -> pl.DataFrame:
    """Impressions [n] (`PREDICTED`) with their labels (`JOINED`): 1 where ``outcomes`` have the
    action of the task for the same user, request and item."""
    task = pl.DataFrame({"task": list(actions), "action": list(actions.values())})
    done = outcomes.join(task, on="action").select(*_PAIR, "task").unique()
    done = done.with_columns(pl.lit(1, pl.Int8).alias("label"))
    found = rows.join(done, on=[*_PAIR, "task"], how="left", maintain_order="left")
    return found.with_columns(pl.col("label").fill_null(0))


def measure(rows: pl.DataFrame) -> Quality:
    """The figures of impressions [n > 0] of one version and task (`JOINED`)."""
    label, probability = rows["label"].to_numpy(), rows["probability"].to_numpy()
    clicks, expected = int(label.sum()), float(probability.sum())
    return Quality(
        impressions=len(rows),
        clicks=clicks,
        expected=expected,
        ratio=expected / clicks if clicks else float(np.inf),
        log_loss=metrics.log_loss(label, probability),
        auc=metrics.auc(label, probability),
        histogram=drift.histogram(probability),
    )
