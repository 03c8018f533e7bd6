"""The days of a window, and how time splits them."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from model.contract.schema import Schema
from tests.training import days
from training import window
from training.logs import Logs
from training.window import Window, cut, digest, from_ms, hold_out, learnt_until


@pytest.fixture(scope="module")
def logs() -> Logs:
    return days.world(4, users=10)


def test_nothing_from_behind_the_window_is_seen(logs: Logs) -> None:
    """Impressions are those of its days; before it only behaviours are left, behind it nothing."""
    middle = Window(days.day(1), days.day(2))
    found = cut(logs, middle, 0.15)
    begin, end = middle.begin(logs.schema), middle.end(logs.schema)
    assert (begin, end) == (days.BEGIN + 86_400, days.BEGIN + 3 * 86_400)
    assert found.events["ts"].to_numpy().max() < end
    shown = found.events.filter(pl.col("split").is_not_null())
    assert len(shown) == 2 * 4 * 10 * 10
    assert shown["ts"].to_numpy().min() >= begin
    before = found.events.filter(pl.col("ts") < begin)
    assert before["behaviour"].all()
    assert before["ctr"].is_null().all()
    assert before.height == logs.events.filter(pl.col("behaviour"), pl.col("ts") < begin).height
    found.check()
    assert window.days(logs) == [days.day(number) for number in range(4)]


def test_splits_follow_one_another_in_time(logs: Logs) -> None:
    """Train, validation, test; impressions of one time are of one split."""
    found = cut(logs, Window(days.day(0), days.day(3)), 0.3).events
    parts = [found.filter(split=name)["ts"].to_numpy() for name in ("train", "validation", "test")]
    assert all(len(part) for part in parts)
    assert parts[0].max() < parts[1].min() <= parts[1].max() < parts[2].min()
    share = 1 - len(parts[0]) / sum(map(len, parts))
    assert 0.3 <= share < 0.3 + 1 / 16


def test_only_newer_impressions_are_held_out(logs: Logs) -> None:
    """Older ones of the test set validate; a time behind what was learnt changes nothing."""
    found = cut(logs, Window(days.day(0), days.day(3)), 0.5)
    test = found.events.filter(split="test")["ts"].unique().sort()
    later = hold_out(found, test[1])
    assert later.events.filter(split="test")["ts"].min() == test[1]
    for split, count in (("train", 800), ("validation", 500), ("test", 300)):
        assert len(later.events.filter(split=split)) == count
    assert learnt_until(found) <= test[0] * 1000 < learnt_until(later) <= test[1] * 1000
    same = hold_out(found, from_ms(learnt_until(found), found.schema))
    assert digest(same) == digest(found)
    in_ms = found.schema_text.replace('name = "synthetic"', 'name = "synthetic"\nts_unit = "ms"')
    schema = Schema.parse(in_ms)
    assert schema.ts_unit == "ms"
    events = found.events.with_columns(pl.col("ts") * 1000 + 1)
    until = learnt_until(replace(found, schema=schema, events=events))
    assert learnt_until(found) - 1000 < until < learnt_until(found)
    assert [from_ms(each, found.schema) for each in (0, 1, 1000, 1001)] == [0, 1, 1, 2]
    assert from_ms(1001, schema) == 1001


def test_a_skipped_day_only_makes_histories(logs: Logs) -> None:
    """Its impressions are gone, its clicks are seen by later ones."""
    found = cut(logs, Window(days.day(0), days.day(3)), 0.15, [days.day(2)]).events
    day = pl.col("ts").is_between(days.BEGIN + 2 * 86_400, days.BEGIN + 3 * 86_400 - 1)
    assert found.filter(day)["split"].is_null().all()
    assert found.filter(day).height == logs.events.filter(day, pl.col("behaviour")).height > 0


def test_a_window_without_impressions_is_empty(logs: Logs) -> None:
    """Histories alone train nothing."""
    assert not len(cut(logs, Window(days.day(8), days.day(9)), 0.15).events)


def test_the_digest_changes_with_anything(logs: Logs) -> None:
    """A label, an item, a user, the schema; the same logs give the same."""
    flipped = days.relabel(logs, 3, lambda shown: 1 - shown["ctr"])
    others = [
        flipped,
        replace(logs, items=logs.items[1:]),
        replace(logs, users=logs.users.reverse()),
        replace(logs, schema_text=logs.schema_text + "\n"),
        replace(logs, events=logs.events.rename({"position": "place"})),
    ]
    digests = {digest(each) for each in (logs, *others)}
    assert len(digests) == 1 + len(others)
    assert digest(days.world(4, users=10)) == digest(logs)
