"""The synthetic world by the day, as prepared logs and as collected ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy.typing as npt
import polars as pl

from model.contract.log import Entry, Event, Scored, Snapshot
from tests.training.collecting import collect
from training.logs import Logs
from training.world import World

FIRST = date(2024, 10, 4)  # day 20,000
HOUR = 3600
BEGIN = 20_000 * 24 * HOUR
PAGES_PER_DAY = 4
SEEDS = 8


def day(number: int) -> date:
    """The day of that number, from 0; seed clicks are on the two days before."""
    return FIRST + timedelta(days=number)


def world(days: int, users: int = 60) -> Logs:
    """Four pages of 10 impressions a day for each user, from day 0 on."""
    made = World(users=users, items=80, categories=12, interests=3, seed_clicks=SEEDS, bias=-1.5)
    logs = made.logs(days * PAGES_PER_DAY * 10)
    ts = (pl.col("ts") - SEEDS) * (24 // PAGES_PER_DAY) * HOUR + BEGIN
    return replace(logs, events=logs.events.with_columns(ts))


def until(logs: Logs, number: int) -> Logs:
    """What is there at the end of a day."""
    end = BEGIN + (number + 1) * 24 * HOUR
    return replace(logs, events=logs.events.filter(pl.col("ts") < end))


def relabel(logs: Logs, first: int, change: Callable[[pl.DataFrame], npt.ArrayLike]) -> Logs:
    """The labels of the impressions from a day on, as ``change`` gives them."""
    begin = BEGIN + first * 24 * HOUR
    late = logs.events.select((pl.col("ts") >= begin) & pl.col("ctr").is_not_null()).to_series()
    label = logs.events["ctr"].to_numpy().copy()
    label[late.to_numpy()] = change(logs.events.filter(late))
    labels = pl.Series("ctr", label).fill_nan(None).cast(pl.Int8)
    return replace(logs, events=logs.events.with_columns(labels))


def collected(logs: Logs, folder: Path) -> None:
    """The logs as if a service had scored and logged all pages; seed clicks stood before it."""
    shown = pl.col("split").is_not_null()
    base = replace(logs, events=logs.events.filter(~shown))
    base.write(folder / "base")
    entries: list[Entry] = []
    pages = logs.events.filter(shown).partition_by("ts", "user_id", maintain_order=True)
    seen: dict[str, list[int]] = {}
    for user, ts in base.events.select("user_id", "ts").iter_rows():
        seen.setdefault(user, []).append(ts)
    for page in sorted(pages, key=lambda found: int(found["ts"][0])):
        user, ts = page["user_id"][0], int(page["ts"][0])
        entries += _page(page, user, ts, seen.setdefault(user, []))
    collect(folder, entries)


def _page(page: pl.DataFrame, user: str, ts: int, seen: list[int]) -> list[Entry]:
    request, items = f"{user}-{ts}", page["item_id"].to_list()
    snapshot = Snapshot(len(seen[-50:]), seen[-1] if seen else None, "")
    told: dict[str, Any] = {"user": {}, "context": {}, "columns": {}, "rows": {}, "probability": {}}
    entries: list[Entry] = [
        Scored(request, user, ts * 1000, "synthetic", 1, "", items, history=snapshot, **told)
    ]
    for item, position, click in page.select("item_id", "position", "ctr").iter_rows():
        fields = {"position": position}
        entries.append(Event(user, item, "impression", ts, ts * 1000, request, fields))
        if click:
            entries.append(Event(user, item, "click", ts, ts * 1000, request))
            seen.append(ts)
    return entries
