"""Rows that are more than memory holds, put on disk and taken back in groups of whole users.

A group is of the users whose ids begin alike: by the first characters of an id groups are in the
order of the ids as text, which is that of the canonical form, whether ids are numbers or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from terminal.progress import Update, quiet
from training.logs import write_table

BEGIN = "#begin"
RUN = 1 << 26  # bytes of rows that wait in memory
GROUP = 1 << 25  # bytes of rows that a group has, or the rows of one beginning
PARTS = 256  # row groups of a run
LEAST = 1 << 10  # rows of a row group
DISTINCT = 1 << 20  # rows


class Spill:
    """Rows of one kind: in memory some `RUN` bytes of them, a few times that while they are sorted.

    They lie in runs, files ordered by the first ``length`` characters of the text of ``user``, of
    which a count is held.
    """

    def __init__(self, folder: Path, name: str, user: str, length: int) -> None:
        """Runs are ``folder/name-00000.parquet`` and so on."""
        self.rows = self.bytes = 0
        self.counts = Counter[str]()
        self._folder, self._name, self._runs = folder, name, list[Path]()
        self._begin = pl.col(user).cast(pl.String).str.slice(0, length).alias(BEGIN)
        self._waiting, self._size = list[pl.DataFrame](), 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take rows, once at least, be it none. Raises `LogsError` as on a full disk."""
        self._waiting.append(rows)
        size = int(rows.estimated_size())
        self._size += size
        self.bytes += size
        self.rows += rows.height
        if self._size >= RUN:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises `LogsError`."""
        if not self._waiting:
            return
        run = pl.concat(self._waiting)
        self._waiting, self._size = [], 0
        run = run.with_columns(self._begin).sort(BEGIN, maintain_order=True)
        self.counts.update(dict(run.group_by(BEGIN).len().iter_rows()))
        path = self._folder / f"{self._name}-{len(self._runs):05d}.parquet"
        write_table(run, path, row_group_size=max(run.height // PARTS, LEAST))
        self._runs.append(path)

    def read(self, first: str, last: str) -> pl.DataFrame:
        """The rows of some beginnings in the order they came in: that of each user is kept."""
        within = pl.col(BEGIN).is_between(pl.lit(first), pl.lit(last))
        return pl.scan_parquet(self._runs).filter(within).drop(BEGIN).collect()


def groups(
    *spills: Spill, stage: str = "write rows", update: Update = quiet
) -> Iterator[tuple[pl.DataFrame, ...]]:
    """The rows of each spill, group by group, each of some `GROUP` bytes in all.

    None of them is held here. ``update`` is told of the rows whose group was done with.
    """
    for spill in spills:
        spill.flush()
    done, total = 0, sum(spill.rows for spill in spills)
    update(stage, done, total, {})
    for first, last, rows in _ranges(spills):
        yield tuple(spill.read(first, last) for spill in spills)
        done += rows
        update(stage, done, total, {})


def _ranges(spills: tuple[Spill, ...]) -> Iterator[tuple[str, str, int]]:
    """First and last beginning of each group, and how many rows it has."""
    width = {spill: spill.bytes / max(spill.rows, 1) for spill in spills}
    first, last, rows, size = "", "", 0, 0.0
    for begin in sorted(set().union(*(spill.counts for spill in spills))):
        of_begin = sum(width[spill] * spill.counts[begin] for spill in spills)
        if rows and size + of_begin > GROUP:
            yield first, last, rows
            rows, size = 0, 0.0
        first, last = (first if rows else begin), begin
        rows += sum(spill.counts[begin] for spill in spills)
        size += of_begin
    if rows:
        yield first, last, rows


class Distinct:
    """The first row of each value of some columns, in the order they came in.

    In memory are those rows, and as many again or `DISTINCT` that may be repeated.
    """

    def __init__(self, *by: str) -> None:
        self._by, self._found, self._size = by, list[pl.DataFrame](), 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take the rows, of which the columns have to be the same each time."""
        self._found.append(_first(rows, self._by))
        self._size += self._found[-1].height
        if self._size > 2 * max(self._found[0].height, DISTINCT):
            self.rows()

    def rows(self) -> pl.DataFrame:
        found = _first(pl.concat(self._found), self._by)
        self._found, self._size = [found], found.height
        return found


def _first(rows: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    return rows.unique(by, keep="first", maintain_order=True)
