"""Collected logs: what the service logged, as date-partitioned Parquet, and what stood before it.

::

    base/                                 prepared logs (`training.logs`): the schema, the items,
                                          the users, and the behaviours from before the loop
    events/date=YYYY-MM-DD/NAME.parquet   `Event` entries of `model.contract.log`, by the day of ts
    scores/date=YYYY-MM-DD/NAME.parquet   `Scored` entries, by the day (UTC) they were received
    erased/NAME.parquet                   `Erased` entries
    unreadable/NAME.parquet               entries that could not be read, with their raw bytes

Every row has ``key`` (the entry's), ``partition`` and ``entry``, its place in the stream: within a
partition the order of ``entry`` is the order in which things happened to the store. What depends on
a schema is JSON text, so that logs of all schemas lie side by side (`training.entries` has the
columns). A key counts once, however many rows hold it. Nothing is read of a user from before the
user was erased, and soon nothing of that is there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from model.contract.schema import TsUnit
from training.entries import COLUMNS, Row, Taken, row_of
from training.files import Files
from training.logs import LogsError

SMALL_BYTES = 64 * 2**20
TOGETHER = 16  # small files of a folder become one
FOLDERS_KNOWN = 8  # whose keys the writer keeps in memory, 8 bytes each
_TRIES = 10
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Collected:
    """The folder of collected logs, for its readers, who raise `LogsError` for what is broken."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def events(
        self, first: date | None = None, last: date | None = None, since: int | None = None
    ) -> pl.DataFrame:
        """Events [n] of the days from first to last, both included, in the order of
        (partition, entry); those received ``since`` a time in ms."""
        return self._read("events", first, last, since)

    def scores(
        self, first: date | None = None, last: date | None = None, since: int | None = None
    ) -> pl.DataFrame:
        """Scores [n], likewise, by the day on which they were received."""
        return self._read("scores", first, last, since)

    def erased(self) -> pl.DataFrame:
        """When each erased user was erased last: user_id, ``until`` (ms) and ``entry``."""
        return _latest(self._rows("erased", ["erased"]).rename({"received": "until"}))

    def days(self, kind: str) -> list[date]:
        """The days that have files, in order."""
        found = (self.folder / kind).glob("date=*/*.parquet")
        return sorted({_date(folder) for folder in {path.parent for path in found}})

    def _read(
        self, kind: str, first: date | None, last: date | None, since: int | None
    ) -> pl.DataFrame:
        days = [
            day
            for day in self.days(kind)
            if (first is None or day >= first) and (last is None or day <= last)
        ]
        found = self._rows(kind, [f"{kind}/date={day}" for day in days], since)
        found = found.sort("partition", "entry").unique("key", keep="first", maintain_order=True)
        return _standing(found, self.erased())

    def _rows(self, kind: str, folders: Sequence[str], since: int | None = None) -> pl.DataFrame:
        """All rows of some folders. A file may go while it is asked for, into a larger one."""
        columns = COLUMNS[kind]
        for left in reversed(range(_TRIES)):
            paths = [path for name in folders for path in (self.folder / name).glob("*.parquet")]
            try:
                frames = [_file(path, list(columns), since) for path in sorted(paths)]
            except FileNotFoundError:
                if not left:
                    raise
            else:
                return pl.concat([pl.DataFrame(schema=columns), *frames])
        raise AssertionError("not reached")


@dataclass(frozen=True)
class Written:
    """What became of some entries: the rows that are new, those that were known by their key, those
    that an erasure took out of the files, each by kind, and the users that were erased."""

    new: Mapping[str, pl.DataFrame]
    known: Mapping[str, int]
    removed: Mapping[str, int]
    erased: Sequence[str]


class Writer:
    """The one writer of a folder of collected logs; within `Files.alone`.

    ``unit`` is that of events' ts. Entries that come again are known by their key in the files of
    their day, so that they may be given again after any failure.
    """

    def __init__(self, files: Files, unit: TsUnit) -> None:
        self._files, self._unit = files, unit
        self._erased = Collected(files.root).erased()
        self._known: OrderedDict[str, Keys] = OrderedDict()

    def write(self, entries: Sequence[Taken]) -> Written:
        """Write entries; when this returns they are on disk.

        Those gone from the stream are left out, and what can't be read goes to unreadable/.
        Raises OSError and `LogsError`; then the same entries may be written again.
        """
        frames = self._frames(entries)
        erased = self._erase(frames)
        new = {kind: [pl.DataFrame(schema=columns)] for kind, columns in COLUMNS.items()}
        known, fresh = Counter[str](), {}
        for (kind, folder), frame in frames.items():
            standing = frame if kind == "erased" else _standing(frame, self._erased)
            unseen = self._unseen(folder, standing)
            known[kind] += len(standing) - len(unseen)
            new[kind].append(unseen)
            if len(unseen):
                fresh[folder] = unseen
        self._files.put(fresh)
        for folder, frame in fresh.items():
            self._known[folder] = _sorted(self._keys(folder), frame["key"].to_numpy())
        removed = self._remove(erased) if len(erased) else Counter()
        for folder in fresh:
            small = self._files.small(folder, SMALL_BYTES)
            if len(small) >= TOGETHER:
                self._files.merge(small)
        whole = {kind: pl.concat(parts) for kind, parts in new.items()}
        return Written(whole, known, removed, erased["user_id"].to_list())

    def _frames(self, entries: Sequence[Taken]) -> dict[tuple[str, str], pl.DataFrame]:
        """The rows of entries by kind and folder, in the order in which they happened."""
        found: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for taken in sorted(entries, key=lambda each: each.place):
            if taken.fields:
                kind, day, row = row_of(taken, self._unit)
                found[kind, kind if day is None else f"{kind}/date={day}"].append(row)
        return {place: pl.DataFrame(rows, COLUMNS[place[0]]) for place, rows in found.items()}

    def _erase(self, frames: Mapping[tuple[str, str], pl.DataFrame]) -> pl.DataFrame:
        """Know of the erasures among some rows; these."""
        rows = frames.get(("erased", "erased"), pl.DataFrame(schema=COLUMNS["erased"]))
        erased = _latest(rows.rename({"received": "until"}))
        self._erased = _latest(pl.concat([self._erased, erased]))
        return erased

    def _remove(self, erased: pl.DataFrame) -> Counter[str]:
        """Take out of the files what is of erased users from before; how many rows by kind.

        All in base/ is from before. The keys of what is gone are forgotten too.
        """
        self._known.clear()
        removed, users = Counter[str](), erased["user_id"].implode()
        others = ~pl.col("user_id").is_in(users)
        for kind in ("events", "scores", "unreadable"):
            for name in self._files.list(kind):
                if self._has(name, users):
                    removed[kind] += self._files.rewrite(name, partial(_standing, erased=erased))
        for name in ("base/events.parquet", "base/users.parquet"):
            if (self._files.root / name).exists() and self._has(name, users):
                removed["base"] += self._files.rewrite(
                    name, lambda frame: frame.filter(others), keep_empty=True
                )
        return removed

    def _has(self, name: str, users: pl.Series) -> bool:
        found = _file(self._files.root / name, ["user_id"])["user_id"]
        return bool(found.is_in(users).any())

    def _unseen(self, folder: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Each row whose key is neither in the folder's files nor in a row before it."""
        rows = rows.unique("key", keep="first", maintain_order=True)
        known, keys = self._keys(folder), rows["key"].to_numpy()
        at = np.searchsorted(known, keys)
        at[at == len(known)] = 0
        return rows.filter(known[at] != keys) if len(known) else rows

    def _keys(self, folder: str) -> Keys:
        """The keys in the files of a folder, rising; those of the folders asked for last stay in
        memory."""
        if folder not in self._known:
            paths = sorted((self._files.root / folder).glob("*.parquet"))
            parts = [_file(path, ["key"])["key"].to_numpy() for path in paths]
            self._known[folder] = _sorted(np.empty(0, np.uint64), *parts)
        self._known.move_to_end(folder)
        while len(self._known) > FOLDERS_KNOWN:
            self._known.popitem(last=False)
        return self._known[folder]


def _file(path: Path, columns: list[str], since: int | None = None) -> pl.DataFrame:
    try:
        if since is None:
            return pl.read_parquet(path, columns=columns)
        asked = pl.scan_parquet(path).filter(pl.col("received") >= since)
        return asked.select(columns).collect()
    except pl.exceptions.PolarsError as error:
        raise LogsError(str(path), "file", f"a readable Parquet file ({error})") from None


def _date(folder: Path) -> date:
    try:
        return date.fromisoformat(folder.name.removeprefix("date="))
    except ValueError:
        raise LogsError(str(folder), "name", "date=YYYY-MM-DD") from None


def _sorted(*parts: Keys) -> Keys:
    return np.sort(np.concatenate(parts), kind="stable")


def _latest(erased: pl.DataFrame) -> pl.DataFrame:
    return erased.group_by("user_id").agg(pl.col("until").max(), pl.col("entry").max())


def _standing(rows: pl.DataFrame, erased: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not of an erased user from before.

    Before is what either says: an entry that stands before the erasure, whatever clock it was
    received by, and one received before it that came into the stream late.
    """
    last = erased.rename({"entry": "last"})
    found = rows.join(last, on="user_id", how="left", maintain_order="left")
    after = (pl.col("entry") > pl.col("last")) & (pl.col("received") > pl.col("until"))
    return found.filter(pl.col("until").is_null() | after).drop("until", "last")
