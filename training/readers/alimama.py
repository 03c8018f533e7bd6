"""Alimama's Ali_Display_Ad_Click: real impressions of ads, and what their users did in the shop.

A behaviour is of a category and a brand, never of an ad, so these are the item: ``item_id`` is
"category:brand", which an ad has as well. The ad itself, its campaign, its customer and its price
are ad fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl

from model.contract.schema import Schema
from terminal.progress import Update, quiet
from training.dataset import visible
from training.logs import Logs, LogsError
from training.parts import Reading, TextFile
from training.readers.official import (
    SCHEMAS,
    find,
    hold,
    not_digits,
    other_than,
    texts,
    whole_numbers,
)
from training.readers.protocol import VALIDATION_SHARE, drawn
from training.rows import MAX_BAD_SHARE, Rows, cut, pour, repeated, settle, whole
from training.spill import Distinct, Spill, groups

PROFILE = (
    *("cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level"),
    *("shopping_level", "occupation", "new_user_class_level"),
)
COLUMNS = {
    "raw_sample.csv": ("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"),
    "ad_feature.csv": ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price"),
    "user_profile.csv": ("userid", *PROFILE),
    "behavior_log.csv": ("user", "time_stamp", "btag", "cate", "brand"),
}
NULL = "NULL"
ACTIONS = ("pv", "cart", "fav", "buy")
BEGIN = 1_492_790_400  # 2017-04-22, 0:00 in China: the first day of the behaviours
SHOWN, TEST, END = 1_494_000_000, 1_494_604_800, 1_494_691_200  # 2017-05-06, -13 and -14
PUBLISHED = {"impressions": 26_557_961, "ads": 846_811, "users with a profile": 1_061_768}
BEGINNING = 3  # digits of a user: a hundredth of them at most, as their numbers go up to 1,141,729


def read_alimama(
    path: str | Path,
    work: Path,
    *,
    seed: int = 0,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Iterator[Logs]:
    """Ali_Display_Ad_Click from the folder of its four files, each plain, .gz or .tar.gz.

    Gives chunks of whole users; rows lie in ``work`` in the meantime (`training.spill`). Training
    is on the first seven days, 10 % of whose users a hash takes for validation; test is the eighth.
    An impression sees the behaviours of before, whatever their kind; those that no impression sees
    are left out. Raises `LogsError`.
    """
    folder = Path(path)
    files = {name: find(folder, name) for name in COLUMNS}
    reading = Reading.of(list(files.values()), update)
    ads = _ad(whole(_parts(files, "ad_feature.csv", reading)))
    known = ads.sound().select("adgroup_id", "campaign_id", "customer", "cate", "brand", "price")
    shown = _Shown(work, known["adgroup_id"])
    shown_dropped = pour(
        map(_impression, _parts(files, "raw_sample.csv", reading)), max_bad_share, shown.add
    )
    profiles = _profile(whole(_parts(files, "user_profile.csv", reading)))
    dropped = [shown_dropped, ads.dropped, profiles.dropped]
    settle(dropped, max_bad_share)  # before the largest file
    people = Spill(work, "profiles", "user_id", BEGINNING)
    people.add(profiles.sound().rename({"userid": "user_id"}))
    found = {
        "impressions": shown_dropped.total,
        "ads": known.height,
        "users with a profile": people.rows,
    }
    hold(str(folder), PUBLISHED, found, partial)
    if not shown.described.rows:
        expected = "impressions of ads that ad_feature describes, found none"
        raise LogsError(files["raw_sample.csv"].name, "adgroup_id", expected)
    del profiles
    log = _Log(work, shown.users.rows()["user"])
    log_dropped = pour(
        map(_behaviour, _parts(files, "behavior_log.csv", reading)), max_bad_share, log.add
    )
    malformed = settle([*dropped, log_dropped], max_bad_share)
    schema = SCHEMAS / "alimama.toml"
    length = Schema.load(schema).history_length
    seen, goods = Spill(work, "seen", "user", BEGINNING), Distinct("cate", "brand")
    goods.add(known.select("cate", "brand"))
    for happened, impressions in groups(log.ours, shown.described, stage="arrange", update=update):
        of_use = _seen(happened, impressions, length)
        seen.add(of_use)
        goods.add(of_use.select("cate", "brand"))
        del happened, impressions, of_use  # the next ones are read without them in memory
    left_out = {
        **log.left_out,
        "behaviours that no impression sees": log.ours.rows - seen.rows,
        "impressions of ads without a row in ad_feature": shown.others,
    }
    pairs = goods.rows().sort("cate", "brand")
    items = pairs.select(_item_id(), pl.col("cate").alias("category"), "brand")
    items = items.with_columns(texts("category", "brand"))

    def logs(number: int, group: tuple[pl.DataFrame, ...]) -> Logs:
        behaviours, impressions, users = group
        validation = drawn(impressions["user"].unique(), "validation", seed, VALIDATION_SHARE)
        shown = impressions.join(known, on="adgroup_id", maintain_order="left")
        events = pl.concat([_behaviours(behaviours), _impressions(shown, validation)])
        of_first = {} if number else left_out
        return Logs.build(schema, events, items, users.sort("user_id"), malformed, of_first)

    yield from map(logs, count(), groups(seen, shown.described, people, update=update))


def _parts(files: Mapping[str, TextFile], name: str, reading: Reading) -> Iterator[Rows]:
    file = files[name]
    return cut(file.name, file.parts(reading), "utf-8", ",", COLUMNS[name], header=True)


def _impression(rows: Rows) -> Rows:
    rows = rows.with_columns(pl.col("time_stamp").cast(pl.Int64, strict=False).alias("ts"))
    outside = ~pl.col("ts").is_between(SHOWN, END, closed="left").fill_null(False)
    return rows.mark(
        *not_digits("user", "adgroup_id"),
        (outside, "time_stamp is not within 2017-05-06 to 2017-05-13"),
        other_than("clk", "0", "1"),
        other_than("nonclk", "0", "1"),
        (pl.col("clk") == pl.col("nonclk"), "clk and nonclk are the same"),
    )


class _Shown:
    """Who was shown something, and on disk the impressions of ``ads``."""

    def __init__(self, work: Path, ads: pl.Series) -> None:
        self.described, self.others = Spill(work, "impressions", "user", BEGINNING), 0
        self.users, self._ads = Distinct("user"), ads

    def add(self, frame: pl.DataFrame) -> None:
        ids, clicked = whole_numbers("user", "adgroup_id"), pl.col("clk").cast(pl.Int8)
        rows = frame.select(*ids, "ts", "pid", clicked.alias("ctr"))
        described = rows.filter(pl.col("adgroup_id").is_in(self._ads.implode()))
        self.users.add(rows.select("user"))
        self.described.add(described)
        self.others += rows.height - described.height


def _ad(rows: Rows) -> Rows:
    price = pl.col("price").cast(pl.Float64, strict=False)
    rows = rows.with_columns(_or_null("brand", NULL), price, pl.col("cate_id").alias("cate")).mark(
        *not_digits("adgroup_id", "cate_id", "campaign_id", "customer"),
        *not_digits("brand", missing=True),
        (~((price >= 0) & price.is_finite()).fill_null(False), "price is not a number from 0"),
    )
    return rows.with_columns(*whole_numbers("adgroup_id", "cate", "brand")).mark(
        repeated("adgroup_id")
    )


def _profile(rows: Rows) -> Rows:
    known = [_or_null(name, "") for name in PROFILE]
    rules = (*not_digits("userid"), *not_digits(*PROFILE, missing=True))
    return rows.with_columns(*known).mark(*rules).mark(repeated("userid"))


def _behaviour(rows: Rows) -> Rows:
    time = pl.col("time_stamp").cast(pl.Int64, strict=False).alias("ts")
    return rows.with_columns(_or_null("brand", NULL), time).mark(
        *not_digits("user", "cate"),
        *not_digits("brand", missing=True),
        (pl.col("ts").is_null(), "time_stamp is not an integer"),
        other_than("btag", *ACTIONS),
    )


def _or_null(name: str, missing: str) -> pl.Expr:
    return pl.when(pl.col(name) != missing).then(name).alias(name)


class _Log:
    """What is of use in the behaviours of 22 days: on disk those of ``users``."""

    def __init__(self, work: Path, users: pl.Series) -> None:
        self.ours, self._users = Spill(work, "behaviours", "user", BEGINNING), users
        self.others = self.outside = 0

    def add(self, frame: pl.DataFrame) -> None:
        within = pl.col("ts").is_between(BEGIN, END, closed="left")
        action = pl.col("btag").cast(pl.Enum(ACTIONS))
        timely = frame.filter(within).select(*whole_numbers("user", "cate", "brand"), "ts", action)
        ours = timely.filter(pl.col("user").is_in(self._users.implode()))
        self.ours.add(ours)
        self.outside += frame.height - timely.height
        self.others += timely.height - ours.height

    @property
    def left_out(self) -> dict[str, int]:
        return {
            "behaviours outside 2017-04-22 to 2017-05-13": self.outside,
            "behaviours of users without impressions": self.others,
        }


def _seen(behaviours: pl.DataFrame, impressions: pl.DataFrame, length: int) -> pl.DataFrame:
    """The behaviours that some impression sees, being among the last ``length`` before it."""
    behaviours = behaviours.sort("user", "ts", maintain_order=True)
    happened = behaviours.select("user", "ts", pl.lit(True).alias("behaviour"))
    shown = impressions.select("user", "ts", pl.lit(False).alias("behaviour"))
    both = pl.concat([happened, shown]).sort("user", "ts", maintain_order=True)
    behaviour = both["behaviour"].to_numpy()
    start, stop = visible(both["user"].to_numpy(), both["ts"].to_numpy(), behaviour, length)
    begun, ended = (
        np.bincount(edge[~behaviour], minlength=behaviours.height + 1) for edge in (start, stop)
    )
    return behaviours.filter(pl.Series(np.cumsum(begun - ended)[:-1] > 0))


def _item_id() -> pl.Expr:
    brand = pl.col("brand").cast(pl.String).fill_null("")
    return pl.concat_str(pl.col("cate").cast(pl.String), brand, separator=":").alias("item_id")


def _behaviours(seen: pl.DataFrame) -> pl.DataFrame:
    nothing = ("split", "adgroup_id", "campaign_id", "customer", "pid")
    return seen.select(
        pl.col("user").cast(pl.String).alias("user_id"),
        _item_id(),
        "ts",
        pl.lit(True).alias("behaviour"),
        pl.lit(None, pl.Int8).alias("ctr"),
        *texts("btag"),
        pl.lit(None, pl.Float64).alias("price"),
        *(pl.lit(None, pl.String).alias(name) for name in nothing),
    )


def _impressions(shown: pl.DataFrame, validation: pl.Series) -> pl.DataFrame:
    split = (
        pl.when(pl.col("ts") >= TEST)
        .then(pl.lit("test"))
        .when(pl.col("user").is_in(validation.implode()))
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    return shown.select(
        pl.col("user").cast(pl.String).alias("user_id"),
        _item_id(),
        "ts",
        pl.lit(False).alias("behaviour"),
        "ctr",
        pl.lit(None, pl.String).alias("btag"),
        "price",
        split.alias("split"),
        *texts("adgroup_id", "campaign_id", "customer", "pid"),
    )
