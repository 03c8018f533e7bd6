"""The world as live traffic: it goes on from its logs; a shift of taste moves what is liked."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.traffic import Traffic
from training.world import WINDOW, World

WORLD = World(users=60, items=100, categories=20, interests=4)


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return Traffic.after(WORLD, WORLD.logs(60), seed=3)


def test_it_knows_the_last_clicks_of_the_logs() -> None:
    """Those of each user, the latest last, by category."""
    logs = WORLD.logs(60)
    found = Traffic.after(WORLD, logs, seed=3)
    categories = dict(zip(logs.items["item_id"], logs.items["category"], strict=True))
    events = logs.events.filter(logs.events["behaviour"])
    for user in (0, 17, 59):
        items = events.filter(events["user_id"] == str(user))["item_id"].to_list()
        expected = [int(categories[item]) for item in items][-WINDOW:]
        assert found.clicked[user][-len(expected) :].tolist() == expected
        assert (found.clicked[user][: WINDOW - len(expected)] == -1).all()


def test_its_probabilities_are_those_of_the_logs() -> None:
    """The last page of the logs has the probabilities that the formula gives before it."""
    logs = WORLD.logs(60)
    last = logs.events["ts"].max()
    before = logs.events.filter(logs.events["ts"] < last)
    shortened = type(logs)(logs.schema, before, logs.items, logs.users, logs.schema_text)
    found = Traffic.after(WORLD, shortened, seed=3)
    shown = logs.events.filter(logs.events["ts"] == last).sort("user_id", maintain_order=True)
    user = shown["user_id"].cast(int).to_numpy().reshape(-1, 10)
    items = shown["item_id"].cast(int).to_numpy().reshape(-1, 10)
    place = shown["position"].cast(int).to_numpy().reshape(-1, 10)
    expected = shown["probability"].to_numpy().reshape(-1, 10)
    assert np.allclose(found.probability(user[:, 0], items) * 0.95**place, expected)


def test_candidates_are_offered_once_each(traffic: Traffic) -> None:
    """As many as asked for, to every user."""
    offered = traffic.offer(30)
    assert offered.shape == (60, 30)
    assert all(len(set(row)) == 30 for row in offered.tolist())


def test_a_click_enters_the_history(traffic: Traffic) -> None:
    """What is clicked is what the next visit depends on."""
    users = np.arange(60)
    shown = traffic.offer(10)
    before = traffic.clicked.copy()
    click = traffic.click(users, shown)
    assert 0 < click.sum() < click.size
    for user in users:
        new = traffic.shelf.category[shown[user][click[user]]]
        assert traffic.clicked[user].tolist() == [*before[user], *new][-WINDOW:]


def test_a_shift_of_taste_moves_what_is_liked(traffic: Traffic) -> None:
    """As many categories come into fashion as go out of it; the others stay as they were."""
    users, offered = np.arange(60), traffic.offer(30)
    before = traffic.probability(users, offered)
    traffic.shift(0.2, 1.5)
    assert sorted(traffic.fashion.tolist()) == [-1.5] * 4 + [0.0] * 12 + [1.5] * 4
    after = traffic.probability(users, offered)
    moved = traffic.fashion[traffic.shelf.category[offered]]
    odds = np.log(after / (1 - after)) - np.log(before / (1 - before))
    assert np.allclose(odds, moved)
