"""The past: the behaviours that histories are made of, from before the loop and since.

What stood before the loop are the prepared logs in ``base/``, read with the schema of today: a
column that they lack, or have as another type, is null. Users who were erased since are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import polars as pl

from model.contract.schema import Schema
from training.collected import Collected
from training.fields import read_fields
from training.logs import LogsError, event_columns, item_columns, user_columns

_NUMBERS = 2**20  # of entries of one millisecond


@dataclass(frozen=True, eq=False)
class Before:
    """Events, items and users as `Logs` has them; none where nothing was prepared."""

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame

    @classmethod
    def read(cls, collected: Collected, schema: Schema) -> Before:
        """Raises `LogsError`."""
        erased = collected.erased()
        events = _read(collected, "events", event_columns(schema))
        users = _read(collected, "users", user_columns(schema))
        return cls(
            events.join(erased, on="user_id", how="anti", maintain_order="left"),
            _read(collected, "items", item_columns(schema)),
            users.join(erased, on="user_id", how="anti", maintain_order="left"),
        )


def _read(collected: Collected, table: str, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    path = collected.base / f"{table}.parquet"
    if not path.exists():
        return pl.DataFrame(schema=columns)
    try:
        found = pl.read_parquet_schema(path)
        same = [name for name, kind in columns.items() if found.get(name) == kind]
        frame = pl.read_parquet(path, columns=same)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogsError(str(path), "file", f"a readable Parquet file ({error})") from None
    null = [pl.lit(None, kind).alias(name) for name, kind in columns.items() if name not in same]
    return frame.with_columns(null).select(list(columns))


def behaviours(
    collected: Collected,
    schema: Schema,
    last: date | None = None,
    users: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Events up to a day that entered a history: user_id, item_id, ts, the behaviour fields and
    ``#entry``. Of one ts they are in the order in which they came. ``users``: of these only."""
    parts = [_behaviours(collected.events(date.min, date.min), schema)]
    for day in collected.days("events"):
        if last is None or day <= last:
            events = collected.events(day, day)
            if users is not None:
                events = events.join(users, on="user_id", how="semi", maintain_order="left")
            parts.append(_behaviours(events, schema))
    return pl.concat(parts)


def _behaviours(events: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    events = events.filter(pl.col("action").is_in(schema.history_actions))
    fields = read_fields(events["fields"], schema.behaviour)
    if "action" in fields.columns:  # as `Event.raw` has it
        fields = fields.with_columns(events["action"])
    placed = events.select("user_id", "item_id", "ts", pl.col("entry").alias("#entry"))
    return pl.concat([placed, fields], how="horizontal")


def once(before: pl.DataFrame, since: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """``since`` without behaviours that were there already, whatever their other fields say: the
    store puts none in twice."""
    action = [field.name for field in schema.behaviour if field.name == "action"]
    same = ["user_id", "item_id", "ts", *action]
    fresh = since.unique(same, keep="first", maintain_order=True)
    return fresh.join(before, on=same, how="anti", nulls_equal=True, maintain_order="left")


def arrival(column: str = "#entry") -> pl.Expr:
    """The place of an entry in its stream as an integer, see `place_of`."""
    ms, number = (
        pl.col(column).str.extract(part).cast(pl.Int64) for part in (r"^(\d+)", r"(\d+)$")
    )
    return ms * _NUMBERS + number.clip(upper_bound=_NUMBERS - 1)


def place_of(ms: int) -> int:
    """The first place of a millisecond since 1970."""
    return ms * _NUMBERS
