"""Readers of the owners' formats: MovieLens-1M's zip and the Amazon 5-core files, to `Logs`.

A malformed row is dropped, counted and listed with its line; above ``max_bad_share`` of a file the
job stops. All shares of users come from a hash of the id, so a user keeps its split between runs.
"""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
from xxhash import xxh3_64_intdigest

from terminal.progress import Update, quiet
from training.logs import Logs, LogsError
from training.rows import Reading, Rows, empty, need, pieces, read_csv, repeated, settle

SCHEMAS = Path(__file__).with_name("schemas")
MAX_BAD_SHARE = 0.001
TEST_SHARE = 1679 / 6040
VALIDATION_SHARE = 0.1
COLUMNS = {
    "ratings": ("user_id", "item_id", "rating", "ts"),
    "movies": ("item_id", "title", "genre"),
    "users": ("user_id", "gender", "age", "occupation", "zip_code"),
}


def read_movielens(
    zip_path: str | Path,
    test_users: str | Path | None = None,
    *,
    seed: int = 0,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Logs:
    """MovieLens-1M from its official zip; a rating is a behaviour and an impression.

    The label is rating >= 4. ``test_users`` lists the test set's users, one id a line; without it
    a hash puts 1679 / 6040 of the users into test. A hash puts 10 % of the others into validation.
    Raises `LogsError`.
    """
    archive = Path(zip_path)
    ratings, movies, people = _members(archive, update)
    update("arrange", 0, 0, {})
    ratings = ratings.with_columns(pl.col("ts").cast(pl.Int64, strict=False)).mark(
        *empty("user_id", "item_id"),
        (~pl.col("rating").is_in(["1", "2", "3", "4", "5"]), "rating is not 1 to 5"),
        (pl.col("ts").is_null(), "ts is not an integer"),
    )
    movies = movies.mark(*empty("item_id")).mark(repeated("item_id"))
    people = people.mark(*empty("user_id")).mark(repeated("user_id"))
    malformed = settle([ratings, movies, people], max_bad_share)
    users, events = people.sound(), ratings.sound()

    known = pl.concat([users["user_id"], events["user_id"].unique()]).unique()
    if test_users is None:
        test = _drawn(known, "test", seed, TEST_SHARE)
    else:
        test = _listed(Path(test_users), known)
    validation = _drawn(known, "validation", seed, VALIDATION_SHARE)
    events = events.with_columns(
        pl.lit(True).alias("behaviour"),
        pl.when(pl.col("user_id").is_in(test.implode()))
        .then(pl.lit("test"))
        .when(pl.col("user_id").is_in(validation.implode()))
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
        .alias("split"),
        pl.col("rating").is_in(["4", "5"]).cast(pl.Int8).alias("ctr"),
    )
    kept = pl.element().filter(pl.element() != "")
    genre = pl.col("genre").str.split("|").list.eval(kept)
    items = movies.sound().with_columns(genre)
    return Logs.build(SCHEMAS / "movielens-1m.toml", events, items, users, malformed)


def read_amazon(
    prefix: str | Path,
    *,
    seed: int = 0,
    validation_share: float = 0.2,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Logs:
    """Amazon 5-core reviews from ``prefix`` + .events.csv.gz, .items.csv.gz and .test.csv.gz.

    For a user with items i_0..i_{n-1}: every event is a behaviour at ts = step; i_1..i_{n-2} are
    also positive impressions, each with one item the user never has, drawn uniformly with ``seed``,
    as negative at the same ts. The last item and the given negative are the test pair. Validation
    is the pair of step n-2 of ``validation_share`` of the users, chosen by hash.
    Raises `LogsError`.
    """
    files = [Path(f"{prefix}.{part}.csv.gz") for part in ("events", "items", "test")]
    reading = Reading.of(files, update)
    events, items, tests = (read_csv(file, reading) for file in files)
    update("arrange", 0, 0, {})
    events = need(events, ("user_id", "item_id", "step"))
    events = events.with_columns(pl.col("step").cast(pl.Int64, strict=False))
    events = events.mark(
        *empty("user_id", "item_id"), (pl.col("step").is_null(), "step is not an integer")
    ).mark(repeated("user_id", "step"))
    items = need(items, ("item_id", "category_id")).mark(*empty("item_id", "category_id"))
    items = items.mark(repeated("item_id"))
    own = (
        events.sound()
        .rename({"step": "ts"})
        .sort("user_id", "ts")
        .with_columns(
            pl.int_range(pl.len()).over("user_id").alias("k"), pl.len().over("user_id").alias("n")
        )
    )
    tests = _test_pairs(tests, own)
    malformed = settle([events, items, tests], max_bad_share)

    catalogue = items.sound().rename({"category_id": "category"})
    pairs = tests.sound().select("user_id", pl.col("negative_item_id").alias("given"))
    steps = own.join(pairs, on="user_id", how="left", maintain_order="left")
    validation = _drawn(own["user_id"].unique(), "validation", seed, validation_share)
    k, n = pl.col("k"), pl.col("n")
    is_validation = (k == n - 2) & pl.col("user_id").is_in(validation.implode())
    steps = steps.with_columns(
        pl.when(k == 0)
        .then(None)
        .when(k < n - 1)
        .then(pl.when(is_validation).then(pl.lit("validation")).otherwise(pl.lit("train")))
        .when(pl.col("given").is_not_null())
        .then(pl.lit("test"))
        .alias("split")
    )
    shown = pl.col("split").is_not_null()
    positive = steps.with_columns(
        pl.lit(True).alias("behaviour"), pl.when(shown).then(1).cast(pl.Int8).alias("ctr")
    )
    trained = steps.filter(shown & (pl.col("split") != "test"))
    drawn = trained.with_columns(
        _unseen(trained["user_id"], own, catalogue["item_id"], seed, items)
    )
    given = steps.filter(pl.col("split") == "test").with_columns(pl.col("given").alias("item_id"))
    negative = pl.concat([drawn, given]).with_columns(
        pl.lit(False).alias("behaviour"), pl.lit(0, pl.Int8).alias("ctr")
    )
    users = own.select("user_id").unique(maintain_order=True)
    both = pl.concat([positive, negative])
    return Logs.build(SCHEMAS / "amazon.toml", both, catalogue, users, malformed)


def _members(archive: Path, update: Update) -> list[Rows]:
    """The ratings, the films and the users."""
    data = {name: _member(archive, f"ml-1m/{name}.dat") for name in COLUMNS}
    reading = Reading(update, sum(map(len, data.values())))

    def rows(name: str) -> Rows:
        file, frames = f"{archive}/ml-1m/{name}.dat", []
        for size, piece in pieces(file, BytesIO(data[name]), "latin-1", "::", COLUMNS[name]):
            reading.add(size)
            frames.append(piece)
        return Rows(file, pl.concat(frames))

    return [rows(name) for name in COLUMNS]


def _member(archive: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(member)
    except KeyError:
        raise LogsError(str(archive), member, "a member of this name, found none") from None
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise LogsError(str(archive), member, f"a readable zip ({error})") from None


def _drawn(ids: pl.Series, purpose: str, seed: int, share: float) -> pl.Series:
    """The ids whose hash for this purpose falls into the first ``share`` of its range."""
    limit = int(share * 2**64)
    chosen = [i for i in ids if xxh3_64_intdigest(f"{purpose} {i}".encode(), seed) < limit]
    return pl.Series("user_id", chosen, dtype=pl.String)


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


def _test_pairs(tests: Rows, own: pl.DataFrame) -> Rows:
    """The test pairs, held against the users' own events."""
    names = ("user_id", "positive_item_id", "negative_item_id")
    tests = need(tests, names).mark(*empty(*names)).mark(repeated("user_id"))
    last = own.filter((pl.col("k") == pl.col("n") - 1) & (pl.col("k") > 0))
    ends = pl.struct("user_id", pl.col("positive_item_id").alias("item_id"))
    pairs = last.select(pl.struct("user_id", "item_id").alias("pair"))["pair"]
    other = ~ends.is_in(pairs.implode())
    return tests.mark((other, "positive_item_id is not the last of a user's events"))


def _unseen(
    wanted: pl.Series, own: pl.DataFrame, catalogue: pl.Series, seed: int, source: Rows
) -> pl.Series:
    """For each wanted user one item of the catalogue that the user has no event with."""
    items = catalogue.unique().sort()
    users = own["user_id"].unique().sort()
    seen_users = users.search_sorted(own["user_id"]).to_numpy().astype(np.int64)
    known = own["item_id"].is_in(items.implode()).to_numpy()
    seen_items = items.search_sorted(own["item_id"]).to_numpy().astype(np.int64)
    seen = np.unique((seen_users * len(items) + seen_items)[known])
    if np.bincount(seen // max(len(items), 1), minlength=1).max() >= len(items):
        raise LogsError(source.file, "item_id", "an item that each user has no event with")
    rows = users.search_sorted(wanted).to_numpy().astype(np.int64)
    drawn = np.zeros(len(rows), np.int64)
    generator = np.random.default_rng(seed)
    left = np.arange(len(rows))
    while len(left):
        drawn[left] = generator.integers(len(items), size=len(left))
        left = left[np.isin(rows[left] * len(items) + drawn[left], seen)]
    return items.gather(drawn).alias("item_id")
