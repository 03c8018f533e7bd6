"""What readers of official files share: where the files are, their published sizes, digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from training.logs import LogsError
from training.parts import TextFile

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
SUFFIXES = ("", ".gz", ".tar.gz")
DIGITS = 9  # what always fits an Int32


def find(folder: Path, name: str) -> TextFile:
    """The one file of a folder with this name, plain or compressed. Raises `LogsError`."""
    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) == 1:
        return TextFile(found[0])
    wanted = ", ".join(f"{name}{suffix}" for suffix in SUFFIXES)
    seen = ", ".join(path.name for path in found) or "none"
    raise LogsError(str(folder), name, f"one file of {wanted}, found {seen}")


def hold(file: str, published: Mapping[str, int], found: Mapping[str, int], partial: bool) -> None:
    """Raises `LogsError` for the first count that is not the published one, unless ``partial``."""
    for what, count in published.items():
        if found[what] != count and not partial:
            expected = f"the published {count:,}, found {found[what]:,}"
            raise LogsError(file, what, f"{expected} (--partial reads a part of a data set)")


def not_digits(*names: str, missing: bool = False) -> list[tuple[pl.Expr, str]]:
    """Rules against ids that are no whole numbers as text: these are held as Int32 until the end.

    A leading zero is refused, since two ids would become one. Null may be allowed as ``missing``.
    """
    form = rf"^(?:0|[1-9][0-9]{{0,{DIGITS - 1}}})$"
    return [
        (
            ~pl.col(name).str.contains(form).fill_null(missing),
            f"{name} is not a whole number of at most {DIGITS} digits",
        )
        for name in names
    ]


def whole_numbers(*names: str) -> list[pl.Expr]:
    """What `not_digits` let through, as numbers."""
    return [pl.col(name).cast(pl.Int32, strict=False) for name in names]


def texts(*names: str) -> list[pl.Expr]:
    return [pl.col(name).cast(pl.String) for name in names]


def other_than(name: str, *values: str) -> tuple[pl.Expr, str]:
    """The rule against anything but these values."""
    known = pl.col(name).is_in(values).fill_null(False)
    return ~known, f"{name} is not {', '.join(values[:-1])} or {values[-1]}"
