"""The rows of one source file: cut into columns, the malformed ones marked with line and reason."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from terminal.progress import Update
from training.logs import LISTED, BadRow, LogsError, Malformed

LINE, REASON = "#line", "#reason"
SLICE = 1 << 22
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Rows:
    """``frame`` holds the columns, the line of each row, and a reason (null while it is sound)."""

    file: str
    frame: pl.DataFrame

    def mark(self, *rules: tuple[pl.Expr, str]) -> Rows:
        """Give the rows a rule is true for its reason; the first reason of a row stays."""
        reasons = [pl.when(broken).then(pl.lit(reason)) for broken, reason in rules]
        return replace(self, frame=self.frame.with_columns(pl.coalesce(REASON, *reasons)))

    def with_columns(self, *columns: pl.Expr) -> Rows:
        return replace(self, frame=self.frame.with_columns(*columns))

    @property
    def columns(self) -> list[str]:
        return [name for name in self.frame.columns if name not in (LINE, REASON)]

    def sound(self) -> pl.DataFrame:
        """The rows without a reason, and without line and reason."""
        return self.frame.filter(pl.col(REASON).is_null()).drop(LINE, REASON)


def empty(*names: str) -> list[tuple[pl.Expr, str]]:
    """Rules against ids that are missing."""
    return [((pl.col(name) == "").fill_null(True), f"empty {name}") for name in names]


def repeated(*names: str) -> tuple[pl.Expr, str]:
    """The rule against a second sound row with the same key."""
    key = pl.struct(*(pl.when(pl.col(REASON).is_null()).then(name).alias(name) for name in names))
    again = pl.col(REASON).is_null() & ~key.is_first_distinct()
    return again, f"{' and '.join(names)} again"


def settle(tables: Sequence[Rows], max_bad_share: float) -> Malformed:
    """Count what is malformed. Raises `LogsError` when its share of any one file is too large."""
    total, count, listed = 0, 0, list[BadRow]()
    worst: tuple[float, Rows, int] | None = None
    for rows in tables:
        bad = rows.frame.filter(pl.col(REASON).is_not_null()).select(LINE, REASON)
        listed += [(rows.file, *row) for row in bad.head(LISTED - len(listed)).iter_rows()]
        total, count = total + rows.frame.height, count + bad.height
        share = bad.height / max(rows.frame.height, 1)
        if share > max_bad_share and (worst is None or share > worst[0]):
            worst = share, rows, bad.height
    malformed = Malformed(total, tuple(listed), count)
    if worst:
        share, rows, height = worst
        seen = "; ".join(f"{file} line {line}: {reason}" for file, line, reason in listed)
        expected = f"at most a {max_bad_share:g} share malformed"
        found = f"{expected}, found {height} of {rows.frame.height} ({seen})"
        raise LogsError(rows.file, "rows", found, malformed)
    return malformed


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed when it ends in .gz. Raises `LogsError`."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise LogsError(str(path), "file", f"a readable file ({error})") from None


@dataclass
class Reading:
    """How far some files are read: ``update`` is told of the bytes whose rows are cut, in kB."""

    update: Update
    total: int
    done: float = 0.0

    @classmethod
    def of(cls, files: Sequence[Path], update: Update) -> Reading:
        return cls(update, sum(path.stat().st_size for path in files if path.exists()))

    def add(self, size: float) -> None:
        """Rows were cut from so many more bytes."""
        self.done += size
        done, total = (math.ceil(size / 1000) for size in (self.done, self.total))
        self.update("read kB", min(done, total), total, {})


def split_lines(data: bytes, encoding: str, first: int = 1) -> pl.DataFrame:
    """The lines with their number and, where bytes can't be decoded, a reason; no empty lines."""
    text = data.decode(encoding, errors="replace")
    if first == 1:
        text = text.removeprefix("\N{BOM}")
    lines = pl.Series("text", [text]).str.split("\n").explode().str.strip_suffix("\r")
    number = pl.int_range(first, first + len(lines), eager=True)
    frame = pl.DataFrame({LINE: number, "text": lines})
    broken = pl.col("text").str.contains(UNDECODABLE, literal=True)
    reason = pl.when(broken).then(pl.lit(f"not {encoding} text")).alias(REASON)
    return frame.filter(pl.col("text") != "").with_columns(reason)


def slices(data: bytes) -> Iterator[bytes]:
    """The data in parts of about `SLICE` bytes, each of whole lines; one part at least."""
    begin = 0
    while True:
        end = data.find(b"\n", begin + SLICE) + 1 or len(data)
        yield data[begin:end]
        if end == len(data):
            return
        begin = end


def cut(
    file: str,
    data: bytes,
    encoding: str,
    separator: str,
    names: Sequence[str] | None = None,
    told: Callable[[float], None] = lambda share: None,
) -> Rows:
    """Cut a file into text columns; ``told`` gets the share of each part that was cut.

    Without ``names`` they are in the first line. Raises `LogsError` where that is none.
    """
    frames, first = [], 1
    for part in slices(data):
        lines = split_lines(part, encoding, first)
        if names is None and not lines.is_empty():
            names, lines = _header(file, lines["text"][0]), lines.slice(1)
        if names is not None:
            frames.append(_fields(lines, names, separator))
        first += part.count(b"\n")
        told(len(part) / max(len(data), 1))
    if names is None:
        raise LogsError(file, "header", "a line with the names of the columns")
    return Rows(file, pl.concat(frames))


def _header(file: str, line: str) -> list[str]:
    names = _unquote(line)
    if not names or "" in names or len(set(names)) < len(names):
        raise LogsError(file, "header", "names of columns that differ and are not empty")
    return names


def _fields(lines: pl.DataFrame, names: Sequence[str], separator: str) -> pl.DataFrame:
    """Lines in columns; one with another number of fields is malformed.

    Quotes matter only with a comma; a quoted field ends on the line it starts on.
    """
    parts = pl.col("text").str.split(separator)
    if separator == "," and lines["text"].str.contains('"', literal=True).any():
        quoted = pl.col("text").str.contains('"', literal=True)
        texts = lines.filter(quoted)["text"]
        fields = pl.Series([_unquote(text) for text in texts], dtype=pl.List(pl.String))
        order = pl.concat(
            [
                lines.filter(~quoted).with_columns(parts.alias("parts")),
                lines.filter(quoted).with_columns(fields.alias("parts")),
            ]
        )
        frame = order.sort(LINE)
    else:
        frame = lines.with_columns(parts.alias("parts"))
    wrong = pl.col("parts").list.len() != len(names)
    reason = pl.when(wrong).then(pl.lit(f"the number of fields is not {len(names)}"))
    return frame.select(
        LINE,
        pl.coalesce(REASON, reason).alias(REASON),
        *(pl.col("parts").list.get(i, null_on_oob=True).alias(n) for i, n in enumerate(names)),
    )


def _unquote(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error:
        return []


def read_csv(path: Path, reading: Reading) -> Rows:
    """A CSV file with a header, every column as text. Raises `LogsError`."""
    data, size = read_bytes(path), path.stat().st_size
    return cut(str(path), data, "utf-8", ",", told=lambda share: reading.add(share * size))


def read_parquet(path: Path, reading: Reading) -> Rows:
    """A Parquet file as it is. Raises `LogsError`."""
    try:
        frame = pl.read_parquet(path)
        reading.add(path.stat().st_size)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogsError(str(path), "file", f"a readable Parquet file ({error})") from None
    line = pl.int_range(1, frame.height + 1, eager=True).alias(LINE)
    return Rows(str(path), frame.with_columns(line, pl.lit(None, pl.String).alias(REASON)))


def need(rows: Rows, names: Sequence[str]) -> Rows:
    """Only these columns. Raises `LogsError` for the first that isn't there."""
    for name in names:
        if name not in rows.columns:
            raise LogsError(rows.file, name, "a column of this name, found none")
    return replace(rows, frame=rows.frame.select(LINE, REASON, *names))
