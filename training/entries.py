"""Rows: an entry of the log as a row of the collected logs, held to the types of its columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import polars as pl

from model.contract.ids import key
from model.contract.log import Entry, Event, Scored, load
from model.contract.schema import TsUnit

_PLACE = {
    "key": pl.UInt64(),
    "partition": pl.Int16(),
    "entry": pl.String(),  # MS-SEQ of the stream, padded with zeros, so that text order is time
    "user_id": pl.String(),
    "received": pl.Int64(),  # ms since 1970
}
EVENTS = {
    **_PLACE,
    "item_id": pl.String(),
    "action": pl.String(),
    "ts": pl.Int64(),
    "request_id": pl.String(),  # null where none was given
    "fields": pl.String(),  # JSON object of the extra fields
}
SCORES = {
    **_PLACE,
    "request_id": pl.String(),
    "model": pl.String(),
    "version": pl.Int64(),
    "schema": pl.String(),
    "candidates": pl.List(pl.String()),
    "probability": pl.String(),  # JSON object: task -> list
    "unknown": pl.List(pl.Int64()),  # positions of candidates that the catalogue lacks
    "length": pl.Int64(),  # of the history that was looked at
    "newest": pl.Int64(),  # its newest ts; null where it was empty
    "digest": pl.String(),
    "raw": pl.String(),  # JSON list: the history that the caller gave; null where it was stored
    "user": pl.String(),  # JSON objects
    "context": pl.String(),
    "columns": pl.String(),
    "rows": pl.String(),
    "degraded": pl.String(),
}
ERASED = _PLACE
UNREADABLE = {
    **_PLACE,  # the user where the stream says so, else ""; received by Redis
    "raw": pl.List(pl.Binary()),  # the entry as Redis gave it: names and values in turn
    "why": pl.String(),
}
COLUMNS: Mapping[str, Mapping[str, pl.DataType]] = {
    "events": EVENTS,
    "scores": SCORES,
    "erased": ERASED,
    "unreadable": UNREADABLE,
}
_NULLABLE = {"events": {"request_id"}, "scores": {"newest", "raw", "degraded"}}
_EPOCH = date(1970, 1, 1)
_A_DAY = {"s": 86_400, "ms": 86_400_000}
Row = dict[str, Any]


@dataclass(frozen=True)
class Taken:
    """An entry as Redis gave it. ``entry`` is its MS-SEQ; no fields: it is gone from the stream."""

    partition: int
    entry: str
    fields: Mapping[bytes, bytes]

    @property
    def ms(self) -> int:
        """When Redis took it, ms since 1970."""
        return int(self.entry.partition("-")[0])

    @property
    def size(self) -> int:
        """Bytes of its payload."""
        return sum(map(len, self.fields.values())) if self.fields else 0

    @property
    def place(self) -> tuple[int, str]:
        """Partition and padded entry: the order in which things happened to the store."""
        ms, _, number = self.entry.partition("-")
        return self.partition, f"{int(ms):015d}-{int(number):010d}"


def row_of(taken: Taken, unit: TsUnit) -> tuple[str, date | None, Row]:
    """The kind (`COLUMNS`) of an entry, the day it is kept under, if any, and its row.

    ``unit`` is that of events' ts. An entry that can't be read is "unreadable".
    """
    try:
        kind, row = _row(load(_text(taken, b"k"), taken.fields.get(b"d", b"")))
        row |= dict(zip(("partition", "entry"), taken.place, strict=True))
        _check(kind, row)
        return kind, _day(kind, row, unit), row
    except (ValueError, RecursionError) as error:  # JSON may be nested deeper than Python goes
        return "unreadable", None, _unreadable(taken, str(error))


def _row(entry: Entry) -> tuple[str, Row]:
    row: Row = {"user_id": entry.user_id, "received": entry.received}
    if isinstance(entry, Event):
        kind = "events"
        row |= {"item_id": entry.item_id, "action": entry.action, "ts": entry.ts}
        row |= {"request_id": entry.request_id, "fields": _json(entry.fields)}
    elif isinstance(entry, Scored):
        kind = "scores"
        _check_probability(entry)
        history = entry.history
        names = ("request_id", "model", "version", "schema", "candidates", "unknown", "degraded")
        row |= {name: getattr(entry, name) for name in names} | {"unknown": [*entry.unknown]}
        row |= {"length": history.length, "newest": history.newest, "digest": history.digest}
        row |= {"raw": None if history.raw is None else _json(history.raw)}
        texts = ("probability", "user", "context", "columns", "rows")
        row |= {name: _json(getattr(entry, name)) for name in texts}
    else:
        kind = "erased"
    for name in ("user_id", "item_id", "action", "request_id"):  # what keys are made of
        if name in row and not (name == "request_id" and kind == "events"):
            _hold(kind, name, row[name])
    return kind, row | {"key": entry.key}


def _unreadable(taken: Taken, why: str) -> Row:
    partition, entry = taken.place
    raw = [each for pair in taken.fields.items() for each in pair]
    user = taken.fields.get(b"u", b"").decode(errors="replace")
    place = {"partition": partition, "entry": entry, "user_id": user, "received": taken.ms}
    return {"key": key(f"{partition}:{entry}"), **place, "raw": raw, "why": why}


def _day(kind: str, row: Row, unit: TsUnit) -> date | None:
    if kind == "erased":
        return None
    name, units = ("ts", _A_DAY[unit]) if kind == "events" else ("received", _A_DAY["ms"])
    try:
        return _EPOCH + timedelta(days=row[name] // units)
    except OverflowError:
        raise ValueError(f"{kind}: {name}: expected a time with a date") from None


def _check(kind: str, row: Row) -> None:
    """Raises ValueError, which names the column, for what its type can't hold."""
    for name in COLUMNS[kind]:
        if row[name] is not None or name not in _NULLABLE.get(kind, ()):
            _hold(kind, name, row[name])


def _hold(kind: str, name: str, value: Any) -> None:
    if not _SOUND[kind][name](value):
        raise ValueError(f"{kind}: {name}: expected {COLUMNS[kind][name]}")


def _check_probability(entry: Scored) -> None:
    """Raises ValueError unless each task has a number for each candidate."""
    given: Any = entry.probability
    tasks: list[Any] = list(given.values()) if isinstance(given, dict) else [None]
    for each in tasks:
        numbers = isinstance(each, list) and set(map(type, each)) <= {int, float}
        if not numbers or len(each) != len(entry.candidates):
            raise ValueError("scores: probability: expected a number for each candidate")


def _is_text(value: Any) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON may hold
        return False
    return True


def _are_texts(value: Any) -> bool:
    """A list; None stands for a candidate without a name."""
    return isinstance(value, list) and all(each is None or _is_text(each) for each in value)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int}


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_made(value: Any) -> bool:
    """A key or a partition, which are of our own making."""
    return True


_CHECKS: Mapping[pl.DataType, Callable[[Any], bool]] = {
    pl.String(): _is_text,
    pl.Int64(): _is_integer,
    pl.List(pl.String()): _are_texts,
    pl.List(pl.Int64()): _are_integers,
    pl.UInt64(): _is_made,
    pl.Int16(): _is_made,
}
# Found once: comparing types takes longer than checking values.
_SOUND = {
    kind: {name: _CHECKS[dtype] for name, dtype in COLUMNS[kind].items()}
    for kind in ("events", "scores", "erased")
}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _text(taken: Taken, name: bytes) -> str:
    return taken.fields.get(name, b"").decode()
