"""Which ids get a row: those seen often enough, and not too long ago, in the training part of logs.

Ids that an earlier model knew are known still, until they have not been seen for a stated time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from model.contract.ids import Keys, keys
from model.contract.schema import GROUPS, Field, Group, Schema
from terminal.progress import Update, quiet
from training.chunks import AnyLogs
from training.merged import Merged

PER_DAY = {"s": 86_400, "ms": 86_400_000}


@dataclass(frozen=True)
class Seen:
    """The ids that have a row in one table: keys uint64 [n], strictly rising, and the day, counted
    from 1970, on which each was last seen, int64 [n]."""

    keys: Keys
    day: npt.NDArray[np.int64]


def learn(
    logs: AnyLogs,
    before: Mapping[str, Seen] | None = None,
    forget_days: int | None = None,
    update: Update = quiet,
) -> dict[str, Seen]:
    """The ids of each table that learns any, by the table's name.

    An id counts once per training event in which it occurs; validation and test impressions are
    not looked at. It is kept when it was counted ``min_count`` times, or was known ``before``;
    but not when it was last seen more than ``forget_days`` before the newest training event.
    Raises ValueError when two ids share a key (about n^2 / 2^65 likely).
    """
    schema, before = logs.schema, before or {}
    learnt = {name: first for name, first in schema.tables.items() if _learns(first)}
    fields = {name: _fields(schema, name) for name in learnt}
    columns = {_column(*each) for of_table in fields.values() for each in of_table}
    counts = {name: Merged(pl.col("count").sum(), pl.col("day").max()) for name in columns}
    shown, behaviour = pl.col("split"), pl.col("behaviour")
    newest: int | None = None
    done, total = 0, len(logs)
    update("learn ids", done, total, {})
    for chunk in logs.chunks():
        events = chunk.events.filter((shown == "train") | (shown.is_null() & behaviour))
        events = events.with_columns((pl.col("ts") // PER_DAY[schema.ts_unit]).alias("day"))
        if len(events):
            last = int(events["day"].to_numpy().max())
            newest = last if newest is None else max(newest, last)
        for name in columns:
            once = pl.lit(1, pl.Int64).alias("count")
            counts[name].add(_by_id(events.select(pl.col(name).alias("id"), once, "day")))
        done += len(chunk)
        update("learn ids", done, total, {})
    found = {}
    for name, first in learnt.items():
        parts = [_counted(logs, counts[_column(*each)].total(), *each) for each in fields[name]]
        ids = pl.concat(parts).group_by("id").agg(pl.col("count").sum(), pl.col("day").max())
        known = before.get(name, Seen(np.zeros(0, np.uint64), np.zeros(0, np.int64)))
        seen = _joined(ids, known, first.min_count)
        if forget_days is not None and newest is not None:
            recent = seen.day >= newest - forget_days
            seen = Seen(seen.keys[recent], seen.day[recent])
        found[name] = seen
    return found


def _learns(field: Field) -> bool:
    return not (field.kind == "number" or field.buckets)


def _fields(schema: Schema, table: str) -> list[tuple[Group, Field]]:
    return [(g, f) for g in GROUPS for f in schema.group(g) if f.table == table]


def _column(group: Group, field: Field) -> str:
    """The column of the events that says how often a field's ids occur."""
    return {"item": "item_id", "user": "user_id"}.get(group, field.name)


def _counted(logs: AnyLogs, counts: pl.DataFrame, group: Group, field: Field) -> pl.DataFrame:
    """In how many events each id of a field is, and the last day: columns id, count, day."""
    key = _column(group, field)
    if key == field.name:
        return counts
    frame = logs.items if group == "item" else logs.users
    times = counts.rename({"id": key})
    return _by_id(frame.join(times, on=key).select(pl.col(field.name).alias("id"), "count", "day"))


def _by_id(ids: pl.DataFrame) -> pl.DataFrame:
    """Each id once, those of a row's tags one by one."""
    if ids.schema["id"] == pl.List(pl.String):
        ids = ids.explode("id", empty_as_null=True)
    return ids.drop_nulls("id").group_by("id").agg(pl.col("count").sum(), pl.col("day").max())


def _joined(counts: pl.DataFrame, before: Seen, min_count: int) -> Seen:
    """The ids counted often enough or known before, each with its last day."""
    order = np.argsort(unsorted := keys(counts["id"].to_list()))
    found, count, day = unsorted[order], counts["count"].to_numpy()[order], counts["day"].to_numpy()
    if np.any(found[1:] == found[:-1]):
        raise ValueError("two ids have the same 64-bit key; rename one of them")
    kept = (count >= min_count) | np.isin(found, before.keys)
    every = np.union1d(found[kept], before.keys)
    last = np.full(len(every), np.iinfo(np.int64).min)
    last[np.searchsorted(every, before.keys)] = before.day
    at = np.searchsorted(every, found[kept])
    last[at] = np.maximum(last[at], day[order][kept])
    return Seen(every, last)
