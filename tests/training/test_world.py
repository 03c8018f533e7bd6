"""The synthetic world of known probabilities."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.logs import Logs, LogsError
from training.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World(users=200, items=300, categories=60, interests=3, seed_clicks=10, seed=5)


@pytest.fixture(scope="module")
def logs(world: World) -> Logs:
    return world.logs(impressions_per_user=200)


def shown(logs: Logs) -> pl.DataFrame:
    events = logs.events.filter(pl.col("split").is_not_null())
    return events.join(logs.items, on="item_id", maintain_order="left")


def gauc(impressions: pl.DataFrame, score: str) -> float:
    """AUC per user, weighted by impressions, users with one class left out."""
    label = pl.col("ctr").cast(pl.Float64)
    rank = pl.col(score).rank()
    good, size = label.sum(), pl.len()
    area = ((rank * label).sum() - good * (good + 1) / 2) / (good * (size - good))
    users = impressions.group_by("user_id").agg(area.alias("area"), size.alias("size"))
    users = users.filter(pl.col("area").is_finite())
    return float(np.average(users["area"], weights=users["size"]))


def test_the_same_world_gives_the_same_logs(world: World, logs: Logs) -> None:
    """Every event, label and probability again, from a second run."""
    again = world.logs(impressions_per_user=200)
    assert again.events.equals(logs.events)
    assert again.items.equals(logs.items)


def test_another_seed_gives_other_logs(world: World, logs: Logs) -> None:
    """Worlds that differ in the seed share no history."""
    other = dataclasses.replace(world, seed=6).logs(impressions_per_user=200)
    assert not other.events["item_id"].equals(logs.events["item_id"])


def test_clicks_come_as_often_as_their_probability_says(logs: Logs) -> None:
    """The mean label is the mean probability, overall and in each tenth, within 4 deviations."""
    impressions = shown(logs).sort("probability")
    for part in (impressions, *impressions.iter_slices(impressions.height // 10)):
        chance = part["probability"].to_numpy()
        deviation = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
        assert abs(part["ctr"].mean() - chance.mean()) < 4 * deviation


def test_the_probability_follows_from_the_clicks_on_earlier_pages(world: World, logs: Logs) -> None:
    """The docstring's formula, from the events alone, up to the quality of the item.

    Quality is the same wherever an item is shown, so the quality that the formula leaves over must
    not vary within an item.
    """
    events = logs.events.join(logs.items, on="item_id", maintain_order="left")
    left: dict[str, list[float]] = {}
    for user in ("0", "1", "2"):
        mine = events.filter(pl.col("user_id") == user)
        clicks = mine.filter("behaviour")
        for row in mine.filter(pl.col("split").is_not_null()).iter_rows(named=True):
            past = clicks.filter(pl.col("ts") < row["ts"])["category"].to_list()[-50:]
            ages = [age for age, name in enumerate(reversed(past)) if name == row["category"]]
            match = sum(world.decay**age for age in ages)
            chance = row["probability"] / 0.95 ** int(row["position"])
            logit = np.log(chance / (1 - chance))
            rest = logit - world.bias - world.strength * np.tanh(match)
            left.setdefault(row["item_id"], []).append(rest)
    assert max(np.ptp(rests) for rests in left.values()) < 1e-9
    qualities = [rests[0] for rests in left.values()]
    assert np.std(qualities) == pytest.approx(0.2, abs=0.04)


def test_the_true_probability_ranks_far_better_than_one_blind_to_the_history() -> None:
    """GAUC on test: the truth reaches 0.70 to 0.80, the item's own click rate stays below 0.62."""
    logs = World(users=500, items=500, seed=1).logs(impressions_per_user=200)
    impressions = shown(logs)
    train = impressions.filter(pl.col("split") == "train")
    item = train.group_by("item_id").agg((pl.col("ctr").sum() + 2) / (pl.len() + 10))
    place = train.group_by("position").agg(pl.col("ctr").mean().alias("place"))
    test = impressions.filter(pl.col("split") == "test")
    test = test.join(item.rename({"ctr": "rate"}), on="item_id", how="left")
    test = test.join(place, on="position", how="left")
    blind = pl.col("rate").fill_null(0.2) * pl.col("place")
    test = test.with_columns(blind.alias("blind"))
    truth = gauc(test, "probability")
    assert 0.70 < truth < 0.80
    assert gauc(test, "blind") < 0.62 < truth - 0.1


def test_users_click_in_bursts_of_several_interests(logs: Logs) -> None:
    """Seed clicks show up to three categories, and stay in one more often than by chance."""
    seeds = logs.events.filter(pl.col("split").is_null())
    seeds = seeds.join(logs.items, on="item_id", maintain_order="left")
    counts = seeds.group_by("user_id").agg(pl.col("category").n_unique())["category"]
    assert counts.max() == 3
    same = (pl.col("category") == pl.col("category").shift()).over("user_id")
    assert seeds.select(same.mean()).item() > 0.8


def test_pages_hold_ten_different_items_at_ten_positions(logs: Logs) -> None:
    """All of a page at one time, so that none of it sees another's click."""
    pages = (
        shown(logs)
        .group_by("user_id", "ts")
        .agg(pl.col("item_id").n_unique(), pl.col("position").n_unique(), pl.len())
    )
    assert pages.height == 200 * 20
    for column in ("item_id", "position", "len"):
        assert (pages[column] == 10).all()


def test_the_last_pages_are_test_and_those_before_validation(logs: Logs) -> None:
    """Of 20 pages two are test, two validation; seed clicks are behaviours and nothing else."""
    pages = logs.events.filter(pl.col("user_id") == "7").select("ts", "split").unique().sort("ts")
    splits = [None] * 10 + ["train"] * 16 + ["validation"] * 2 + ["test"] * 2
    assert pages["split"].to_list() == splits
    events = logs.events
    assert (events["behaviour"] == (events["split"].is_null() | (events["ctr"] == 1))).all()


def test_a_world_that_cannot_be_is_refused() -> None:
    """More interests than categories, fewer items than a page, fewer pages than splits."""
    with pytest.raises(ValueError, match="interests <= categories <= items"):
        World(categories=2, interests=3)
    with pytest.raises(ValueError, match="10 items"):
        World(items=5, categories=5, interests=2)
    with pytest.raises(ValueError, match="20 impressions"):
        World().logs(impressions_per_user=20)


@pytest.fixture(scope="module")
def buyers(world: World) -> Logs:
    return dataclasses.replace(world, conversions=True).logs(impressions_per_user=200)


def test_conversions_change_no_click(logs: Logs, buyers: Logs) -> None:
    """Everything that the world without them has is there, bit for bit."""
    assert buyers.events.select(logs.events.columns).equals(logs.events)
    assert buyers.items.select(logs.items.columns).equals(logs.items)


def test_conversions_follow_clicks_as_often_as_their_probability_says(buyers: Logs) -> None:
    """Overall and in each tenth, within 4 deviations, and never without a click."""
    impressions = shown(buyers).sort("conversion.probability")
    assert impressions.filter(pl.col("conversion") > pl.col("ctr")).is_empty()
    for part in (impressions, *impressions.iter_slices(impressions.height // 10)):
        chance = part["conversion.probability"].to_numpy()
        deviation = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
        assert abs(part["conversion"].mean() - chance.mean()) < 4 * deviation


def test_the_probability_of_a_conversion_follows_from_interest_price_and_budget(
    world: World, buyers: Logs
) -> None:
    """The docstring's formula, from the tables alone: f(h) is the same in both probabilities."""
    events = buyers.events.join(buyers.items, on="item_id", maintain_order="left")
    events = events.join(buyers.users, on="user_id", maintain_order="left")
    mine = events.filter(pl.col("user_id") == "3")
    clicks = mine.filter("behaviour")
    checked = 0
    for row in mine.filter(pl.col("split").is_not_null()).iter_rows(named=True):
        past = clicks.filter(pl.col("ts") < row["ts"])["category"].to_list()[-50:]
        ages = [age for age, name in enumerate(reversed(past)) if name == row["category"]]
        pull = 2 * np.tanh(sum(world.decay**age for age in ages))
        logit = pull - abs(int(row["price"]) - int(row["budget"]))
        after = row["conversion.probability"] / row["probability"]
        assert after == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-12)
        checked += 1
    assert checked == 200
    assert set(buyers.items["price"]) == set(buyers.users["budget"]) == set("01234")


def test_the_probabilities_of_all_tasks_are_kept_and_held_to_be_some(
    buyers: Logs, tmp_path: Path
) -> None:
    """What is written is read again; a probability of the second task above 1 is refused."""
    buyers.write(tmp_path)
    assert Logs.read(tmp_path).events.equals(buyers.events)
    wrong = buyers.events.with_columns(pl.col("conversion.probability") + 1)
    with pytest.raises(LogsError, match=r"conversion.probability: expected numbers from 0 to 1"):
        dataclasses.replace(buyers, events=wrong).check()
