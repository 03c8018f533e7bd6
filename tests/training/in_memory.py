"""The reader of a team's own tables once more, in memory and by polars: what the engines are held
against. It takes one file for each table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from model.contract.encode import MAX_ID_CHARACTERS
from model.contract.schema import Field, Schema
from terminal.progress import Update, quiet
from training.logs import (
    SPLITS,
    Logs,
    LogsError,
    event_columns,
    item_columns,
    user_columns,
)
from training.parts import Reading, TextFile
from training.rows import (
    LINE,
    MAX_BAD_SHARE,
    REASON,
    Rows,
    empty,
    hold_rows,
    hold_share,
    need,
    read_csv,
    repeated,
)
from training.table_files import SUFFIXES


def read_tables(
    source: str | Path,
    schema_path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
    update: Update = quiet,
) -> Logs:
    """As `training.tables.prepare` does it."""
    schema = Schema.load(schema_path)
    theirs = dict(columns or {})
    known = {*event_columns(schema), *item_columns(schema), *user_columns(schema), "probability"}
    for name in theirs:
        if name not in known:
            raise LogsError("columns", name, f"one of {', '.join(sorted(known))}")
    paths = {part: _path(str(source), part) for part in ("events", "items", "users")}
    reading = Reading.of([TextFile(path) for path in paths.values() if path], update)
    found = {p: _table(path, theirs, reading) if path else None for p, path in paths.items()}
    update("arrange", 0, 0, {})
    raw = found["events"]
    if raw is None:
        raise LogsError(str(source), "events", f"a table ending in {', '.join(SUFFIXES)}")
    events = _events(raw, schema)
    items, users = found["items"], found["users"]
    if items is not None:
        items = _fields(_id(need(items, list(item_columns(schema))), "item_id"), schema.item[1:])
        items = items.mark(repeated("item_id"))
    elif len(schema.item) > 1:
        raise LogsError(str(source), "items", f"a table with {schema.item[1].name}")
    if users is not None:
        users = _fields(_id(need(users, list(user_columns(schema))), "user_id"), schema.user)
        users = users.mark(repeated("user_id"))
    elif schema.user:
        raise LogsError(str(source), "users", f"a table with {schema.user[0].name}")
    every = [rows.dropped for rows in (events, items, users) if rows]
    malformed = hold_share(every, max_bad_share)
    hold_rows(events.dropped)
    frame = events.sound()
    if "split" not in raw.columns:
        frame = _split_by_time(frame, schema.tasks[0], events.file)
    return Logs.build(
        Path(schema_path),
        frame,
        items.sound() if items else _ids(frame, "item_id"),
        users.sound() if users else _ids(frame, "user_id"),
        malformed,
    )


def _ids(events: pl.DataFrame, name: str) -> pl.DataFrame:
    return events.select(pl.col(name).unique().sort())


def _path(source: str, part: str) -> Path | None:
    """The one table of this name."""
    start = f"{source}/{part}." if Path(source).is_dir() else f"{source}.{part}."
    paths = [path for path in (Path(start + suffix) for suffix in SUFFIXES) if path.exists()]
    if len(paths) > 1:
        raise LogsError(source, part, f"one table, found {', '.join(p.name for p in paths)}")
    return paths[0] if paths else None


def _parquet(path: Path) -> Rows:
    frame = pl.read_parquet(path)
    line = pl.int_range(1, frame.height + 1, eager=True).alias(LINE)
    return Rows(str(path), frame.with_columns(line, pl.lit(None, pl.String).alias(REASON)))


def _table(path: Path, theirs: Mapping[str, str], reading: Reading) -> Rows:
    """A table with our names; text columns have null where they were empty."""
    rows = _parquet(path) if path.suffix == ".parquet" else read_csv(path, reading)
    back = {their: our for our, their in theirs.items() if their in rows.columns}
    shadowed = [name for name in back.values() if name in rows.columns and name not in back]
    frame = rows.frame.drop(shadowed).rename(back)
    text = pl.col(pl.String).exclude("#reason")
    return replace(rows, frame=frame.with_columns(pl.when(text != "").then(text)))


def _events(raw: Rows, schema: Schema) -> Rows:
    first = schema.tasks[0]
    fields = (*schema.behaviour, *schema.context, *schema.ad)
    optional = [n for n in ("behaviour", "split", "probability") if n in raw.columns]
    names = ["user_id", "item_id", "ts", *schema.tasks, *(f.name for f in fields), *optional]
    rows = _fields(_ts(_id(_id(need(raw, names), "user_id"), "item_id")), fields)
    for task in schema.tasks:
        rows = _label(rows, task)
    rows = (
        _flag(rows)
        if "behaviour" in optional
        else rows.with_columns((pl.col(first) == 1).fill_null(False).alias("behaviour"))
    )
    shown = pl.col(first).is_not_null()
    if "split" in optional:
        rows = _category(rows, "split").mark(
            (~pl.col("split").is_in(SPLITS), "split is not train, validation or test"),
            (shown & pl.col("split").is_null(), "an impression without a split"),
            (~shown & pl.col("split").is_not_null(), f"an impression without {first}"),
        )
    if "probability" in optional:
        rows = _number(rows, "probability")
        outside = ~pl.col("probability").is_between(0, 1)
        rows = rows.mark((outside, "probability is not from 0 to 1"))
    others = [pl.col(task).is_null() == shown for task in schema.tasks[1:]]
    return rows.mark(
        *((part, "a label for some tasks only") for part in others),
        (~shown & ~pl.col("behaviour"), "neither a behaviour nor an impression"),
    )


def _fields(rows: Rows, fields: tuple[Field, ...]) -> Rows:
    for field in fields:
        read = {"category": _category, "tags": _tags, "number": _number}[field.kind]
        rows = read(rows, field.name)
    return rows


def _id(rows: Rows, name: str) -> Rows:
    return _category(rows, name).mark(*empty(name))


def _is_text(kind: pl.DataType) -> bool:
    """Whether a column of ids keeps every digit as text."""
    exact = kind in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    return exact or kind.is_integer()


def _category(rows: Rows, name: str) -> Rows:
    kind = rows.frame.schema[name]
    if not _is_text(kind):
        expected = f"text or integers (ids never go through floats), found {kind}"
        raise LogsError(rows.file, name, expected)
    long = pl.col(name).str.len_chars() > MAX_ID_CHARACTERS
    return rows.with_columns(pl.col(name).cast(pl.String)).mark((long, f"{name} is too long"))


def _tags(rows: Rows, name: str) -> Rows:
    """A list of texts or integers, or one text with '|' between the tags; missing is no tags."""
    kind, tags = rows.frame.schema[name], pl.col(name)
    if isinstance(kind, pl.List) and _is_text(pl.Series(dtype=kind.inner).dtype):
        tags = tags.cast(pl.List(pl.String))
    elif kind in (pl.String, pl.Null):
        tags = tags.cast(pl.String).str.split("|")
    else:
        raise LogsError(rows.file, name, f"lists of text or integers, or text, found {kind}")
    kept = pl.element().filter(pl.element() != "")
    rows = rows.with_columns(tags.list.eval(kept).fill_null([]))
    long = pl.col(name).list.eval(pl.element().str.len_chars() > MAX_ID_CHARACTERS).list.any()
    return rows.mark((long, f"{name} is too long"))


def _real(rows: Rows, name: str) -> pl.Expr:
    kind = rows.frame.schema[name]
    if not (kind in (pl.String, pl.Boolean, pl.Null) or kind.is_numeric()):
        raise LogsError(rows.file, name, f"numbers, found {kind}")
    return pl.col(name).cast(pl.Float64, strict=False)


def _number(rows: Rows, name: str) -> Rows:
    value = _real(rows, name)
    unread = value.is_null() & pl.col(name).is_not_null()
    rows = rows.mark((unread | ~value.is_finite(), f"{name} is not a finite number"))
    return rows.with_columns(value)


def _ts(rows: Rows) -> Rows:
    kind, value = rows.frame.schema["ts"], pl.col("ts")
    if kind in (pl.Datetime, pl.Date):
        value = value.cast(pl.Datetime("us")).to_physical().floordiv(1_000_000)
    elif kind.is_float():
        value = pl.when(value.is_finite() & (value == value.floor())).then(value)
    elif not (kind in (pl.String, pl.Null) or kind.is_integer()):
        raise LogsError(rows.file, "ts", f"integers or dates, found {kind}")
    value = value.cast(pl.Int64, strict=False)
    return rows.mark((value.is_null(), "ts is not an integer")).with_columns(value)


def _label(rows: Rows, task: str) -> Rows:
    value = _real(rows, task)
    wrong = pl.col(task).is_not_null() & ~value.is_in([0.0, 1.0]).fill_null(False)
    rows = rows.mark((wrong, f"{task} is not 0, 1 or null"))
    return rows.with_columns(pl.when(~wrong).then(value).cast(pl.Int8).alias(task))


def _flag(rows: Rows) -> Rows:
    if rows.frame.schema["behaviour"] == pl.Boolean:
        rows = rows.with_columns(pl.col("behaviour").cast(pl.String))
    text = _category(rows, "behaviour").with_columns(pl.col("behaviour").str.to_lowercase())
    value = pl.col("behaviour")
    known = value.is_in(["true", "1", "false", "0"]).fill_null(False)
    text = text.mark((~known, "behaviour is not true or false"))
    return text.with_columns(value.is_in(["true", "1"]).fill_null(False))


def _split_by_time(events: pl.DataFrame, task: str, file: str) -> pl.DataFrame:
    times = events.filter(pl.col(task).is_not_null())["ts"].sort()
    if not len(times):
        raise LogsError(file, task, "impressions, found none")
    validation, test = times[len(times) * 8 // 10], times[len(times) * 9 // 10]
    if validation == times[0]:
        raise LogsError(file, "ts", "times that leave some 80 % of the impressions to train")
    split = (
        pl.when(pl.col(task).is_null())
        .then(None)
        .when(pl.col("ts") >= test)
        .then(pl.lit("test"))
        .when(pl.col("ts") >= validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    return events.with_columns(split.alias("split"))
