"""The rows of one source file: cut into columns, the malformed ones marked with line and reason."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

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


@dataclass(frozen=True)
class Verdict:
    """How many rows of a table are malformed, and the first `LISTED` of them."""

    file: str
    rows: int
    bad: int
    listed: tuple[BadRow, ...]


def settle(tables: Sequence[Rows], max_bad_share: float) -> Malformed:
    """Count what is malformed. Raises `LogsError` when its share of any one file is too large."""
    verdicts = []
    for rows in tables:
        bad = rows.frame.filter(pl.col(REASON).is_not_null()).select(LINE, REASON)
        listed = tuple((rows.file, *row) for row in bad.head(LISTED).iter_rows())
        verdicts.append(Verdict(rows.file, rows.frame.height, bad.height, listed))
    return judge(verdicts, max_bad_share)


def judge(verdicts: Sequence[Verdict], max_bad_share: float) -> Malformed:
    """All verdicts in one. Raises `LogsError` when the malformed share of any one is too large."""
    listed = [row for verdict in verdicts for row in verdict.listed][:LISTED]
    total, count = sum(each.rows for each in verdicts), sum(each.bad for each in verdicts)
    malformed = Malformed(total, tuple(listed), count)
    worst = max(verdicts, key=lambda each: each.bad / max(each.rows, 1))
    if worst.bad / max(worst.rows, 1) > max_bad_share:
        seen = "; ".join(f"{file} line {line}: {reason}" for file, line, reason in listed)
        expected = f"at most a {max_bad_share:g} share malformed"
        found = f"{expected}, found {worst.bad} of {worst.rows} ({seen})"
        raise LogsError(worst.file, "rows", found, malformed)
    return malformed


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


def slices(stream: BinaryIO) -> Iterator[bytes]:
    """A stream in parts of about `SLICE` bytes, each of whole lines; one part at least."""
    yield stream.read(SLICE) + stream.readline()
    while part := stream.read(SLICE) + stream.readline():
        yield part


def pieces(
    file: str, stream: BinaryIO, encoding: str, separator: str, names: Sequence[str] | None = None
) -> Iterator[tuple[int, pl.DataFrame]]:
    """A file cut into line, reason and text columns, with the number of bytes behind each piece.

    Without ``names`` they are in the first line. Raises `LogsError` where that is none.
    """
    first = 1
    for part in slices(stream):
        lines = split_lines(part, encoding, first)
        if names is None and not lines.is_empty():
            names, lines = _header(file, lines["text"][0]), lines.slice(1)
        if names is not None:
            yield len(part), _fields(lines, names, separator)
        first += part.count(b"\n")
    if names is None:
        raise LogsError(file, "header", "a line with the names of the columns")


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


def csv_pieces(path: Path, reading: Reading) -> Iterator[pl.DataFrame]:
    """A CSV file with a header, piece by piece: line, reason and every column as text.

    Raises `LogsError`.
    """
    try:
        with path.open("rb") as raw, _text_of(path, raw) as stream:
            told = 0
            for _, piece in pieces(str(path), stream, "utf-8", ","):
                reading.add(raw.tell() - told)
                told = raw.tell()
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise LogsError(str(path), "file", f"a readable file ({error})") from None


def _text_of(path: Path, raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw


def read_csv(path: Path, reading: Reading) -> Rows:
    """A CSV file with a header, whole and every column as text. Raises `LogsError`."""
    return Rows(str(path), pl.concat(csv_pieces(path, reading)))


def need(rows: Rows, names: Sequence[str]) -> Rows:
    """Only these columns. Raises `LogsError` for the first that isn't there."""
    for name in names:
        if name not in rows.columns:
            raise LogsError(rows.file, name, "a column of this name, found none")
    return replace(rows, frame=rows.frame.select(LINE, REASON, *names))
