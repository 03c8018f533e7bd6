"""Taobao's UserBehavior.csv: every event is a behaviour, each user's last view the impression."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import polars as pl

from terminal.progress import Update, quiet
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
from training.readers.protocol import VALIDATION_SHARE, by_user, drawn, unseen
from training.rows import MAX_BAD_SHARE, Rows, cut, pour, settle
from training.spill import Distinct, Spill, groups

FILE = "UserBehavior.csv"
COLUMNS = ("user", "item", "category", "action", "ts")
ACTIONS = ("pv", "buy", "cart", "fav")
BEGIN, END = 1_511_539_200, 1_512_316_800  # 2017-11-25 and 2017-12-04, 0:00 in China
TEST_SHARE = 0.1
BEGINNING = 3  # digits of a user: a hundredth of them at most, as their numbers go up to 1,018,011
PUBLISHED = {
    "rows": 100_150_807,
    "users": 987_994,
    "items": 4_162_024,
    "categories": 9_439,
}


def read_taobao(
    path: str | Path,
    work: Path,
    *,
    seed: int = 0,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Iterator[Logs]:
    """Taobao's UserBehavior.csv, itself, as .gz or .zip, or in a folder: chunks of whole users.

    Rows lie in ``work`` in the meantime (`training.spill`). Every event within the nine days of the
    data set is a behaviour. As in DIEN (arXiv 1809.03672) what comes last is told from what came
    before: a user's last pv is a positive impression where something came before it, with one item
    the user never has, drawn uniformly with ``seed``, as negative at the same ts. A hash puts 10 %
    of the users into test and 10 % of the others into validation. Raises `LogsError`.
    """
    file = _file(Path(path))
    reading = Reading.of([file], update)
    parts = cut(file.name, file.parts(reading), "utf-8", ",", COLUMNS)
    log = _Log(work)
    dropped = pour(map(_event, parts), max_bad_share, log.add)
    malformed = settle([dropped], max_bad_share)
    goods = log.goods.rows()
    found = {
        "rows": dropped.total,
        "users": log.users.rows().height,
        "items": goods["item"].n_unique(),
        "categories": goods["category"].n_unique(),
    }
    hold(file.name, PUBLISHED, found, partial)
    catalogue = goods.filter("within").unique("item", keep="first", maintain_order=True)
    if catalogue.is_empty():
        raise LogsError(file.name, "ts", "events of 2017-11-25 to 2017-12-03, found none")
    items = catalogue.select(pl.col("item").alias("item_id"), "category")
    items = items.select(texts("item_id", "category"))
    ids = catalogue["item"].sort()

    def logs(number: int, group: tuple[pl.DataFrame, ...]) -> Logs:
        events, shown = _events(group[0], ids, seed, number, file.name)
        users = events.select(pl.col("user_id").unique().sort())
        left_out = {
            "events outside 2017-11-25 to 2017-12-03": 0 if number else log.outside,
            "users without a pv after another event (their events are behaviours only)": (
                users.height - shown
            ),
        }
        return Logs.build(SCHEMAS / "taobao.toml", events, items, users, malformed, left_out)

    yield from map(logs, count(), groups(log.within, update=update))


class _Log:
    """What is kept of all rows: on disk those within the nine days, and how many are not."""

    def __init__(self, work: Path) -> None:
        self.within, self.outside = Spill(work, "events", "user", BEGINNING), 0
        self.users, self.goods = Distinct("user"), Distinct("item", "category", "within")

    def add(self, frame: pl.DataFrame) -> None:
        action = pl.col("action").cast(pl.Enum(ACTIONS))
        within = pl.col("ts").is_between(BEGIN, END, closed="left").alias("within")
        rows = frame.select(*whole_numbers("user", "item", "category"), action, "ts", within)
        self.users.add(rows.select("user"))
        self.goods.add(rows.select("item", "category", "within"))
        timely = rows.filter("within").select("user", "item", "action", "ts")
        self.within.add(timely)
        self.outside += rows.height - timely.height


def _events(
    events: pl.DataFrame, catalogue: pl.Series, seed: int, number: int, file: str
) -> tuple[pl.DataFrame, int]:
    """The events of a group of users by its number, and how many of them have impressions."""
    events = events.sort("user", "ts", maintain_order=True).with_row_index("at")
    users = events.group_by("user", maintain_order=True).agg(pl.col("ts").first().alias("since"))
    last = events.filter(pl.col("action") == "pv").group_by("user", maintain_order=True).last()
    last = last.join(users, on="user", maintain_order="left").filter(pl.col("ts") > pl.col("since"))
    test = drawn(users["user"], "test", seed, TEST_SHARE)
    validation = drawn(users["user"], "validation", seed, VALIDATION_SHARE)
    last = last.with_columns(by_user("user", test, validation).alias("split"))
    never = unseen(last["user"], events["user"], events["item"], catalogue, [seed, number], file)
    negative = last.select(
        "user",
        never.alias("item"),
        "ts",
        pl.lit(False).alias("behaviour"),
        "split",
        pl.lit(0, pl.Int8).alias("ctr"),
        pl.lit(None, events.schema["action"]).alias("action"),
    )
    shown = last.select("at", "split", pl.lit(1, pl.Int8).alias("ctr"))
    positive = events.join(shown, on="at", how="left", maintain_order="left").select(
        "user", "item", "ts", pl.lit(True).alias("behaviour"), "split", "ctr", "action"
    )
    every = pl.concat([positive, negative]).rename({"user": "user_id", "item": "item_id"})
    return every.with_columns(texts("user_id", "item_id", "action")), last.height


def _file(path: Path) -> TextFile:
    if path.is_dir():
        zipped = path / f"{FILE}.zip"
        return TextFile(zipped, FILE) if zipped.is_file() else find(path, FILE)
    return TextFile(path, FILE if path.suffix == ".zip" else "")


def _event(rows: Rows) -> Rows:
    return rows.with_columns(pl.col("ts").cast(pl.Int64, strict=False)).mark(
        *not_digits("user", "item", "category"),
        other_than("action", *ACTIONS),
        (pl.col("ts").is_null(), "the timestamp is not an integer"),
    )
