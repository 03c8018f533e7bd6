"""Taobao's UserBehavior.csv: every event is a behaviour, each user's last view the impression."""

from __future__ import annotations

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
from training.rows import MAX_BAD_SHARE, Rows, cut, settle, sift

FILE = "UserBehavior.csv"
COLUMNS = ("user", "item", "category", "action", "ts")
ACTIONS = ("pv", "buy", "cart", "fav")
BEGIN, END = 1_511_539_200, 1_512_316_800  # 2017-11-25 and 2017-12-04, 0:00 in China
TEST_SHARE = 0.1
PUBLISHED = {
    "rows": 100_150_807,
    "users": 987_994,
    "items": 4_162_024,
    "categories": 9_439,
}


def read_taobao(
    path: str | Path,
    *,
    seed: int = 0,
    partial: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Logs:
    """Taobao's UserBehavior.csv, itself, as .gz or .zip, or in a folder.

    Every event within the nine days of the data set is a behaviour. As in DIEN (arXiv 1809.03672)
    what comes last is told from what came before: a user's last pv is a positive impression where
    something came before it, with one item the user never has, drawn uniformly with ``seed``, as
    negative at the same ts. A hash puts 10 % of the users into test and 10 % of the others into
    validation. Raises `LogsError`.
    """
    file = _file(Path(path))
    reading = Reading.of([file], update)
    parts = cut(file.name, file.parts(reading), "utf-8", ",", COLUMNS)
    frame, dropped = sift((_event(rows) for rows in parts), max_bad_share, _small)
    update("arrange", 0, 0, {})
    malformed = settle([dropped], max_bad_share)
    found = {
        "rows": dropped.total,
        "users": frame["user"].n_unique(),
        "items": frame["item"].n_unique(),
        "categories": frame["category"].n_unique(),
    }
    hold(file.name, PUBLISHED, found, partial)
    events = frame.filter(pl.col("ts").is_between(BEGIN, END, closed="left"))
    if events.is_empty():
        raise LogsError(file.name, "ts", "events of 2017-11-25 to 2017-12-03, found none")
    outside = frame.height - events.height
    del frame
    events = events.sort("user", "ts", maintain_order=True).with_row_index("at")
    catalogue = events.select("item", "category").unique("item", keep="first", maintain_order=True)

    users = events.group_by("user", maintain_order=True).agg(pl.col("ts").first().alias("since"))
    last = events.filter(pl.col("action") == "pv").group_by("user", maintain_order=True).last()
    last = last.join(users, on="user", maintain_order="left").filter(pl.col("ts") > pl.col("since"))
    test = drawn(users["user"], "test", seed, TEST_SHARE)
    validation = drawn(users["user"], "validation", seed, VALIDATION_SHARE)
    last = last.with_columns(by_user("user", test, validation).alias("split"))
    never = unseen(last["user"], events["user"], events["item"], catalogue["item"], seed, file.name)
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
    names = {"user": "user_id", "item": "item_id"}
    return Logs.build(
        SCHEMAS / "taobao.toml",
        pl.concat([positive, negative])
        .rename(names)
        .with_columns(texts("user_id", "item_id", "action")),
        catalogue.rename(names, strict=False).select(texts("item_id", "category")),
        users.select(pl.col("user").cast(pl.String).alias("user_id")),
        malformed,
        {
            "events outside 2017-11-25 to 2017-12-03": outside,
            "users without a pv after another event (their events are behaviours only)": (
                users.height - last.height
            ),
        },
    )


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


def _small(frame: pl.DataFrame) -> pl.DataFrame:
    action = pl.col("action").cast(pl.Enum(ACTIONS))
    return frame.select(*whole_numbers("user", "item", "category"), action, "ts")
