"""MovieLens-1M and -20M from their official zips: a rating is a behaviour and an impression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from terminal.progress import Update, quiet
from training.logs import Logs, LogsError
from training.parts import Reading, TextFile
from training.readers.official import (
    SCHEMAS,
    hold,
    not_digits,
    other_than,
    texts,
    whole_numbers,
)
from training.readers.protocol import VALIDATION_SHARE, by_user, drawn
from training.rows import MAX_BAD_SHARE, Rows, cut, empty, pour, repeated, settle, whole
from training.spill import Distinct, Spill, groups

TEST_SHARE = 1679 / 6040
COLUMNS = {
    "ratings": ("user_id", "item_id", "rating", "ts"),
    "movies": ("item_id", "title", "genre"),
    "users": ("user_id", "gender", "age", "occupation", "zip_code"),
}
# Of the 20M: 100,000 of the users train (paper section 6.1).
TEST_SHARE_20M = 38_493 / 138_493
RATINGS_20M = ("userId", "movieId", "rating", "timestamp")
MOVIES_20M = ("movieId", "title", "genres")
PUBLISHED_20M = {"ratings": 20_000_263, "users": 138_493, "movies": 27_278}
STARS = [str(half / 2) for half in range(1, 11)]
NO_GENRES = "(no genres listed)"
BEGINNING = 3  # digits of a user: a hundredth of them at most, as their numbers go up to 138,493


def read_movielens(
    zip_path: str | Path,
    test_users: str | Path | None = None,
    *,
    seed: int = 0,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Logs:
    """MovieLens-1M from its official zip.

    The label is rating >= 4. ``test_users`` lists the test set's users, one id a line; without it
    a hash puts 1679 / 6040 of the users into test. A hash puts 10 % of the others into validation.
    Raises `LogsError`.
    """
    files = {name: TextFile(Path(zip_path), f"ml-1m/{name}.dat") for name in COLUMNS}
    reading = Reading.of(list(files.values()), update)
    ratings, movies, people = (
        whole(cut(file.name, file.parts(reading), "latin-1", "::", COLUMNS[name]))
        for name, file in files.items()
    )
    update("arrange", 0, 0, {})
    ratings = ratings.with_columns(pl.col("ts").cast(pl.Int64, strict=False)).mark(
        *empty("user_id", "item_id"),
        *not_digits("user_id", "item_id"),
        (~pl.col("rating").is_in(["1", "2", "3", "4", "5"]), "rating is not 1 to 5"),
        (pl.col("ts").is_null(), "ts is not an integer"),
    )
    movies = movies.mark(*empty("item_id"), *not_digits("item_id")).mark(repeated("item_id"))
    people = people.mark(
        *empty("user_id"),
        *not_digits("user_id", "age", "occupation"),
        other_than("gender", "F", "M"),
    ).mark(repeated("user_id"))
    malformed = settle([rows.dropped for rows in (ratings, movies, people)], max_bad_share)
    users, events = people.sound(), ratings.sound()

    known = pl.concat([users["user_id"], events["user_id"].unique()]).unique()
    if test_users is None:
        test = drawn(known, "test", seed, TEST_SHARE)
    else:
        test = _listed(Path(test_users), known)
    validation = drawn(known, "validation", seed, VALIDATION_SHARE)
    events = _impressions(events, test, validation)
    return Logs.build(
        SCHEMAS / "movielens-1m.toml", events, _genres(movies.sound()), users, malformed
    )


def read_movielens_20m(
    zip_path: str | Path,
    work: Path,
    *,
    seed: int = 0,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Iterator[Logs]:
    """MovieLens-20M from its official zip: chunks of whole users.

    Rows lie in ``work`` in the meantime (`training.spill`). The protocol is that of the paper
    (section 6.1): the label is rating >= 4, half stars included. A hash puts 38,493 / 138,493 of
    the users into test and 10 % of the others into validation. Raises `LogsError`.
    """
    path = Path(zip_path)
    of_ratings, of_movies = (TextFile(path, f"ml-20m/{n}.csv") for n in ("ratings", "movies"))
    reading = Reading.of([of_ratings, of_movies], update)
    parts = cut(of_ratings.name, of_ratings.parts(reading), "utf-8", ",", RATINGS_20M, True)
    ratings, people = Spill(work, "ratings", "user_id", BEGINNING), Distinct("user_id")

    def add(frame: pl.DataFrame) -> None:
        stars = pl.col("rating").cast(pl.Enum(STARS))
        rows = frame.select(*whole_numbers("userId", "movieId"), stars, "timestamp")
        rows = rows.rename({"userId": "user_id", "movieId": "item_id", "timestamp": "ts"})
        ratings.add(rows)
        people.add(rows.select("user_id"))

    dropped = pour(map(_rating_20m, parts), max_bad_share, add)
    movies = whole(cut(of_movies.name, of_movies.parts(reading), "utf-8", ",", MOVIES_20M, True))
    movies = movies.mark(*empty("movieId"), *not_digits("movieId")).mark(repeated("movieId"))
    malformed = settle([dropped, movies.dropped], max_bad_share)
    found = {
        "ratings": dropped.total,
        "users": people.rows().height,
        "movies": movies.frame.height,
    }
    hold(str(path), PUBLISHED_20M, found, partial)
    items = movies.sound().rename({"movieId": "item_id", "genres": "genre"})
    items = _genres(items.with_columns(pl.col("genre").replace(NO_GENRES, "")))

    def logs(group: tuple[pl.DataFrame, ...]) -> Logs:
        rated = group[0].with_columns(texts("user_id", "item_id", "rating"))
        users = rated.select(pl.col("user_id").unique().sort())
        test = drawn(users["user_id"], "test", seed, TEST_SHARE_20M)
        validation = drawn(users["user_id"], "validation", seed, VALIDATION_SHARE)
        events = _impressions(rated, test, validation)
        return Logs.build(SCHEMAS / "movielens-20m.toml", events, items, users, malformed)

    yield from map(logs, groups(ratings, update=update))


def _rating_20m(rows: Rows) -> Rows:
    return rows.with_columns(pl.col("timestamp").cast(pl.Int64, strict=False)).mark(
        *empty("userId", "movieId"),
        *not_digits("userId", "movieId"),
        (~pl.col("rating").is_in(STARS), "rating is not 0.5 to 5.0 in half stars"),
        (pl.col("timestamp").is_null(), "timestamp is not an integer"),
    )


def _impressions(ratings: pl.DataFrame, test: pl.Series, validation: pl.Series) -> pl.DataFrame:
    return ratings.with_columns(
        pl.lit(True).alias("behaviour"),
        by_user("user_id", test, validation).alias("split"),
        (pl.col("rating").cast(pl.Float32) >= 4).cast(pl.Int8).alias("ctr"),
    )


def _genres(movies: pl.DataFrame) -> pl.DataFrame:
    kept = pl.element().filter(pl.element() != "")
    return movies.with_columns(pl.col("genre").str.split("|").list.eval(kept))


def _listed(path: Path, known: pl.Series) -> pl.Series:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LogsError(str(path), "file", f"a readable text file ({error})") from None
    users, ids = set(known), [line.strip() for line in lines]
    for number, user in enumerate(ids, 1):
        if user and user not in users:
            raise LogsError(str(path), f"line {number}", f"a user of the logs, found {user!r}")
    return pl.Series("user_id", [user for user in ids if user], dtype=pl.String)
