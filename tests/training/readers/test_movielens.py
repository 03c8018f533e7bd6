"""MovieLens-20M; the reader of the 1M is tested with the canonical form."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tests.training.prepared import read_chunks
from tests.training.readers import files
from tests.training.spilled import in_groups
from training.logs import LogsError
from training.readers import movielens

read_movielens_20m = partial(read_chunks, movielens.read_movielens_20m)
DIGITS = "is not a whole number of at most 9 digits"


def ratings(users: int) -> list[str]:
    """Each user rates film 2 before film 1, listed the other way round."""
    return [f"{user},{film},4.5,{100 - film}" for user in range(1, users + 1) for film in (1, 2)]


def test_four_stars_and_more_are_liked_half_stars_included(tmp_path: Path) -> None:
    """Ratings 4.0, 4.5 and 5.0 have label 1, and the stars go with the behaviour."""
    stars = [f"{half / 2}" for half in range(1, 11)]
    lines = [f"1,1,{rating},{at}" for at, rating in enumerate(stars)]
    events = read_movielens_20m(files.movielens_20m(tmp_path, lines), partial=True).events
    assert events["rating"].to_list() == stars
    assert events["ctr"].to_list() == [0] * 7 + [1] * 3
    assert events["behaviour"].all()


def test_events_are_in_the_order_of_time_and_films_have_genres(tmp_path: Path) -> None:
    """A quoted title does no harm, and no genres listed are none."""
    logs = read_movielens_20m(files.movielens_20m(tmp_path, ratings(1)), partial=True)
    assert logs.events.select("item_id", "ts").rows() == [("2", 98), ("1", 99)]
    assert logs.items.rows() == [("1", ["Comedy", "Drama"]), ("2", [])]


def test_users_are_split_as_in_the_paper(tmp_path: Path) -> None:
    """About 27.8 % of the users are test, a tenth of the others validation; each in one split."""
    logs = read_movielens_20m(files.movielens_20m(tmp_path, ratings(3000)), partial=True)
    splits = logs.events.group_by("user_id").agg(pl.col("split").unique())
    assert splits["split"].list.len().max() == 1
    share = splits["split"].list.first().value_counts(normalize=True).sort("split")["proportion"]
    assert share.to_list() == pytest.approx([0.278, 0.65, 0.072], abs=0.03)


def test_another_size_than_the_published_is_an_error_unless_it_is_said(tmp_path: Path) -> None:
    """The first count that differs is named, with both numbers."""
    path = files.movielens_20m(tmp_path, ratings(3))
    expected = r"ml-20m\.zip: ratings: expected the published 20,000,263, found 6 \(--partial"
    with pytest.raises(LogsError, match=expected):
        read_movielens_20m(path)
    assert read_movielens_20m(path, partial=True).events.height == 6


def test_the_published_size_is_taken_without_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratings, users and films are all counted."""
    path = files.movielens_20m(tmp_path, ratings(3))
    monkeypatch.setattr(movielens, "PUBLISHED_20M", {"ratings": 6, "users": 3, "movies": 2})
    assert read_movielens_20m(path).events.height == 6
    monkeypatch.setattr(movielens, "PUBLISHED_20M", {"ratings": 6, "users": 3, "movies": 3})
    with pytest.raises(LogsError, match="movies: expected the published 3, found 2"):
        read_movielens_20m(path)


def test_malformed_ratings_have_their_line_the_header_being_the_first(tmp_path: Path) -> None:
    """Each kind has its reason, and the sound lines stay."""
    lines = ["1,1,4.0,5", "1,1,4.2,5", "1,1,4,5", ",1,4.0,5", "1,1,4.0,x", "1,1,4.0", "1,2,0.5,6"]
    lines += ["abc,xyz,3.5,5", "1,1.0,3.5,5"]
    logs = read_movielens_20m(files.movielens_20m(tmp_path, lines), partial=True, max_bad_share=0.9)
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [
        (3, "rating is not 0.5 to 5.0 in half stars"),
        (4, "rating is not 0.5 to 5.0 in half stars"),
        (5, "empty userId"),
        (6, "timestamp is not an integer"),
        (7, "the number of fields is not 4"),
        (9, f"userId {DIGITS}"),
        (10, f"movieId {DIGITS}"),
    ]
    assert logs.events.height == 2


def test_groups_of_users_are_the_same_logs_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratings at the same time, and the malformed ones, too; one group at a time is in memory."""
    lines = [
        f"{user},{1 + user * at % 2},{1 + (user + at) % 9 / 2},{at * 3 % 4}"
        for at in range(9)
        for user in range(1, 250)
    ]
    path = files.movielens_20m(tmp_path, [*lines, "7,1,6.0,1"])
    one = read_movielens_20m(path, partial=True)
    found = in_groups(monkeypatch, run=2000, group=2000)
    many = read_movielens_20m(path, partial=True)
    assert len(found) > 9
    assert many.events.equals(one.events)
    assert (many.items.equals(one.items), many.users.equals(one.users)) == (True, True)
    assert (many.left_out, many.malformed) == (one.left_out, one.malformed)
    assert many.malformed.count == 1
