"""Alimama's Ali_Display_Ad_Click: real impressions of ads, and what their users did in the shop.

A behaviour is of a category and a brand, never of an ad, so these are the item: ``item_id`` is
"category:brand", which an ad has as well. The ad itself, its campaign, its customer and its price
are ad fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from training.rows import MAX_BAD_SHARE, Rows, cut, repeated, settle, sift, whole

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
AT_ONCE = 20_000_000  # behaviours that are looked through at a time


def read_alimama(
    path: str | Path,
    *,
    seed: int = 0,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Logs:
    """Ali_Display_Ad_Click from the folder of its four files, each plain, .gz or .tar.gz.

    Training is on the first seven days, 10 % of whose users a hash takes for validation; test is
    the eighth. An impression sees the behaviours of before, whatever their kind; those that no
    impression sees are left out. Raises `LogsError`.
    """
    folder = Path(path)
    files = {name: find(folder, name) for name in COLUMNS}
    reading = Reading.of(list(files.values()), update)
    shown, shown_dropped = sift(
        map(_impression, _parts(files, "raw_sample.csv", reading)), max_bad_share, _small_impression
    )
    ads = _ad(whole(_parts(files, "ad_feature.csv", reading)))
    people = _profile(whole(_parts(files, "user_profile.csv", reading)))
    settle([shown_dropped, ads.dropped, people.dropped], max_bad_share)  # before the largest file
    found = {
        "impressions": shown_dropped.total,
        "ads": ads.frame.height,
        "users with a profile": people.frame.height,
    }
    hold(str(folder), PUBLISHED, found, partial)
    log = _Log(shown["user"].unique())
    behaviours, log_dropped = sift(
        map(_behaviour, _parts(files, "behavior_log.csv", reading)), max_bad_share, log.select
    )
    update("arrange", 0, 0, {})
    dropped = [shown_dropped, ads.dropped, people.dropped, log_dropped]
    malformed = settle(dropped, max_bad_share)
    known = ads.sound().select("adgroup_id", "campaign_id", "customer", "cate", "brand", "price")
    impressions = shown.join(known, on="adgroup_id", maintain_order="left")
    if impressions.is_empty():
        expected = "impressions of ads that ad_feature describes, found none"
        raise LogsError(files["raw_sample.csv"].name, "adgroup_id", expected)
    schema = SCHEMAS / "alimama.toml"
    seen = _seen(behaviours, impressions, Schema.load(schema).history_length)
    left_out = {
        **log.left_out,
        "behaviours that no impression sees": behaviours.height - seen.height,
        "impressions of ads without a row in ad_feature": shown.height - impressions.height,
    }
    del behaviours, shown
    goods = [frame.select("cate", "brand").unique() for frame in (known, seen)]
    pairs = pl.concat(goods).unique().sort("cate", "brand")
    items = pairs.select(_item_id(), pl.col("cate").alias("category"), "brand")
    items = items.with_columns(texts("category", "brand"))
    validation = drawn(impressions["user"].unique(), "validation", seed, VALIDATION_SHARE)
    events = pl.concat([_behaviours(seen), _impressions(impressions, validation)])
    users = people.sound().rename({"userid": "user_id"})
    return Logs.build(schema, events, items, users, malformed, left_out)


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


def _small_impression(frame: pl.DataFrame) -> pl.DataFrame:
    numbers = whole_numbers("user", "adgroup_id")
    return frame.select(*numbers, "ts", "pid", pl.col("clk").cast(pl.Int8).alias("ctr"))


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


@dataclass
class _Log:
    """What is of use in the behaviours of 22 days: those of ``users``, small enough to be kept."""

    users: pl.Series
    others: int = 0
    outside: int = 0

    def select(self, frame: pl.DataFrame) -> pl.DataFrame:
        within = pl.col("ts").is_between(BEGIN, END, closed="left")
        action = pl.col("btag").cast(pl.Enum(ACTIONS))
        timely = frame.filter(within).select(*whole_numbers("user", "cate", "brand"), "ts", action)
        ours = timely.filter(pl.col("user").is_in(self.users.implode()))
        self.outside += frame.height - timely.height
        self.others += timely.height - ours.height
        return ours

    @property
    def left_out(self) -> dict[str, int]:
        return {
            "behaviours outside 2017-04-22 to 2017-05-13": self.outside,
            "behaviours of users without impressions": self.others,
        }


def _seen(behaviours: pl.DataFrame, impressions: pl.DataFrame, length: int) -> pl.DataFrame:
    """The behaviours that some impression sees, being among the last ``length`` before it."""
    groups = max(1, math.ceil(behaviours.height / AT_ONCE))
    return pl.concat(
        [
            _seen_by(behaviours.filter(group), impressions.filter(group), length)
            for group in (pl.col("user") % groups == at for at in range(groups))
        ]
    )


def _seen_by(behaviours: pl.DataFrame, impressions: pl.DataFrame, length: int) -> pl.DataFrame:
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
