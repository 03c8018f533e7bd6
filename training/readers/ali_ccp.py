r"""Ali-CCP: impressions of products with click and conversion, two files each for train and test.

A line of a skeleton is a sample: its labels, the index of its common features and its own ones. A
line of common features is the user as it was then. Features are ``field \x02 id \x03 value``,
joined by \x01. No line has a time, and a user's past is categories, shops, brands and intentions,
each with a strength. So the category is the item, a line of common features is the user whose
history it holds, weakest first, and the product itself is in the ad fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import polars as pl

from model.contract.schema import Schema
from terminal.progress import Update, quiet
from training.logs import Logs, LogsError
from training.parts import Reading
from training.readers.official import SCHEMAS, find, hold, not_digits, other_than
from training.readers.protocol import VALIDATION_SHARE, drawn
from training.rows import MAX_BAD_SHARE, Dropped, Rows, cut, empty, pour, settle
from training.spill import Distinct, Spill, groups

SPLITS = ("train", "test")
BEGINNING = 9  # characters of a user: the split, a colon and three or four of the index
SKELETON = ("sample_id", "click", "buy", "index", "feature_num", "feature_list")
COMMON = ("index", "feature_num", "feature_list")
USER = {
    "user": "101",
    "profile": "121",
    "profile_group": "122",
    "gender": "124",
    "age": "125",
    "consumption_1": "126",
    "consumption_2": "127",
    "occupation": "128",
    "geography": "129",
}
PAST = {"shops": "110_14", "brands": "127_14", "intentions": "150_14"}
CATEGORIES = "109_14"
SAMPLE = {"item_id": "206", "product": "205", "shop": "207", "brand": "216", "scene": "301"}
INTENTION = "210"
KNOWN = {
    "known_category": "508",
    "known_shop": "509",
    "known_brand": "702",
    "known_intention": "853",
}
FEATURE = r"[0-9]+(?:_[0-9]+)?\x02[^\x01\x02\x03]+\x03-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
PUBLISHED = {"train": {"samples": 42_300_135}, "test": {"samples": 43_016_840}}


def read_ali_ccp(
    path: str | Path,
    work: Path,
    *,
    seed: int = 0,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Iterator[Logs]:
    """Ali-CCP from the folder of its four files, each plain, .gz or .tar.gz: chunks of whole users.

    Rows lie in ``work`` in the meantime (`training.spill`). Test is as given; a hash takes 10 % of
    the users of the training files for validation. Samples that were bought and not clicked are
    left out. Raises `LogsError`.
    """
    folder = Path(path)
    kinds = ("common_features", "sample_skeleton")
    files = {split: tuple(find(folder, f"{k}_{split}.csv") for k in kinds) for split in SPLITS}
    reading = Reading.of([file for pair in files.values() for file in pair], update)
    schema = SCHEMAS / "ali-ccp.toml"
    rows = _Rows(work, {field.name: field.max_values for field in Schema.load(schema).fields})
    dropped = list[Dropped]()
    for split, (common, skeleton) in files.items():
        parts = cut(common.name, common.parts(reading), "utf-8", ",", COMMON)
        dropped.append(pour(map(_user, parts), max_bad_share, rows.adding_users(split)))
        parts = cut(skeleton.name, skeleton.parts(reading), "utf-8", ",", SKELETON)
        dropped.append(pour(map(_sample, parts), max_bad_share, rows.adding_samples(split)))
        hold(skeleton.name, PUBLISHED[split], {"samples": dropped[-1].total}, partial)
    malformed = settle(dropped, max_bad_share)
    items = rows.items.rows().sort("item_id")
    impressions = 0
    for every, shown in groups(rows.users, rows.samples, update=update):
        users, samples, left_out = _of_use(every, shown)
        events = pl.concat([_behaviours(users), _impressions(samples, users, seed)], how="diagonal")
        impressions += samples.height
        del every, shown, samples  # the next ones are read without them in memory
        yield Logs.build(schema, events, items, users, malformed, left_out)
        del users, events
    if not impressions:
        raise LogsError(str(folder), "samples", "samples with common features, found none")


class _Rows:
    """What is kept of all lines: users and samples on disk, and the categories that there are.

    Of tags the strongest are kept, at ``most`` so many.
    """

    def __init__(self, work: Path, most: Mapping[str, int]) -> None:
        self.users = Spill(work, "users", "user_id", BEGINNING)
        self.samples = Spill(work, "samples", "user_id", BEGINNING)
        self.items, self._most = Distinct("item_id"), most

    def adding_users(self, split: str) -> Callable[[pl.DataFrame], None]:
        past = [_strongest(number, self._most[name]).alias(name) for name, number in PAST.items()]
        categories = _features(CATEGORIES).alias("categories")

        def add(frame: pl.DataFrame) -> None:
            users = frame.select(_user_id(split), *USER, *past, categories)
            self.users.add(users)
            self.items.add(_behaviours(users).select("item_id"))

        return add

    def adding_samples(self, split: str) -> Callable[[pl.DataFrame], None]:
        labels = [pl.col("click").cast(pl.Int8).alias("ctr"), pl.col("buy").cast(pl.Int8)]
        intention = _strongest(INTENTION, self._most["intention"]).alias("intention")
        known = [_highest(number).alias(name) for name, number in KNOWN.items()]

        def add(frame: pl.DataFrame) -> None:
            samples = frame.select(_user_id(split), *labels, *SAMPLE, intention, *known)
            self.samples.add(samples)
            self.items.add(samples.select("item_id"))

        return add


def _user_id(split: str) -> pl.Expr:
    return pl.concat_str(pl.lit(f"{split}:"), "index").alias("user_id")


def _of_use(
    every: pl.DataFrame, shown: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """A group's users, each once, its samples, and how many were left out."""
    users = every.unique("user_id", keep="first", maintain_order=True).sort("user_id")
    owned = shown.join(users, on="user_id", how="semi", maintain_order="left")
    samples = owned.filter((pl.col("ctr") == 1) | (pl.col("buy") == 0))
    steps = {
        "common features whose index came before": (every, users),
        "samples without common features": (shown, owned),
        "samples that were bought and not clicked": (owned, samples),
    }
    left_out = {
        f"{split} {why}": _rows_of(split, before) - _rows_of(split, after)
        for split in SPLITS
        for why, (before, after) in steps.items()
    }
    return users, samples.rename({"buy": "conversion"}), left_out


def _rows_of(split: str, frame: pl.DataFrame) -> int:
    return int(frame["user_id"].str.starts_with(f"{split}:").sum())


def _impressions(samples: pl.DataFrame, users: pl.DataFrame, seed: int) -> pl.DataFrame:
    people = users.filter(pl.col("user_id").str.starts_with("train:"))
    chosen = drawn(people["user"].unique(), "validation", seed, VALIDATION_SHARE)
    held = people.filter(pl.col("user").is_in(chosen.implode()))["user_id"]
    split = pl.when(pl.col("user_id").is_in(held.implode())).then(pl.lit("validation"))
    return samples.with_columns(
        split.otherwise(pl.col("user_id").str.extract("^([a-z]+):")).alias("split"),
        pl.lit(False).alias("behaviour"),
        pl.lit(1, pl.Int64).alias("ts"),
    )


def _user(rows: Rows) -> Rows:
    rows = rows.mark(*empty("index"), *_misshapen())
    rows = rows.with_columns(*(_first(number).alias(name) for name, number in USER.items()))
    return rows.mark((pl.col("user").is_null(), f"no feature {USER['user']}, the user"))


def _sample(rows: Rows) -> Rows:
    labels = (other_than("click", "0", "1"), other_than("buy", "0", "1"))
    rows = rows.mark(*not_digits("sample_id"), *empty("index"), *labels, *_misshapen())
    rows = rows.with_columns(*(_first(number).alias(name) for name, number in SAMPLE.items()))
    return rows.mark((pl.col("item_id").is_null(), f"no feature {SAMPLE['item_id']}, the category"))


def _misshapen() -> list[tuple[pl.Expr, str]]:
    """Rules against lists that are not features, or not as many as the line says."""
    text = pl.col("feature_list")
    count = text.str.count_matches("\x01", literal=True).cast(pl.Int64) + 1
    wrong = count != pl.col("feature_num").cast(pl.Int64, strict=False)
    return [
        (
            ~text.str.contains(f"^{FEATURE}(?:\x01{FEATURE})*$").fill_null(False),
            r"feature_list is not field \x02 id \x03 value, joined by \x01",
        ),
        (wrong.fill_null(True), "feature_num is not the number of features"),
    ]


def _first(field: str) -> pl.Expr:
    """The id of a field's first feature."""
    return pl.col("feature_list").str.extract(f"(?:^|\x01){field}\x02([^\x03]*)\x03", 1)


def _features(field: str) -> pl.Expr:
    """All features of a field, as they are."""
    return pl.col("feature_list").str.extract_all(f"(?:^|\x01){field}\x02[^\x01]*")


def _id(feature: pl.Expr) -> pl.Expr:
    return feature.str.extract("\x02(.*)\x03", 1)


def _value(feature: pl.Expr) -> pl.Expr:
    return feature.str.extract("\x03(.*)$", 1).cast(pl.Float64)


def _strongest(field: str, most: int) -> pl.Expr:
    """The ids of a field's features, the strongest first."""
    each = pl.element()
    order = each.sort_by(_value(each), descending=True, maintain_order=True)
    return _features(field).list.eval(_id(order.head(most)))


def _highest(field: str) -> pl.Expr:
    """The largest value of a field's features; null without any."""
    return _features(field).list.eval(_value(pl.element())).list.max()


def _behaviours(users: pl.DataFrame) -> pl.DataFrame:
    """The categories of each user's past, weakest first, all at one time before any impression."""
    each = pl.col("categories")
    past = users.select("user_id", "categories").filter(each.list.len() > 0).explode("categories")
    return past.select(
        "user_id",
        _id(each).alias("item_id"),
        _value(each).alias("strength"),
        pl.lit(True).alias("behaviour"),
        pl.lit(0, pl.Int64).alias("ts"),
    ).sort("user_id", "strength", maintain_order=True)
