"""Collected logs for tests: entries of the log as the Parquet files that `Collected` reads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from model.contract.log import Entry, Erased, Event, Scored
from model.contract.store import partition
from training.collected import Collected

_PLACE = {"key": pl.UInt64, "partition": pl.Int16, "entry": pl.String}
_PLACE |= {"user_id": pl.String, "received": pl.Int64}
_TEXT = ("probability", "user", "context", "columns", "rows")
_TYPES = {
    "events": _PLACE
    | dict.fromkeys(("item_id", "action", "request_id", "fields"), pl.String)
    | {"ts": pl.Int64},
    "scores": _PLACE
    | dict.fromkeys(("request_id", "model", "schema", "digest", "raw", "degraded"), pl.String)
    | dict.fromkeys(_TEXT, pl.String)
    | dict.fromkeys(("version", "length", "newest"), pl.Int64)
    | {"candidates": pl.List(pl.String), "unknown": pl.List(pl.Int64)},
    "erased": _PLACE,
}


def collect(
    folder: Path, entries: Sequence[Entry], places: Sequence[str] | None = None
) -> Collected:
    """Write entries with their places (MS-SEQ) in the streams, else as if they had come in this
    order; days are of seconds."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    ms = 0
    for at, entry in enumerate(entries):
        ms = max(ms + 1, entry.received)
        came, _, number = (places[at] if places else f"{ms}-0").partition("-")
        row: dict[str, Any] = {
            **vars(entry),
            "key": entry.key,
            "entry": f"{int(came):015d}-{int(number):010d}",
        }
        row["partition"] = partition(entry.user_id)
        if isinstance(entry, Event):
            row["fields"] = json.dumps(row["fields"])
            rows["events", _day(entry.ts)].append(row)
        elif isinstance(entry, Scored):
            row |= {each: json.dumps(row[each]) for each in _TEXT}
            row |= vars(entry.history)
            row["raw"] = None if entry.history.raw is None else json.dumps(entry.history.raw)
            rows["scores", _day(entry.received // 1000)].append(row)
        elif isinstance(entry, Erased):
            rows["erased", ""].append(row)
    for (kind, day), some in rows.items():
        place = folder / kind / day
        place.mkdir(parents=True, exist_ok=True)
        columns = {each: [row.get(each) for row in some] for each in _TYPES[kind]}
        pl.DataFrame(columns, schema=_TYPES[kind]).write_parquet(place / "part.parquet")
    return Collected(folder)


def _day(seconds: int) -> str:
    return f"date={datetime.fromtimestamp(seconds, UTC).date()}"
