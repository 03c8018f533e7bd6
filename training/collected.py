"""Collected logs: what the service logged, as date-partitioned Parquet, and what stood before it.

::

    base/                                 prepared logs (`training.logs`): the schema, the items,
                                          the users, and the behaviours from before the loop
    events/date=YYYY-MM-DD/NAME.parquet   `Event` entries of `model.contract.log`, by the day of ts
    scores/date=YYYY-MM-DD/NAME.parquet   `Scored` entries, by the day (UTC) they were received
    erased/NAME.parquet                   `Erased` entries

Every row has ``key`` (the entry's), ``partition`` and ``entry``, its place in the stream: within a
partition the order of ``entry`` is the order in which things happened to the store. What depends on
a schema is JSON text, so that logs of all schemas lie side by side. A key counts once, however many
rows hold it; the reader sees to that. Nothing is read of a user from before the user was erased.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl

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


@dataclass(frozen=True)
class Collected:
    """The folder of collected logs."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def events(self, first: date | None = None, last: date | None = None) -> pl.DataFrame:
        """Events [n] of the days from first to last, both included, in the order of
        (partition, entry)."""
        return self._read("events", EVENTS, first, last)

    def scores(self, first: date | None = None, last: date | None = None) -> pl.DataFrame:
        """Scores [n], likewise, by the day on which they were received."""
        return self._read("scores", SCORES, first, last)

    def erased(self) -> pl.DataFrame:
        """user_id and the last time, in ms, at which each was erased: ``until``."""
        files = sorted((self.folder / "erased").glob("*.parquet"))
        found = pl.concat([pl.DataFrame(schema=ERASED), *map(pl.read_parquet, files)])
        return found.group_by("user_id").agg(pl.col("received").max().alias("until"))

    def days(self, kind: str) -> list[date]:
        """The days that have files, in order."""
        found = (self.folder / kind).glob("date=*/*.parquet")
        return sorted(
            {date.fromisoformat(path.parent.name.removeprefix("date=")) for path in found}
        )

    def _read(
        self, kind: str, columns: dict[str, pl.DataType], first: date | None, last: date | None
    ) -> pl.DataFrame:
        frames = [pl.DataFrame(schema=columns)]
        for day in self.days(kind):
            if (first is None or day >= first) and (last is None or day <= last):
                files = sorted((self.folder / kind / f"date={day}").glob("*.parquet"))
                frames += [pl.read_parquet(file, columns=list(columns)) for file in files]
        found = pl.concat([frame.select(list(columns)) for frame in frames])
        found = found.sort("partition", "entry").unique("key", keep="first", maintain_order=True)
        kept = found.join(self.erased(), on="user_id", how="left", maintain_order="left")
        kept = kept.filter(pl.col("until").is_null() | (pl.col("received") > pl.col("until")))
        return kept.drop("until")
