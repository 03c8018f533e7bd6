"""The files of a team's tables: found, brought into a form that engines read, and the lost ones.

A table is one .parquet, .csv or .csv.gz file, or a folder of files with that ending. Engines read
Parquet files in place. CSV files become Parquet first, one after the other and in bounded memory,
and so does what is left of a Parquet file of which some row groups can't be read; such a staged
file has two more columns, `LINE` and `REASON`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.logs import LogsError, Lost
from training.parts import Reading
from training.rows import LINE, REASON, csv_columns, csv_parts

SUFFIXES = ("parquet", "csv", "csv.gz")
STAGED = ".staged"


@dataclass
class Losses:
    """Stops the job at the first file or row group that can't be read, or lists it and goes on."""

    skip: bool = False
    lost: list[Lost] = field(default_factory=list)

    def add(self, file: Path, part: str, error: object) -> None:
        if not self.skip:
            raise LogsError(str(file), part, f"one that can be read ({error})")
        self.lost.append(Lost(str(file), part, str(error)))


@dataclass(frozen=True)
class Part:
    """One file of a table; ``path`` is what an engine reads of it, in place or staged."""

    file: Path
    path: Path
    schema: pa.Schema
    rows: int

    @classmethod
    def of(cls, file: Path, path: Path) -> Part:
        with pq.ParquetFile(path) as opened:
            return cls(file, path, opened.schema_arrow, opened.metadata.num_rows)

    @property
    def staged(self) -> bool:
        return self.path.suffix == STAGED


@dataclass(frozen=True)
class Parts:
    """The files of one table, in order of their names."""

    name: str  # events, items or users
    suffix: str  # one of SUFFIXES
    path: Path  # the file, or the folder of the files
    files: tuple[Path, ...]

    def columns(self) -> list[str]:
        """Those of the first file that can be opened, of whose rows none is read; else none.

        Raises `LogsError`.
        """
        for file in self.files:
            try:
                return pq.read_schema(file).names if self.suffix == "parquet" else csv_columns(file)
            except LogsError as error:
                if error.column != "file":
                    raise
            except (OSError, pa.ArrowException):
                continue
        return []

    def open(self, work: Path, reading: Reading, losses: Losses) -> list[Part]:
        """Those that can be opened, CSV files staged in the folder ``work``. Raises `LogsError`."""
        opened = []
        for index, file in enumerate(self.files):
            try:
                path = file
                if self.suffix != "parquet":
                    path = stage_csv(file, self._stage(work, index), reading)
                opened.append(Part.of(file, path))
            except LogsError as error:
                if error.column != "file":
                    raise
                losses.add(file, "file", error.expected)
            except (OSError, pa.ArrowException) as error:
                losses.add(file, "file", error)
        if not opened:
            raise LogsError(str(self.path), "file", "one that can be read, at least")
        return opened

    def without_unreadable(
        self, opened: Iterable[Part], columns: Sequence[str], work: Path, losses: Losses
    ) -> list[Part]:
        """The parts with those staged of which a row group can't be read; reads all of them."""
        kept = []
        for index, part in enumerate(opened):
            bad = {} if part.staged else unreadable(part.path, columns)
            for group, error in bad.items():
                losses.add(part.file, f"row group {group}", error)
            if bad:
                path = stage_readable(part.path, self._stage(work, index), columns, bad)
                kept.append(Part.of(part.file, path))
            else:
                kept.append(part)
        return kept

    def _stage(self, work: Path, index: int) -> Path:
        return work / f"{self.name}-{index}{STAGED}"


def find(source: str | Path, name: str) -> Parts | None:
    """The one table of this name in a folder, or with ``source`` as prefix. Raises `LogsError`."""
    start = f"{source}/{name}." if Path(source).is_dir() else f"{source}.{name}."
    found = {suffix: path for suffix in SUFFIXES if (path := Path(start + suffix)).exists()}
    if len(found) > 1:
        names = ", ".join(path.name for path in found.values())
        raise LogsError(str(source), name, f"one table, found {names}")
    for suffix, path in found.items():
        return Parts(name, suffix, path, _files(path, suffix))
    return None


def _files(path: Path, suffix: str) -> tuple[Path, ...]:
    """The file itself, or those of a folder but hidden ones, such as Spark's _SUCCESS."""
    if not path.is_dir():
        return (path,)
    found = sorted(each for each in path.iterdir() if each.name[0] not in "._")
    for each in found:
        if each.is_dir() or not each.name.endswith(f".{suffix}"):
            raise LogsError(str(path), each.name, f"only files that end in .{suffix}")
    if not found:
        raise LogsError(str(path), "file", f"one that ends in .{suffix}, found none")
    return tuple(found)


def stage_csv(file: Path, target: Path, reading: Reading) -> Path:
    """A CSV file as Parquet: text columns, line and reason. Raises `LogsError`."""
    writer: pq.ParquetWriter | None = None
    try:
        for part in csv_parts(file, reading):
            table = part.frame.to_arrow()
            texts = [(name, pa.string()) for name in table.column_names if name != LINE]
            table = table.cast(pa.schema([(LINE, pa.int64()), *texts]))
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()
    return target


def unreadable(path: Path, columns: Sequence[str]) -> dict[int, str]:
    """The row groups of which these columns can't be read, each with the error."""
    bad = {}
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            try:
                file.read_row_group(group, columns=list(columns)).validate(full=True)
            except (OSError, pa.ArrowException) as error:
                bad[group] = str(error)
    return bad


def stage_readable(path: Path, target: Path, columns: Sequence[str], bad: Iterable[int]) -> Path:
    """The row groups that are not ``bad``, their rows with the lines they have in the file."""
    left_out = set(bad)
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name in columns]
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        schema = schema.append(pa.field(LINE, pa.int64())).append(pa.field(REASON, pa.string()))
        line = 1
        with pq.ParquetWriter(target, schema) as writer:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if group not in left_out:
                    table = file.read_row_group(group, columns=names)
                    lines = pa.array(np.arange(line, line + rows))
                    reasons = pa.nulls(rows, pa.string())
                    writer.write_table(
                        pa.table([*table.select(names).columns, lines, reasons], schema=schema)
                    )
                line += rows
    return target
