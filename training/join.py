"""Joining: collected logs to the canonical form, impressions labelled by what followed them.

An impression is joined to its score by user and request id, and to its candidate by item: so it has
the features that the score was made from, and the history that it looked at. The label of a task is
1 when the task's action follows within the window. What can't be used is counted, with the reason.

The result depends on the files alone: a later run over the same days sees the clicks that came
since, and nothing else of what came after these days: no behaviour, and no profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Literal

import polars as pl

from model.contract.schema import Schema
from training.collected import Collected
from training.fields import read_fields
from training.logs import SEEN, Logs, LogsError, event_columns
from training.past import Before, arrival, behaviours, once
from training.shown import KEY, impressions

DAY = timedelta(days=1)
UNITS = {"s": 1, "ms": 1000}


@dataclass(frozen=True)
class Rules:
    """How impressions are labelled and divided.

    An outcome counts within ``window_seconds`` after its impression. Impressions of the last
    ``settle_seconds`` of the logs are left out, since most of their outcomes are still to come.
    By time, the last share ``test`` of the impressions is the test set and the ``validation``
    before it. ``base``: which impressions of the prepared logs are used too, those of the days
    asked for, all, or none.
    """

    window_seconds: int = 86_400
    settle_seconds: int = 600
    validation: float = 0.1
    test: float = 0.1
    base: Literal["none", "window", "all"] = "window"


@dataclass(frozen=True)
class Tally:
    """What was counted: ``left_out`` impressions by reason, ``vain`` outcomes that gave no label by
    reason, and ``notes`` on the ``kept`` impressions."""

    kept: int
    left_out: Mapping[str, int]
    outcomes: int
    vain: Mapping[str, int]
    notes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Joined:
    """Logs in the canonical form, and what was counted on the way."""

    logs: Logs
    tally: Tally


def to_logs(
    collected: Collected,
    first: date,
    last: date,
    rules: Rules | None = None,
    schema: Path | None = None,
) -> Logs:
    """The logs of `join` alone."""
    return join(collected, first, last, rules, schema).logs


def join(
    collected: Collected,
    first: date,
    last: date,
    rules: Rules | None = None,
    schema: Path | None = None,
) -> Joined:
    """The impressions of the days (UTC) from first to last, both included, and all behaviours up to
    then. ``schema`` is a file, by default that of the prepared logs.

    Raises `LogsError` and `SchemaError`.
    """
    rules, logged = rules or Rules(), collected.base / "schema.toml"
    path = schema or logged
    fields = Schema.load(path)
    if logged.exists() and (was := Schema.load(logged).ts_unit) != fields.ts_unit:
        raise LogsError(str(path), "ts_unit", f'"{was}", which the logs are in')
    unit = UNITS[fields.ts_unit]
    window, ahead = rules.window_seconds * unit, -(-rules.window_seconds // 86_400)
    events, since = collected.events(first, last), collected.events(last + DAY, last + ahead * DAY)
    newest = _newest(collected, pl.concat([events["ts"], since["ts"]]), unit)
    # An impression may come some time after its score; and a score's day is that of the service's
    # clock, an event's that of the caller's, who may send it long after.
    scores = collected.scores(first - DAY)
    shown = impressions(events, scores, fields, newest - rules.settle_seconds * unit + 1)
    outcomes = _outcomes(events, since, shown, fields, window)
    kept = _labelled(shown.filter(pl.col("#why").is_null()), outcomes, fields)
    before = Before.read(collected, fields)
    base = _base(before, fields, rules, _begin(first, unit), _begin(last + DAY, unit))
    past = behaviours(collected, fields, last)
    past = once(before.events.filter("behaviour"), past, fields)
    rows = pl.concat([base, past.with_columns(behaviour=True), kept], how="diagonal")
    rows = rows.select(*event_columns(fields), *sorted(SEEN))
    users = _users(
        rows, scores.filter(pl.col("received") < _begin(last + DAY, 1000)), before, fields
    )
    logs = Logs.build(path, _split(rows, rules), _items(rows, kept, before, fields), users)
    open_still = pl.any_horizontal(pl.col(fields.tasks) == 0) & (pl.col("ts") > newest - window)
    notes = {
        "used too, from the prepared logs": base["split"].count(),
        "negative so far: their window is not over": kept.select(open_still.sum()).item(),
        "whose history the caller gave: the logged one stands in": kept["#raw"].count(),
        "whose history reached their own time: cut there": (
            kept["seen_newest"] >= kept["ts"]
        ).sum(),
        "whose history has older behaviours that came after the score": _late(kept, past),
        "of another profile than the user's newest, which stands in": _stale(kept, users, fields),
    }
    counted = outcomes.filter("#asked")
    return Joined(
        logs,
        Tally(len(kept), _counts(shown["#why"]), len(counted), _counts(counted["#vain"]), notes),
    )


def _newest(collected: Collected, times: pl.Series, unit: int) -> int:
    """When the logs end, as far as these times and the days that have files tell."""
    latest = [_begin(day, unit) for day in collected.days("events")[-1:]]
    return max([*latest, *times.sort().tail(1)], default=0)


def _begin(day: date, unit: int) -> int:
    """The first ts of a day."""
    return int(datetime.combine(day, time(), UTC).timestamp()) * unit


def _counts(reasons: pl.Series) -> dict[str, int]:
    return dict(reasons.drop_nulls().value_counts(sort=True).rows())


def _outcomes(
    events: pl.DataFrame, since: pl.DataFrame, shown: pl.DataFrame, schema: Schema, window: int
) -> pl.DataFrame:
    """Events whose action is a task's: `KEY`, action, #vain, the reason why it makes no label, and
    #asked, whether it is of the days asked for."""
    parts = [events.with_columns(pl.lit(True).alias("#asked")), since]
    outcomes = pl.concat(parts, how="diagonal").filter(pl.col("action").is_in(schema.actions))
    first = shown.select(*KEY, pl.col("ts").alias("#shown"), "#why").unique(
        KEY, keep="first", maintain_order=True
    )
    found = outcomes.join(first, on=KEY, how="left")
    delay = pl.col("ts") - pl.col("#shown")
    reasons = {
        "no request id": pl.col("request_id").is_null(),
        "no impression in these days": delay.is_null(),
        "its impression is left out": pl.col("#why").is_not_null(),
        "before its impression": delay < 0,
        "after the window": delay > window,
    }
    vain = pl.coalesce(pl.when(broken).then(pl.lit(why)) for why, broken in reasons.items())
    return found.select(*KEY, "action", vain.alias("#vain"), pl.col("#asked").fill_null(False))


def _labelled(kept: pl.DataFrame, outcomes: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """The impressions with a label for each task."""
    for task, action in zip(schema.tasks, schema.actions, strict=True):
        one = pl.lit(1, pl.Int8).alias(task)
        hits = outcomes.filter(pl.col("#vain").is_null(), pl.col("action") == action)
        hits = hits.select(KEY).unique().with_columns(one)
        kept = kept.join(hits, on=KEY, how="left", maintain_order="left")
    filled = pl.col(schema.tasks).fill_null(0)
    return kept.with_columns(filled, behaviour=pl.lit(False), split=pl.lit("train"))


def _base(before: Before, schema: Schema, rules: Rules, begin: int, end: int) -> pl.DataFrame:
    """Events of the prepared logs; those that are no impressions for us are behaviours at most."""
    inside = (pl.col("ts") >= begin) & (pl.col("ts") < end)
    asked = {"none": pl.lit(False), "all": pl.lit(True), "window": inside}[rules.base]
    shown = pl.all_horizontal(pl.col("split", *schema.tasks).is_not_null(), asked)
    cleared = [pl.when(shown).then(name).alias(name) for name in ("split", *schema.tasks)]
    return before.events.filter(pl.col("behaviour") | shown).with_columns(cleared)


def _split(rows: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Impressions divided by time; equal times stay together."""
    times = rows.filter(pl.col("split").is_not_null())["ts"].sort()
    split: pl.Expr = pl.when(pl.col("split").is_not_null()).then(pl.lit("train"))
    for name, share in (("validation", rules.validation + rules.test), ("test", rules.test)):
        at = len(times) - round(len(times) * share)
        if at < len(times):
            late = pl.col("split").is_not_null() & (pl.col("ts") >= times[at])
            split = pl.when(late).then(pl.lit(name)).otherwise(split)
    return rows.with_columns(split.alias("split"))


def _users(
    rows: pl.DataFrame, scores: pl.DataFrame, before: Before, schema: Schema
) -> pl.DataFrame:
    """Every user once, as the newest of these scores knew it; one without as it was before."""
    sound = scores.filter(pl.col("degraded").is_null()).sort("received", "entry")
    newest = sound.unique("user_id", keep="last", maintain_order=True)
    told = pl.concat(
        [newest.select("user_id"), read_fields(newest["user"], schema.user)], how="horizontal"
    )
    known = pl.concat([told, before.users.join(told, on="user_id", how="anti")])
    ids = pl.concat([rows["user_id"], before.users["user_id"]]).unique().sort()
    return ids.to_frame().join(known, on="user_id", how="left", maintain_order="left")


def _items(rows: pl.DataFrame, kept: pl.DataFrame, before: Before, schema: Schema) -> pl.DataFrame:
    """Every item once; one that the prepared logs lack has the fields that were last sent with it
    as a candidate."""
    new = rows.select(pl.col("item_id").unique().sort())
    new = new.join(before.items, on="item_id", how="anti", maintain_order="left")
    names = [each.name for each in schema.item[1:]]
    sent = kept.group_by("item_id").agg(pl.col(name).drop_nulls().last() for name in names)
    new = new.join(sent, on="item_id", how="left", maintain_order="left")
    return pl.concat([before.items, new])


def _late(kept: pl.DataFrame, past: pl.DataFrame) -> int:
    """Impressions for which a behaviour came later than the score, but lies in its history by ts:
    histories are contiguous, so it can't be left out."""
    came = past.select("user_id", "ts", arrival().alias("#at")).sort("user_id", "#at")
    oldest_since = pl.col("ts").cum_min(reverse=True).over("user_id")
    came = came.with_columns(oldest_since.alias("#oldest")).drop("ts").sort("#at")
    asked = kept.filter(pl.col("seen_length") > 0)
    asked = asked.select("user_id", "seen_newest", arrival().alias("#at")).sort("#at")
    found = asked.join_asof(
        came,
        on="#at",
        by="user_id",
        strategy="forward",
        allow_exact_matches=False,
        check_sortedness=False,  # can't be checked by user
    )
    return int((found["#oldest"] <= found["seen_newest"]).sum())


def _stale(kept: pl.DataFrame, users: pl.DataFrame, schema: Schema) -> int:
    """Impressions whose score used another profile than the one in ``users``."""
    own = read_fields(kept["#user"], schema.user)
    newest = kept.select("user_id").join(users, on="user_id", how="left", maintain_order="left")
    differs = [own[name].ne_missing(newest[name]) for name in own.columns]
    return (
        int(pl.DataFrame(differs).select(pl.any_horizontal(pl.all()).sum()).item())
        if differs
        else 0
    )
