"""Which ids get a row: learnt, known from before, forgotten."""

from __future__ import annotations

import numpy as np
import polars as pl

from model.contract.ids import key
from training.logs import Logs
from training.vocabulary import PER_DAY, Seen, learn

NOTHING = np.zeros(0, np.int64)


def by_id(seen: Seen, ids: list[str]) -> dict[str, int]:
    """The last day of each of the ids that has a row."""
    found = dict(zip(seen.keys.tolist(), seen.day.tolist(), strict=True))
    return {each: found[key(each)] for each in ids if key(each) in found}


def on_days(logs: Logs) -> Logs:
    """Every time a day."""
    events = logs.events.with_columns(pl.col("ts") * PER_DAY["s"])
    return Logs(logs.schema, events, logs.items, logs.users, logs.schema_text)


def test_the_last_day_is_that_of_the_newest_training_event(shop_logs: Logs) -> None:
    """Of every table and group: items, tags of items and users, behaviours, context."""
    logs = on_days(shop_logs)
    found = learn(logs)
    assert set(found) == {"gender", "genre", "item_id", "action", "hour"}
    shown, behaviour = pl.col("split"), pl.col("behaviour")
    seen = logs.events.filter((shown == "train") | (shown.is_null() & behaviour))
    day = pl.col("ts").max() // PER_DAY["s"]
    hours = dict(seen.drop_nulls("hour").group_by("hour").agg(day).rows())
    assert by_id(found["hour"], list(hours)) == hours
    tags = (
        logs.items.explode("genre")
        .join(seen, on="item_id")
        .select(pl.col("genre").alias("id"), "ts")
    )
    liked = (
        logs.users.explode("likes")
        .join(seen, on="user_id")
        .select(pl.col("likes").alias("id"), "ts")
    )
    shelf = seen.select(pl.col("shelf").alias("id"), "ts")
    genres = pl.concat([tags, liked, shelf]).drop_nulls("id").group_by("id").agg(day)
    assert by_id(found["genre"], genres["id"].to_list()) == dict(genres.rows())


def test_what_was_known_before_needs_no_count(shop_logs: Logs) -> None:
    """An id seen less often than min_count, or not at all, keeps its row and its last day."""
    logs = on_days(shop_logs)
    counts = logs.events.group_by("item_id").len().filter(pl.col("len") > 0)
    rare = counts.sort("len")["item_id"][0]
    keys = np.sort(np.asarray([key(rare), key("gone")], np.uint64))
    before = {"item_id": Seen(keys, np.asarray([-5, -5]))}
    found = by_id(learn(logs, before)["item_id"], [rare, "gone"])
    assert found["gone"] == -5
    assert found[rare] >= -5
    assert np.all(np.diff(learn(logs, before)["item_id"].keys.astype(np.float64)) > 0)


def test_ids_not_seen_for_a_while_are_forgotten(shop_logs: Logs) -> None:
    """Those last seen more days before the newest training event than asked for, and only those."""
    logs = on_days(shop_logs)
    every = learn(logs)["item_id"]
    last = int(max(each.day.max() for each in learn(logs).values()))
    keys = np.sort(np.append(every.keys, np.asarray([key("gone")], np.uint64)))
    before = {"item_id": Seen(keys, np.full(len(keys), last - 11))}
    kept = learn(logs, before, forget_days=10)["item_id"]
    assert key("gone") not in kept.keys.tolist()
    recent = every.keys[every.day >= last - 10]
    assert np.array_equal(kept.keys, recent)
    assert 0 < len(recent) < len(every.keys) or every.day.min() >= last - 10
    assert key("gone") in learn(logs, before, forget_days=11)["item_id"].keys.tolist()


def test_how_far_it_is_is_counted_in_rows(shop_logs: Logs) -> None:
    """From none to all of the events."""
    told: list[tuple[str, int, int]] = []
    learn(shop_logs, update=lambda stage, done, total, _: told.append((stage, done, total)))
    rows = len(shop_logs)
    assert told == [("learn ids", 0, rows), ("learn ids", rows, rows)]
