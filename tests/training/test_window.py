"""The days of a window, and how time splits them."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from tests.training import days
from training import window
from training.logs import Logs
from training.window import Window, cut, digest


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
