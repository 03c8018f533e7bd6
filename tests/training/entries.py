"""Entries of the log as the service writes them, the folder they are collected in, and a collector
that is killed at a step of its own choice."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import redis

from model.contract.log import Entry, Erased, Event, Scored, Snapshot, dump
from model.contract.store import PARTITIONS, log_key, partition
from tests.kill import SENDING, STEPS, die_before_step
from training.collect import Judged, Shown, Source, collect
from training.drain import Pace
from training.entries import Taken
from training.guard import Band
from training.quality import Span

DAY = 86_400
NOON = 20_000 * DAY + DAY // 2  # 2024-10-04, in s
SCHEMA = 'name = "shop"\n[[item]]\nname = "item_id"\n'
EAGER = Pace(rows=40, every=0.02, claim_after=0.0)


def folder_of_logs(folder: Path) -> Path:
    """A folder of collected logs that has a schema (ts in s) and nothing else."""
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "schema.toml").write_text(SCHEMA)
    return folder


def event(user: str, item: str = "i", ts: int = NOON, action: str = "click", **more: Any) -> Event:
    return Event(user, item, action, ts, **{"received": ts * 1000, **more})


def score(user: str, request: str, items: Sequence[str | None] = ("i",), **more: Any) -> Scored:
    given: dict[str, Any] = {
        "received": NOON * 1000,
        "model": "shop",
        "version": 1,
        "schema": "f",
        "probability": {"ctr": [0.25] * len(items)},
        "history": Snapshot(1, 5, "00"),
        "user": {"city": "Köln"},
        "context": {},
        "columns": {},
        "rows": {"item.item_id": "00"},
        **more,
    }
    return Scored(request_id=request, user_id=user, candidates=list(items), **given)


def taken(entries: Sequence[Entry], first: int = NOON * 1000) -> list[Taken]:
    """Entries as Redis gives them, one a ms from ``first`` on."""
    return [
        Taken(partition(each.user_id), f"{first + at}-0", fields(each))
        for at, each in enumerate(entries)
    ]


def fields(entry: Entry) -> dict[bytes, bytes]:
    data = json.dumps(dump(entry)).encode()
    return {b"k": entry.kind.encode(), b"u": entry.user_id.encode(), b"d": data}


def add(client: redis.Redis, *entries: Entry, prefix: str = "din") -> None:
    """Put entries into their streams."""
    with client.pipeline(transaction=False) as pipeline:
        for each in entries:
            pipeline.xadd(log_key(prefix, partition(each.user_id)), fields(each))  # type: ignore[arg-type]
        pipeline.execute()


def waiting(client: redis.Redis, prefix: str = "din") -> int:
    """Entries that are in the streams."""
    return sum(client.xlen(log_key(prefix, each)) for each in range(PARTITIONS))


def on_disk(folder: Path, kind: str) -> pl.DataFrame:
    """All rows that the files of a kind hold, whatever a reader makes of them."""
    paths = sorted((folder / kind).rglob("*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in paths]) if paths else pl.DataFrame()


def erasure(user: str, ts: int = NOON) -> Erased:
    return Erased(user, ts * 1000)


def gather(source: Source, logs: Path, pace: Pace, once: bool = True) -> None:
    """Collect, with neither metrics nor a canary to guard."""
    silent, nothing = Shown(), Judged(Span(), Band())
    stop = threading.Event()
    collect(source, logs, pace=pace, once=once, stop=stop, shown=silent, judged=nothing)


def collect_until_killed(url: str, logs: Path, consumer: str, last: int) -> None:
    """Collect in this process, which is killed before its ``last`` step."""
    die_before_step(last, STEPS | SENDING)
    source = Source(url, "din", consumer)
    gather(source, logs, EAGER, once=False)
