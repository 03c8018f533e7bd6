"""Live quality: impressions meet their scores and outcomes, and versions are measured by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from model.contract.log import Entry, Event, Scored, Snapshot
from model.contract.schema import Schema
from tests.training.entries import NOON, score, taken
from training.entries import COLUMNS, row_of
from training.quality import JOINED, Requests, Span, Window, measure

SHOP = Schema.parse('name = "shop"\n[[item]]\nname = "item_id"\n')
TWO = Schema.parse(
    'name = "shop"\n[[task]]\nname = "ctr"\n[[task]]\nname = "cvr"\naction = "buy"\n'
    '[[item]]\nname = "item_id"\n'
)
NOW = NOON * 1000
SPAN = Span(seconds=100, delay=10)


def rows(entries: Sequence[Entry], kind: str) -> pl.DataFrame:
    found = [row for each in taken(entries) for of, _, row in [row_of(each, "s")] if of == kind]
    return pl.DataFrame(found, COLUMNS[kind])


def add(window: Window, *entries: Entry, now: int = NOW) -> None:
    window.add(rows(entries, "events"), rows(entries, "scores"), now)


def shown(user: str, request: str, item: str, ago: float = 50) -> Event:
    return did(user, request, item, "impression", ago)


def did(user: str, request: str, item: str, action: str = "click", ago: float = 50) -> Event:
    received = NOW - round(ago * 1000)
    return Event(user, item, action, received // 1000, received, request)


def scored(user: str, request: str, given: dict[str, float], **more: object) -> Scored:
    body = {"probability": {"ctr": list(given.values())}, "received": NOW - 51_000, **more}
    return score(user, request, list(given), **body)


def pairs(window: Window, now: int = NOW) -> list[tuple[str, str, float, int]]:
    found = window.impressions(now).sort("user_id", "request_id", "item_id")
    return found.select("user_id", "item_id", "probability", "label").rows()


def test_an_impression_meets_its_score_and_its_click() -> None:
    """By user, request and item: neither another item's click nor another request's counts."""
    window = Window(SHOP, SPAN)
    add(
        window,
        scored("u", "r", {"a": 0.1, "b": 0.2, "never shown": 0.9}),
        scored("u", "r2", {"a": 0.3}),
        scored("v", "r", {"a": 0.4}),
        *(shown("u", "r", item) for item in "ab"),
        shown("u", "r2", "a"),
        shown("v", "r", "a"),
        did("u", "r", "b"),
        did("u", "r2", "b"),
        did("v", "r", "a", "save"),
    )
    found = window.impressions(NOW)
    assert found.schema == pl.Schema(JOINED)
    assert pairs(window) == [
        ("u", "a", 0.1, 0),
        ("u", "b", 0.2, 1),
        ("u", "a", 0.3, 0),
        ("v", "a", 0.4, 0),
    ]


def test_scores_impressions_and_clicks_may_come_in_any_order() -> None:
    """Each batch is a collector's; what has not met yet waits."""
    entries = [scored("u", "r", {"a": 0.1}), shown("u", "r", "a"), did("u", "r", "a")]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]):
        window = Window(SHOP, Span(100, 45))
        for at in order:
            add(window, entries[at], now=NOW - 20_000)
        assert pairs(window) == [("u", "a", 0.1, 1)]


def test_of_several_answers_under_one_request_id_the_last_before_counts() -> None:
    """Of those that have the item."""
    window = Window(SHOP, SPAN)
    times = {"one": 53, "two": 51, "three": 40}
    given = {"one": {"a": 0.1, "b": 0.2}, "two": {"a": 0.3, "c": 0.4}, "three": {"a": 0.5}}
    for name, ago in times.items():
        add(window, scored("u", "r", given[name], received=NOW - ago * 1000))
    add(window, *(shown("u", "r", item) for item in "abc"))
    assert pairs(window) == [("u", "a", 0.3, 0), ("u", "b", 0.2, 0), ("u", "c", 0.4, 0)]


def test_an_impression_counts_once() -> None:
    """Reported twice, scored twice, clicked twice, and a candidate that was given twice."""
    window = Window(SHOP, SPAN)
    twice = score("u", "r", ["a", "a"], probability={"ctr": [0.1, 0.7]}, received=NOW - 51_000)
    for _ in range(2):
        add(window, twice, shown("u", "r", "a"), shown("u", "r", "a", 49), did("u", "r", "a"))
        add(window, did("u", "r", "a", ago=40))
    assert pairs(window) == [("u", "a", 0.1, 1)]


def test_the_window_slides() -> None:
    """An impression is looked at once its clicks had time to come, and until it is too old."""
    window = Window(SHOP, SPAN)
    add(window, scored("u", "r", {"a": 0.1}), shown("u", "r", "a", ago=5))
    assert pairs(window) == []
    assert len(pairs(window, NOW + 6_000)) == 1
    add(window, did("u", "r", "a", ago=4))
    assert pairs(window, NOW + 6_000) == [("u", "a", 0.1, 1)]
    assert pairs(window, NOW + 104_000) == [("u", "a", 0.1, 1)]
    assert pairs(window, NOW + 106_000) == []
    add(window, now=NOW + 106_000)
    assert pairs(window, NOW + 50_000) == []


def test_what_is_kept_is_bounded() -> None:
    """The newest stay, of impressions and of scores."""
    window = Window(SHOP, Span(100, 10, events=3, candidates=4))
    for n in range(6):
        add(window, scored("u", f"r{n}", {"a": 0.1}), shown("u", f"r{n}", "a", ago=60 - n))
    assert window.impressions(NOW)["request_id"].to_list() == ["r3", "r4", "r5"]
    assert window.requests()["shop", 1].requests == 4


def test_an_erased_user_is_forgotten() -> None:
    """In all that is kept, at once; others are not."""
    window = Window(SHOP, SPAN)
    for user in "uv":
        add(window, scored(user, "r", {"a": 0.1}), shown(user, "r", "a"), did(user, "r", "a"))
    window.forget(["u"])
    assert pairs(window) == [("v", "a", 0.1, 1)]
    assert window.requests()["shop", 1].requests == 1
    add(window, shown("u", "r", "a"))
    assert len(pairs(window)) == 1


def test_each_task_has_its_own_label_and_probability() -> None:
    """By the action of the task; a version without a task is left out of it."""
    window = Window(TWO, SPAN)
    both = {"probability": {"ctr": [0.2], "cvr": [0.01]}}
    add(
        window,
        scored("u", "r", {"a": 0.2}, **both, version=2),
        scored("v", "r", {"a": 0.3}, version=1),
        *(shown(user, "r", "a") for user in "uv"),
        did("u", "r", "a", "buy"),
        did("v", "r", "a", "click"),
    )
    found = window.impressions(NOW).select("task", "version", "probability", "label")
    assert sorted(found.rows()) == [
        ("ctr", 1, 0.3, 1),
        ("ctr", 2, 0.2, 0),
        ("cvr", 2, 0.01, 1),
    ]


def test_requests_are_counted_by_version() -> None:
    """With the share of unknown candidates, and of users without a history where it was read."""
    window = Window(SHOP, SPAN)
    empty = Snapshot(0, None, "00")
    recent = {"received": NOW - 1000}
    add(
        window,
        score("u", "r1", ["a", "b", "c"], unknown=[2], **recent),
        score("v", "r2", ["a"], history=empty, **recent),
        score("v", "r5", ["a"], history=empty, **recent),
        score("u", "r6", ["a"], history=empty, **recent),  # known by r1
        score("w", "r3", ["a"], history=empty, degraded="history_unavailable", **recent),
        score("u", "r4", ["a"], version=2, **recent),
    )
    assert window.requests() == {
        ("shop", 1): Requests(requests=5, unknown_items=1 / 7, unknown_users=0.5),
        ("shop", 2): Requests(requests=1, unknown_items=0.0, unknown_users=0.0),
    }


def test_figures_are_those_of_the_textbook() -> None:
    """Log loss and AUC as scikit-learn has them, on random impressions."""
    generator = np.random.default_rng(3)
    probability = generator.uniform(0.01, 0.6, 500).round(2)
    label = (generator.random(500) < probability).astype(np.int8)
    found = measure(pl.DataFrame({"label": label, "probability": probability}))
    assert found.impressions == sum(found.histogram) == 500
    assert found.clicks == label.sum()
    assert found.ratio == pytest.approx(probability.sum() / label.sum())
    assert found.log_loss == pytest.approx(log_loss(label, probability))
    assert found.auc == pytest.approx(roc_auc_score(label, probability))


def test_without_a_click_the_ratio_is_infinite() -> None:
    """And there is no AUC."""
    found = measure(pl.DataFrame({"label": [0, 0], "probability": [0.1, 0.2]}))
    assert np.isinf(found.ratio)
    assert np.isnan(found.auc)
