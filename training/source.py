"""Where a retraining takes its logs from: a folder that `prepare` wrote, or collected logs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol

import polars as pl

from model.contract.schema import Schema
from training import window
from training.collected import Collected
from training.join import Rules, Tally, join
from training.logs import Logs
from training.scores import recast
from training.window import Window

ERASURE = {"user_id": pl.String(), "until": pl.Int64()}


class Source(Protocol):
    """Logs in the canonical form, of the schema of today or of another one."""

    @property
    def schema(self) -> Path:
        """The file with the schema of today."""
        ...

    def days(self) -> list[date]:
        """The days that may have impressions, in order."""
        ...

    def read(self, days: Window, schema: Path | None = None) -> tuple[Logs, Tally | None]:
        """The logs of these days, what is behind them, and what was counted if they were joined."""
        ...

    def erased(self) -> pl.DataFrame:
        """Who is known to be erased by now: user_id, and ``until`` in ms."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared logs."""

    folder: Path

    @property
    def schema(self) -> Path:
        return self.folder / "schema.toml"

    def days(self) -> list[date]:
        return window.days(Logs.read(self.folder))

    def read(self, days: Window, schema: Path | None = None) -> tuple[Logs, Tally | None]:
        logs = Logs.read(self.folder)
        return (recast(logs, Schema.load(schema)) if schema else logs), None

    def erased(self) -> pl.DataFrame:
        """Nobody: who prepares the logs leaves them out."""
        return pl.DataFrame(schema=ERASURE)


@dataclass(frozen=True)
class Loop:
    """A folder of collected logs (`training.collected`); ``new_schema`` in place of that of the
    prepared logs in it."""

    folder: Path
    rules: Rules
    new_schema: Path | None = None

    @property
    def schema(self) -> Path:
        return self.new_schema or Collected(self.folder).base / "schema.toml"

    def days(self) -> list[date]:
        return Collected(self.folder).days("events")

    def read(self, days: Window, schema: Path | None = None) -> tuple[Logs, Tally | None]:
        path = schema or self.schema
        joined = join(Collected(self.folder), days.first, days.last, self.rules, path)
        return joined.logs, joined.tally

    def erased(self) -> pl.DataFrame:
        return Collected(self.folder).erased().select(list(ERASURE))
