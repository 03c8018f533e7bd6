"""The window: the days whose impressions are trained on, and how time splits them.

The oldest impressions train; of the newest the older half stops and calibrates the training
(validation), the newer half is what the gate looks at (test), as far as the current version has not
learnt from it. What lies before the window is seen as history only, what comes after it not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import date, timedelta

import polars as pl

from model.contract.schema import Schema
from training.chunks import AnyLogs
from training.logs import Logs
from training.vocabulary import PER_DAY

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Window:
    """The days from ``first`` to ``last``, both included, in UTC."""

    first: date
    last: date

    def __str__(self) -> str:
        return f"{self.first}_{self.last}"

    def begin(self, schema: Schema) -> int:
        """The first ts in it."""
        return (self.first - _EPOCH).days * PER_DAY[schema.ts_unit]

    def end(self, schema: Schema) -> int:
        """The first ts behind it."""
        return ((self.last - _EPOCH).days + 1) * PER_DAY[schema.ts_unit]


def days(logs: Logs) -> list[date]:
    """The days that have impressions, in order."""
    shown = logs.events.filter(pl.col("split").is_not_null())
    found = shown.select((pl.col("ts") // PER_DAY[logs.schema.ts_unit]).unique())["ts"].sort()
    return [_EPOCH + timedelta(days=number) for number in found]


def cut(logs: Logs, window: Window, share: float, skipped: Collection[date] = ()) -> Logs:
    """The logs as the window shows them: its impressions split by time anew, ``share`` of them
    for validation and test. Equal times stay together.

    Impressions of ``skipped`` days and of days before the window are none any more.
    """
    per_day = PER_DAY[logs.schema.ts_unit]
    begin, end = window.begin(logs.schema), window.end(logs.schema)
    ts, behaviour = pl.col("ts"), pl.col("behaviour")
    left_out = [(day - _EPOCH).days for day in skipped]
    shown = pl.col("split").is_not_null() & (ts >= begin) & ~(ts // per_day).is_in(left_out)
    events = logs.events.filter(ts < end).with_columns(shown.alias("#shown"))
    times = events.filter("#shown")["ts"].sort()
    if not len(times):
        return replace(logs, events=logs.events.clear())
    validation = times[round(len(times) * (1 - share))]
    test = times[round(len(times) * (1 - share / 2))]
    newer = pl.when(ts >= test).then(pl.lit("test")).otherwise(pl.lit("validation"))
    split = pl.when(ts < validation).then(pl.lit("train")).otherwise(newer)
    events = events.with_columns(
        pl.when("#shown").then(split).alias("split"),
        *(pl.when("#shown").then(pl.col(task)).alias(task) for task in logs.schema.tasks),
    )
    return replace(logs, events=events.filter(pl.col("#shown") | behaviour).drop("#shown"))


def hold_out(logs: Logs, since: int) -> Logs:
    """The same logs, but only impressions with a ts from ``since`` on are for the gate; what is
    older validates."""
    learnt = (pl.col("split") == "test") & (pl.col("ts") < since)
    split = pl.when(learnt).then(pl.lit("validation")).otherwise("split").alias("split")
    return replace(logs, events=logs.events.with_columns(split))


def learnt_until(logs: AnyLogs) -> int:
    """The first ms since 1970 that is behind all impressions that train and validate."""
    last: list[int] = []
    for chunk in logs.chunks(("ts", "split")):
        learnt = chunk.events.filter(pl.col("split").is_in(["train", "validation"]))["ts"]
        last.extend(learnt.sort().tail(1))
    return (max(last, default=-1) + 1) * _ms(logs.schema)


def from_ms(ms: int, schema: Schema) -> int:
    """The first ts that is not before some ms since 1970."""
    return -(-ms // _ms(schema))


def _ms(schema: Schema) -> int:
    return PER_DAY["ms"] // PER_DAY[schema.ts_unit]


def digest(logs: Logs) -> str:
    """Changes with whatever is in the logs; 16 hex digits. Another version of polars may give
    another one."""
    found = hashlib.sha256(logs.schema_text.encode())
    for frame in (logs.events, logs.items, logs.users):
        found.update(repr(dict(frame.schema)).encode())
        found.update(frame.hash_rows(seed=0).to_numpy().tobytes())
    return found.hexdigest()[:16]
