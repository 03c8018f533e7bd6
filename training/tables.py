"""The reader of a team's own logs: Parquet or CSV tables to the canonical form, of any size.

All work on rows is written once, in Ibis, and run by an engine (`training.engines`) that goes out
of core or over a cluster. What is written is the same, byte for byte, whichever runs it: a row's
position, the place of its file and its line there, makes each order a total one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import ibis
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from model.contract.schema import Schema, SchemaError
from terminal.progress import Update, quiet
from training.checked import Checked, named
from training.checked import columns as columns_of
from training.checks import POSITION
from training.engines import BATCH, Engine
from training.logs import (
    TABLES,
    LogsError,
    Written,
    event_columns,
    item_columns,
    optional_columns,
    user_columns,
    whole,
)
from training.option import OptionError
from training.parts import Reading, TextFile
from training.rows import MAX_BAD_SHARE, hold_rows, hold_share
from training.scratch import scratch
from training.table_files import SUFFIXES, Losses, Parts, find

if TYPE_CHECKING:
    import ibis.expr.types as ir

RADIX_BITS = 16
ARROW = {
    pl.String(): pa.string(),
    pl.Int64(): pa.int64(),
    pl.Int8(): pa.int8(),
    pl.Boolean(): pa.bool_(),
    pl.Float64(): pa.float64(),
    pl.List(pl.String()): pa.list_(pa.string()),
}
NAMES = ("events", "items", "users")


def prepare(
    source: str | Path,
    schema_path: str | Path,
    out: str | Path,
    start: Callable[[Path], AbstractContextManager[Engine]],
    *,
    columns: Mapping[str, str] | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
    skip_unreadable: bool = False,
    update: Update = quiet,
) -> Written:
    """Write the canonical form of events, items and users (`training.table_files`) into ``out``.

    ``source`` is their folder, or the prefix of ``<prefix>.events.csv`` and so on. Items and users
    may be missing when the schema has no more than their ids. ``start`` gives the engine, which may
    use the folder it is told. ``columns`` gives, for a canonical column, its name in the tables. A
    missing ``behaviour`` is true where the first task is 1. A missing ``split`` goes by time: the
    last 10 % of the impressions are test, the 10 % before validation, and equal times stay
    together. Raises `LogsError` and `EngineError`, and `OptionError` for a schema that can't be
    used, a column of it that a table lacks, or a name of ``columns`` that is none.
    """
    schema, theirs = _schema(schema_path), dict(columns or {})
    schema_text = Path(schema_path).read_bytes().decode()
    found = {name: find(source, name) for name in NAMES}
    _known(theirs, schema)
    _needed(str(source), found, schema)
    present = {name: parts for name, parts in found.items() if parts}
    _there(theirs, present, schema)
    _asked(theirs, present, schema)
    staged = [parts.files for parts in present.values() if parts.suffix != "parquet"]
    reading = Reading.of([TextFile(file) for files in staged for file in files], update)
    losses = Losses(skip_unreadable)
    with scratch(Path(out)) as work, start(work) as engine:
        opened = {name: parts.open(work, reading, losses) for name, parts in present.items()}
        update("arrange", 0, 0, {})
        checked = {
            name: Checked(engine, parts, opened[name], schema, theirs, work, losses)
            for name, parts in present.items()
        }
        dropped = {name: table.dropped() for name, table in checked.items()}
        malformed = hold_share(list(dropped.values()), max_bad_share)
        hold_rows(dropped["events"])
        sound = {name: table.sound() for name, table in checked.items()}
        if "split" not in sound["events"].columns:
            file = checked["events"].file
            sound["events"] = _split_by_time(engine, sound["events"], schema.tasks[0], file)
        rows = {name: found.total - found.count for name, found in dropped.items()}
        for name in {"items", "users"} - set(sound):
            sound[name] = sound["events"].select(f"{name[:-1]}_id").distinct()
            rows[name] = engine.rows(sound[name].aggregate(rows=lambda ids: ids.count()))[0][0]
        done, total = 0, sum(rows.values())
        update("write rows", done, total, {})
        with whole(out, schema_text) as fresh:
            for name, file in zip(NAMES, TABLES, strict=True):
                layout = _arrow(name, schema, sound[name])
                ordered = _ordered(sound[name]).select(*layout.names)
                batches = engine.batches(ordered, work / f"{name}-ordered")
                for written in _write(batches, fresh / file, layout):
                    done += written
                    update("write rows", done, total, {})
        splits, labels = _shown(engine, sound["events"], schema.tasks)
        alone = _alone(engine, sound["events"])
    return Written(
        rows["events"],
        rows["items"],
        rows["users"],
        splits,
        labels,
        alone,
        malformed,
        lost=tuple(losses.lost),
    )


def _schema(path: str | Path) -> Schema:
    try:
        return Schema.load(path)
    except SchemaError as error:
        raise OptionError(f"--schema {error}") from None


def _known(theirs: Mapping[str, str], schema: Schema) -> None:
    known = {our for name in NAMES for some in columns_of(name, schema) for our in some}
    for our in theirs:
        if our not in known:
            raise OptionError(f"--column {our}: expected one of {', '.join(sorted(known))}")


def _there(theirs: Mapping[str, str], present: Mapping[str, Parts], schema: Schema) -> None:
    """A canonical column's name in the tables is that of a column of a table that may have it."""
    found = {name: parts.columns() for name, parts in present.items()} if theirs else {}
    for our, their in theirs.items():
        of = [found[name] for name in found if our in chain(*columns_of(name, schema))]
        known = list(dict.fromkeys(chain(*of)))
        if their not in known and all(of):  # what can't be opened is told of when it is
            raise OptionError(f"--column {our}={their}: expected one of {', '.join(known)}")


def _asked(theirs: Mapping[str, str], present: Mapping[str, Parts], schema: Schema) -> None:
    """Each table has what the schema asks of it; what can't be opened is told of when it is."""
    for name, parts in present.items():
        found = parts.columns()
        missing = named(found, name, schema, theirs)[1] if found else []
        if missing:
            free = [each for each in found if each not in theirs.values()]
            taken = [f"{our}={their}" for our, their in theirs.items() if their in missing]
            raise OptionError(
                f"--schema: {', '.join(missing)}: expected columns of {parts.path}, or --column "
                f"{missing[0]}= one of {', '.join(free)}"
                + "".join(f"; --column {each} has taken it" for each in taken)
            )


def _needed(source: str, found: Mapping[str, Parts | None], schema: Schema) -> None:
    """Events are; items and users with more than ids are too."""
    if found["events"] is None:
        raise LogsError(source, "events", f"a table ending in {', '.join(SUFFIXES)}")
    if found["items"] is None and len(schema.item) > 1:
        raise LogsError(source, "items", f"a table with {schema.item[1].name}")
    if found["users"] is None and schema.user:
        raise LogsError(source, "users", f"a table with {schema.user[0].name}")


def _split_by_time(engine: Engine, events: ir.Table, task: str, file: str) -> ir.Table:
    times = events.filter(events[task].notnull()).select("ts")
    summary = times.aggregate(rows=times.count(), first=times.ts.min(), last=times.ts.max())
    rows, first, last = engine.rows(summary)[0]
    if not rows:
        raise LogsError(file, task, "impressions, found none")
    validation, test = (
        _ranked(engine, times.ts, first, last, rank) for rank in (rows * 8 // 10, rows * 9 // 10)
    )
    if validation == first:
        raise LogsError(file, "ts", "times that leave some 80 % of the impressions to train")
    split = ibis.cases(
        (events[task].isnull(), ibis.null("string")),
        (events.ts >= test, "test"),
        (events.ts >= validation, "validation"),
        else_="train",
    )
    return events.mutate(split=split)


def _ranked(engine: Engine, ts: ir.IntegerColumn, first: int, last: int, rank: int) -> int:
    """The ts with so many before it in sorted order, all of them from ``first`` to ``last``.

    Found without sorting, from the highest bits that differ to the lowest: each pass counts the
    values of the next `RADIX_BITS`, so it needs the same memory whatever the number of rows.
    """
    shift = 64 if first < 0 <= last else (first ^ last).bit_length()
    found = first >> shift  # all bits of the wanted ts above these
    while shift:
        step = min(RADIX_BITS, shift)
        within = ts.as_table()
        if shift < 64:
            within = within.filter((ts >> shift) == found)
        shift -= step
        digit = (within.ts >> shift).name("digit")
        counts = sorted(engine.rows(within.group_by(digit).aggregate(rows=within.count())))
        ends = list(accumulate(rows for _, rows in counts))
        at = bisect_right(ends, rank)
        found, rank = counts[at][0], rank - (ends[at - 1] if at else 0)
    return found


def _shown(
    engine: Engine, events: ir.Table, tasks: Sequence[str]
) -> tuple[dict[str, int], dict[str, dict[str, tuple[int, int]]]]:
    """The impressions of each split, and their least and greatest label of each task."""
    shown = events.filter(events.split.notnull())
    ends = [end for task in tasks for end in (shown[task].min(), shown[task].max())]
    named = {f"end {at}": end for at, end in enumerate(ends)}
    splits, labels = {}, {}
    by_split = shown.group_by("split").aggregate(rows=shown.count(), **named)
    for split, rows, *found in engine.rows(by_split):
        splits[split] = rows
        pairs = zip(found[::2], found[1::2], strict=True)
        labels[split] = dict(zip(tasks, pairs, strict=True))
    return splits, labels


def _alone(engine: Engine, events: ir.Table) -> int:
    """The number of users with one event only."""
    users = events.group_by("user_id").aggregate(events=events.count())
    alone = users.filter(users.events == 1)
    count: int = engine.rows(alone.aggregate(rows=alone.count()))[0][0]
    return count


def _ordered(table: ir.Table) -> ir.Table:
    """Events by user and time, then as in the source; ids that have no table by themselves."""
    if POSITION not in table.columns:
        return table.order_by(table.columns)
    by = ["user_id", "ts", POSITION] if "ts" in table.columns else [POSITION]
    return table.order_by(by)


def _arrow(name: str, schema: Schema, table: ir.Table) -> pa.Schema:
    """The columns of a canonical table, those that are optional where ``table`` has them."""
    wanted = {"events": event_columns, "items": item_columns, "users": user_columns}[name](schema)
    optional = optional_columns(schema).items()
    extra = {name: kind for name, kind in optional if name in table.columns}
    return pa.schema([(name, ARROW[kind]) for name, kind in {**wanted, **extra}.items()])


def _write(batches: Iterator[pa.RecordBatch], path: Path, schema: pa.Schema) -> Iterator[int]:
    """Write row groups of `BATCH` rows, whatever the batches; gives the rows of each."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(pa.Table.from_batches([batch]).cast(schema))
            if sum(map(len, waiting)) >= BATCH:
                rows = pa.concat_tables(waiting)
                writer.write_table(rows[:BATCH].combine_chunks())
                waiting = [rows[BATCH:]]
                yield BATCH
        rows = pa.concat_tables(waiting) if waiting else schema.empty_table()
        writer.write_table(rows.combine_chunks())
        yield len(rows)
