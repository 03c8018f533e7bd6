"""Amazon reviews: a review is a behaviour and a positive impression; negatives are drawn.

Two sources, one protocol, that of the paper (section 6.1): three CSV files with the order of
each user's events and the test pairs, and the owners' reviews and metadata as published by SNAP.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import polars as pl

from terminal.progress import Update, quiet
from training.logs import Logs, LogsError
from training.parts import Reading, TextFile
from training.readers.official import SCHEMAS, hold
from training.readers.protocol import drawn, unseen
from training.rows import (
    LINE,
    MAX_BAD_SHARE,
    REASON,
    Rows,
    cut_lines,
    empty,
    need,
    pour,
    read_csv,
    repeated,
    settle,
)
from training.spill import Distinct, Spill, groups

REVIEWS = re.compile(r"reviews_(.+)_5\.json(\.gz)?")
PUBLISHED = {
    "Electronics": {
        "reviews": 1_689_188,
        "users": 192_403,
        "goods": 63_001,
        "categories": 801,
    },
}
LONGEST_META = 1 << 20  # characters of a line that is given to the parser
# Characters of a reviewerID, which looks like an A and a number below 2^64 to the base 36: three in
# four of them have 13 digits, the first a 1, 2 or 3, so A1x has a 140th of the users, as A2x does.
BEGINNING = 3


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
    reading = Reading.of([TextFile(file) for file in files], update)
    events, items, tests = (read_csv(file, reading) for file in files)
    update("arrange", 0, 0, {})
    events = need(events, ("user_id", "item_id", "step"))
    events = events.with_columns(pl.col("step").cast(pl.Int64, strict=False))
    events = events.mark(
        *empty("user_id", "item_id"), (pl.col("step").is_null(), "step is not an integer")
    ).mark(repeated("user_id", "step"))
    items = need(items, ("item_id", "category_id")).mark(*empty("item_id", "category_id"))
    items = items.mark(repeated("item_id"))
    settle([events.dropped, items.dropped], max_bad_share)  # before pairs are held against them
    own = _numbered(events.sound().rename({"step": "ts"}).sort("user_id", "ts"))
    tests = _test_pairs(tests, own)
    malformed = settle([rows.dropped for rows in (events, items, tests)], max_bad_share)
    catalogue = items.sound().rename({"category_id": "category"})
    pairs = tests.sound().select("user_id", pl.col("negative_item_id").alias("given"))
    own = own.join(pairs, on="user_id", how="left", maintain_order="left")
    users = own.select("user_id").unique(maintain_order=True)
    validation = drawn(users["user_id"], "validation", seed, validation_share)
    both = _paired(own, catalogue["item_id"], validation, seed, items.file)
    return Logs.build(SCHEMAS / "amazon.toml", both, catalogue, users, malformed)


def read_amazon_reviews(
    path: str | Path,
    work: Path,
    *,
    seed: int = 0,
    validation_share: float = 0.2,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Iterator[Logs]:
    """One category of Amazon 5-core reviews, from reviews_X_5.json.gz and meta_X.json.gz.

    ``path`` is the folder that holds one such pair, or the reviews' file beside its metadata.
    Gives chunks of whole users; rows lie in ``work`` in the meantime (`training.spill`). A user's
    reviews go by unixReviewTime, equal times by their place in the file; ts is the place in that
    order. The category is the last of the last of a good's categories. Pairs are those of
    `read_amazon`, the negative of the test pair drawn like the others. Raises `LogsError`.
    """
    reviews, meta, name = _pair(Path(path))
    reading = Reading.of([reviews, meta], update)
    lines = cut_lines(reviews.name, reviews.parts(reading), "utf-8")
    reviewed, people = Spill(work, "reviews", "user_id", BEGINNING), Distinct("user_id")
    goods, described = Distinct("item_id"), Distinct("item_id")

    def add(frame: pl.DataFrame) -> None:
        reviewed.add(frame)
        people.add(frame.select("user_id"))
        goods.add(frame.select("item_id"))

    dropped = pour(map(_review, lines), max_bad_share, add)
    known = goods.rows()["item_id"]
    lines = cut_lines(meta.name, meta.parts(reading), "utf-8")
    meta_dropped = pour(
        (_described(rows, known) for rows in lines),
        max_bad_share,
        lambda frame: described.add(frame.filter(pl.col("category").is_not_null())),
    )
    malformed = settle([dropped, meta_dropped], max_bad_share)
    catalogue = described.rows()
    found = {
        "reviews": dropped.total,
        "users": people.rows().height,
        "goods": known.len(),
        "categories": catalogue["category"].n_unique(),
    }
    hold(reviews.name, PUBLISHED.get(name, {}), found, partial)
    lost = {"goods from the items, without metadata": known.len() - catalogue.height}
    listed = catalogue["item_id"]

    def logs(number: int, group: tuple[pl.DataFrame, ...]) -> Logs:
        own = _numbered(group[0].sort("user_id", "ts", maintain_order=True))
        own = own.with_columns(pl.col("k").alias("ts"))
        last = _last(own)
        of_steps, of_test = (seed, 0, number), (seed, 1, number)
        given = unseen(last["user_id"], own["user_id"], own["item_id"], listed, of_test, meta.name)
        pairs = last.select("user_id", given.alias("given"))
        own = own.join(pairs, on="user_id", how="left", maintain_order="left")
        users = own.select("user_id").unique(maintain_order=True)
        validation = drawn(users["user_id"], "validation", seed, validation_share)
        both = _paired(own, listed, validation, of_steps, meta.name)
        of_first = {} if number else lost
        schema = SCHEMAS / "amazon-reviews.toml"
        return Logs.build(schema, both, catalogue, users, malformed, of_first)

    yield from map(logs, count(), groups(reviewed, update=update))


def _numbered(own: pl.DataFrame) -> pl.DataFrame:
    """Events in order, with the place k of each among the n of its user."""
    return own.with_columns(
        pl.int_range(pl.len()).over("user_id").alias("k"), pl.len().over("user_id").alias("n")
    )


def _last(own: pl.DataFrame) -> pl.DataFrame:
    """The last event of each user that has several."""
    return own.filter((pl.col("k") == pl.col("n") - 1) & (pl.col("k") > 0))


def _paired(
    own: pl.DataFrame,
    catalogue: pl.Series,
    validation: pl.Series,
    seed: int | Sequence[int],
    file: str,
) -> pl.DataFrame:
    """The events, and beside each impression a negative: drawn, or the test's ``given`` one.

    ``own`` has user_id, item_id, ts, k, n and given. Raises `LogsError` as `unseen` does.
    """
    k, n = pl.col("k"), pl.col("n")
    is_validation = (k == n - 2) & pl.col("user_id").is_in(validation.implode())
    steps = own.with_columns(
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
    items = unseen(trained["user_id"], own["user_id"], own["item_id"], catalogue, seed, file)
    given = steps.filter(pl.col("split") == "test").with_columns(pl.col("given").alias("item_id"))
    negative = pl.concat([trained.with_columns(items), given]).with_columns(
        pl.lit(False).alias("behaviour"), pl.lit(0, pl.Int8).alias("ctr")
    )
    return pl.concat([positive, negative])


def _test_pairs(tests: Rows, own: pl.DataFrame) -> Rows:
    """The test pairs, held against the users' own events."""
    names = ("user_id", "positive_item_id", "negative_item_id")
    tests = need(tests, names).mark(*empty(*names)).mark(repeated("user_id"))
    ends = pl.struct("user_id", pl.col("positive_item_id").alias("item_id"))
    pairs = _last(own).select(pl.struct("user_id", "item_id").alias("pair"))["pair"]
    other = ~ends.is_in(pairs.implode())
    return tests.mark((other, "positive_item_id is not the last of a user's events"))


def _pair(path: Path) -> tuple[TextFile, TextFile, str]:
    """The reviews, the metadata and the category X that both names hold."""
    expected = "reviews_X_5.json.gz"
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if REVIEWS.fullmatch(each.name))
        if len(found) != 1:
            seen = ", ".join(each.name for each in found) or "none"
            raise LogsError(str(path), expected, f"one such file, found {seen}")
        path = found[0]
    name = REVIEWS.fullmatch(path.name)
    if name is None:
        raise LogsError(str(path), "name", f"{expected}, or a folder that holds it")
    meta = path.with_name(f"meta_{name[1]}.json{name[2] or ''}")
    return TextFile(path), TextFile(meta), name[1]


def _review(rows: Rows) -> Rows:
    """user_id, item_id and ts of reviews, each line one JSON object."""

    def key(name: str) -> pl.Expr:
        return pl.col("text").str.json_path_match(f"$.{name}")

    def other_than(name: str, begin: str) -> pl.Expr:  # `key` does not tell "5" from 5
        return ~pl.col("text").str.contains(rf'"{name}"\s*:\s*{begin}')

    user, item = key("reviewerID").alias("user_id"), key("asin").alias("item_id")
    time = key("unixReviewTime").cast(pl.Int64, strict=False).alias("ts")
    neither = pl.col("user_id").is_null() & pl.col("item_id").is_null()
    found = rows.with_columns(user, item, time).mark(
        (neither, "not a JSON object with reviewerID, asin and unixReviewTime"),
        ((pl.col("user_id") == "").fill_null(True), "empty reviewerID"),
        ((pl.col("item_id") == "").fill_null(True), "empty asin"),
        (other_than("reviewerID", '"'), "reviewerID is not a text"),
        (other_than("asin", '"'), "asin is not a text"),
        (
            pl.col("ts").is_null() | other_than("unixReviewTime", "[-0-9]"),
            "unixReviewTime is not an integer",
        ),
    )
    return Rows(found.file, found.frame.drop("text"))


def _described(rows: Rows, goods: pl.Series) -> Rows:
    """item_id and category of what these lines describe; no category where it is none of the
    ``goods``, since each line is a Python literal that has to be parsed by itself."""
    asin = pl.col("text").str.extract(r"""['"]asin['"]: ['"]([^'"]+)['"]""").alias("item_id")
    rows = rows.with_columns(asin)
    rows = rows.mark((pl.col("item_id").is_null(), "no asin of the form 'asin': '...'"))
    ours = pl.col("item_id").is_in(goods.implode()) & pl.col(REASON).is_null()
    lines = rows.frame.filter(ours)
    parsed = [_category(text, item) for text, item in lines.select("text", "item_id").iter_rows()]
    read = pl.DataFrame(
        {LINE: lines[LINE], "category": [c for c, _ in parsed], "why": [why for _, why in parsed]},
        schema={LINE: lines.schema[LINE], "category": pl.String, "why": pl.String},
    )
    frame = rows.frame.join(read, on=LINE, how="left", maintain_order="left")
    frame = frame.with_columns(pl.coalesce(REASON, "why").alias(REASON))
    return Rows(rows.file, frame.drop("text", "why"))


def _category(text: str, item: str) -> tuple[str | None, str | None]:
    """The category of a good, or why its line has none."""
    if len(text) > LONGEST_META:
        return None, f"longer than {LONGEST_META:,} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None, "not a Python literal"
    if not isinstance(found, dict) or found.get("asin") != item:
        return None, "not a dict with this asin"
    match found.get("categories"):
        case [*_, [*_, str(last)]] if last:
            return last, None
    return None, "categories is not a list of lists of texts"
