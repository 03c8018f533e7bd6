"""The rows of one source file: cut into columns, the malformed ones marked with line and reason."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import polars as pl

from terminal.progress import quiet
from training.logs import LISTED, BadRow, LogsError, Malformed
from training.parts import Reading, TextFile

LINE, REASON = "#line", "#reason"
MAX_BAD_SHARE = 0.001
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
ODD = (b'"', b"\r", UNDECODABLE.encode())  # a part with any of these is cut with care
SHOWN_HEADER = 256  # characters of a wrong header in an error


@dataclass(frozen=True)
class Dropped:
    """The malformed rows of a file or table: ``count`` of ``total``, the first in ``listed``."""

    file: str
    total: int
    count: int
    listed: tuple[BadRow, ...]


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

    @property
    def dropped(self) -> Dropped:
        bad = self.frame.filter(pl.col(REASON).is_not_null()).select(LINE, REASON)
        listed = tuple((self.file, *row) for row in bad.head(LISTED).iter_rows())
        return Dropped(self.file, self.frame.height, bad.height, listed)


def empty(*names: str) -> list[tuple[pl.Expr, str]]:
    """Rules against ids that are missing."""
    return [((pl.col(name) == "").fill_null(True), f"empty {name}") for name in names]


def repeated(*names: str) -> tuple[pl.Expr, str]:
    """The rule against a second sound row with the same key."""
    key = pl.struct(*(pl.when(pl.col(REASON).is_null()).then(name).alias(name) for name in names))
    again = pl.col(REASON).is_null() & ~key.is_first_distinct()
    return again, f"{' and '.join(names)} again"


def settle(files: Sequence[Dropped], max_bad_share: float) -> Malformed:
    """Count what is malformed.

    Raises `LogsError` when its share of any one is too large, or any one has no sound row.
    """
    malformed = hold_share(files, max_bad_share)
    for file in files:
        hold_rows(file)
    return malformed


def hold_rows(file: Dropped) -> None:
    """Raises `LogsError` where no row is sound."""
    if file.count == file.total:
        found = f"{file.count} malformed" if file.count else "none"
        raise LogsError(file.file, "rows", f"at least one row, found {found}")


def hold_share(files: Sequence[Dropped], max_bad_share: float) -> Malformed:
    """Count what is malformed. Raises `LogsError` when its share of any one is too large."""
    listed = tuple(row for file in files for row in file.listed)[:LISTED]
    malformed = Malformed(sum(f.total for f in files), listed, sum(f.count for f in files))
    shares = [(file.count / max(file.total, 1), file) for file in files]
    share, worst = max(shares, key=lambda each: each[0])
    if share > max_bad_share:
        seen = "; ".join(f"{file} line {line}: {reason}" for file, line, reason in listed)
        expected = f"at most a {max_bad_share:g} share malformed"
        found = f"{expected}, found {worst.count} of {worst.total} ({seen})"
        raise LogsError(worst.file, "rows", found, malformed)
    return malformed


def pour(
    parts: Iterable[Rows], max_bad_share: float, take: Callable[[pl.DataFrame], None]
) -> Dropped:
    """Hand the sound rows of a file that comes in parts to ``take``, part by part.

    Raises `LogsError` as soon as it is seen to be no such file: no row so far was sound.
    """
    file, total, count, listed = "", 0, 0, list[BadRow]()
    for rows in parts:
        found = rows.dropped
        file, total, count = found.file, total + found.total, count + found.count
        listed += found.listed[: LISTED - len(listed)]
        take(rows.sound())
        if count == total:
            hold_share([Dropped(file, total, count, tuple(listed))], max_bad_share)
    return Dropped(file, total, count, tuple(listed))


def whole(parts: Iterable[Rows]) -> Rows:
    """A file that came in parts, as one."""
    every = list(parts)
    return Rows(every[0].file, pl.concat([rows.frame for rows in every]))


def cut(
    file: str,
    parts: Iterable[bytes],
    encoding: str,
    separator: str,
    names: Sequence[str] | None = None,
    header: bool = False,
) -> Iterator[Rows]:
    """Cut the parts of a file into text columns, one `Rows` for each; one at least.

    Without ``names`` they are in the first line; with a ``header`` the names have to be those of
    the first line, spaces around them aside. Raises `LogsError` where they are not.
    """
    first, missing, given = 1, names is None or header, names
    for part in parts:
        data = part.removeprefix(b"\xef\xbb\xbf") if first == 1 and encoding == "utf-8" else part
        while missing and data:
            line, _, data = data.partition(b"\n")
            if text := line.decode(encoding, errors="replace").removesuffix("\r"):
                names, missing = _header(file, first, text, separator, given), False
            first += 1
        if not missing and names is not None:
            yield Rows(file, _fields(data, first, encoding, names, separator))
        first += data.count(b"\n")
    if missing:
        expected = "a line with the names of the columns"
        raise LogsError(file, "header", f"{expected}: {','.join(given)}" if given else expected)
    if first == 1 and names is not None:
        yield Rows(file, _fields(b"", first, encoding, names, separator))


def _header(
    file: str, number: int, line: str, separator: str, names: Sequence[str] | None
) -> Sequence[str]:
    found = _unquote(line)
    if names is not None:
        if [name.strip() for name in found] != list(names):
            expected = f"the header {separator.join(names)}"
            raise LogsError(file, f"line {number}", f"{expected}, found {line[:SHOWN_HEADER]!r}")
        return names
    if not found or "" in found or len(set(found)) < len(found):
        raise LogsError(file, "header", "names of columns that differ and are not empty")
    return found


def _fields(
    data: bytes, first: int, encoding: str, names: Sequence[str], separator: str
) -> pl.DataFrame:
    """Lines in columns, with their number; no empty lines. One that can't be decoded, or has
    another number of fields, is malformed."""
    regular = _regular(data, first, names) if separator == "," and encoding == "utf-8" else None
    if regular is not None:
        return regular
    return _split(_lines(data, encoding, first), names, separator)


def _regular(data: bytes, first: int, names: Sequence[str]) -> pl.DataFrame | None:
    """The columns where no line needs a second look: three times as fast. Else None."""
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if not data or any(odd in data for odd in ODD):
        return None
    try:
        frame = pl.read_csv(
            data,
            has_header=False,
            schema=dict.fromkeys(names, pl.String()),
            quote_char=None,
            ignore_errors=False,
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.height != lines or any(frame.null_count().row(0)):  # an empty line or field
        return None
    number = pl.int_range(first, first + lines, eager=True).alias(LINE)
    return frame.select(number, pl.lit(None, pl.String).alias(REASON), *names)


def _lines(data: bytes, encoding: str, first: int) -> pl.DataFrame:
    """The lines with their number and, where bytes can't be decoded, a reason; no empty lines."""
    text = data.decode(encoding, errors="replace")
    lines = pl.Series("text", [text]).str.split("\n").explode().str.strip_suffix("\r")
    number = pl.int_range(first, first + len(lines), eager=True)
    frame = pl.DataFrame({LINE: number, "text": lines})
    broken = pl.col("text").str.contains(UNDECODABLE, literal=True)
    reason = pl.when(broken).then(pl.lit(f"not {encoding} text")).alias(REASON)
    return frame.filter(pl.col("text") != "").with_columns(reason)


def cut_lines(file: str, parts: Iterable[bytes], encoding: str) -> Iterator[Rows]:
    """The lines of a file as the column ``text``, one `Rows` for each part."""
    first = 1
    for part in parts:
        yield Rows(file, _lines(part, encoding, first))
        first += part.count(b"\n")
    if first == 1:
        yield Rows(file, _lines(b"", encoding, first))


def _split(lines: pl.DataFrame, names: Sequence[str], separator: str) -> pl.DataFrame:
    """Quotes matter only with a comma; a quoted field ends on the line it starts on."""
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


def csv_parts(path: Path, reading: Reading) -> Iterator[Rows]:
    """A CSV file with a header, part by part, every column as text. Raises `LogsError`."""
    file = TextFile(path)
    return cut(file.name, file.parts(reading), "utf-8", ",")


def csv_columns(path: Path) -> list[str]:
    """The columns of a CSV file with a header; no row is read. Raises `LogsError`."""
    file = TextFile(path)
    lines = (line for part in file.parts(Reading(quiet, 0)) for line in BytesIO(part))
    return next(cut(file.name, lines, "utf-8", ",")).columns


def read_csv(path: Path, reading: Reading) -> Rows:
    """A CSV file with a header, whole. Raises `LogsError`."""
    return whole(csv_parts(path, reading))


def need(rows: Rows, names: Sequence[str]) -> Rows:
    """Only these columns. Raises `LogsError` for the first that isn't there."""
    for name in names:
        if name not in rows.columns:
            raise LogsError(rows.file, name, "a column of this name, found none")
    return replace(rows, frame=rows.frame.select(LINE, REASON, *names))
