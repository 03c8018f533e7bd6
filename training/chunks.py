"""Prepared logs read and written chunk by chunk, so that memory never holds all events.

A chunk is `Logs` of whole users: some 262,144 events, all items, and the profiles of those users.
The tables of items and users are in memory as a whole, events are not. The unit of reading is the
row group of events.parquet: a file that has one only is read in one piece.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from model.contract.schema import Schema
from terminal.progress import Update, quiet
from training.logs import (
    Logs,
    LogsError,
    Written,
    check_events,
    check_types,
    event_columns,
    item_columns,
    optional_columns,
    read_names,
    read_table,
    replacing,
    user_columns,
    write_table,
    writing,
)

EVENTS = 1 << 18


class Chunks:
    """A folder of prepared logs whose events are read anew with each pass over its `chunks`.

    With ``skip`` a row group that can't be read is left out, and counted in ``skipped``: its rows
    by its number, from 0. Users whose events lie in it lose those.
    """

    def __init__(self, folder: str | Path, skip: bool = False, events: int = EVENTS) -> None:
        """Read items, users and the schema; chunks are of some ``events``, or one user.

        Raises `LogsError` and `SchemaError`.
        """
        folder = Path(folder)
        path = folder / "schema.toml"
        self.schema, self.schema_text = Schema.load(path), path.read_bytes().decode()
        self.items = read_table(folder / "items.parquet", item_columns(self.schema))
        users = read_table(folder / "users.parquet", user_columns(self.schema))
        nothing = pl.DataFrame(schema=event_columns(self.schema))
        Logs(self.schema, nothing, self.items, users, self.schema_text).check(folder)
        self.users = users.sort("user_id")
        self.path = folder / "events.parquet"
        self._names = read_names(
            self.path, event_columns(self.schema), optional_columns(self.schema)
        )
        self._skip, self._least, self.skipped = skip, events, dict[int, int]()
        with pq.ParquetFile(self.path) as file:
            self._events: int = file.metadata.num_rows

    def __len__(self) -> int:
        """How many events there are, those that can't be read included."""
        return self._events

    def chunks(self, columns: Collection[str] | None = None) -> Iterator[Logs]:
        """Chunk by chunk, in the order of the file; at least one, which may be empty.

        With ``columns`` only those of the events (and user_id) are read, and not held to the
        canonical form. Raises `LogsError`.
        """
        held = pl.DataFrame(schema={name: self._types()[name] for name in self._wanted(columns)})
        last = ""
        for rows, is_last in _marked(self._groups(self._wanted(columns)), held):
            held = pl.concat([held, rows])
            if held.height < self._least and not is_last:
                continue
            # The last user's events may go on in the next row group.
            cut = held.height if is_last else _begin_of_last_user(held)
            whole, held = held.head(cut), held.slice(cut)
            if not cut and not is_last:
                continue
            if columns is None:
                check_types(str(self.path), whole, {n: self._types()[n] for n in whole.columns})
                check_events(str(self.path), whole, self.schema)
            if cut and whole["user_id"][0] <= last:
                raise LogsError(str(self.path), "ts", "rows sorted by user_id, then ts")
            last = whole["user_id"][-1] if cut else last
            yield Logs(self.schema, whole, self.items, self._profiles(whole), self.schema_text)

    def _wanted(self, columns: Collection[str] | None) -> list[str]:
        wanted = set(self._names if columns is None else columns) | {"user_id"}
        return [name for name in self._names if name in wanted]

    def _types(self) -> dict[str, pl.DataType]:
        return {**event_columns(self.schema), **optional_columns(self.schema)}

    def _groups(self, names: list[str]) -> Iterator[pl.DataFrame]:
        """The rows of each row group that can be read."""
        with pq.ParquetFile(self.path) as file:
            for index in range(file.num_row_groups):
                try:
                    table = file.read_row_group(index, columns=names, use_threads=False)
                except (OSError, pa.ArrowException) as error:
                    if not self._skip:
                        raise LogsError(
                            str(self.path), f"row group {index}", f"readable rows ({error})"
                        ) from None
                    self.skipped[index] = file.metadata.row_group(index).num_rows
                    continue
                frame = pl.from_arrow(table)
                assert isinstance(frame, pl.DataFrame)
                yield frame.select(names)

    def _profiles(self, events: pl.DataFrame) -> pl.DataFrame:
        """The rows of the users' table between the first and the last user of a chunk."""
        if not events.height:
            return self.users.clear()
        known = self.users["user_id"]
        begin = known.search_sorted(events["user_id"][0], "left")
        end = known.search_sorted(events["user_id"][-1], "right")
        return self.users.slice(begin, end - begin)


AnyLogs = Logs | Chunks


def write(
    folder: str | Path, chunks: Iterable[Logs], total: int = 0, update: Update = quiet
) -> Written:
    """Write logs that come in chunks of whole users, sorted across chunks too, whole or not at all.

    Items and the schema are those of the first chunk. ``total`` is how many events there will be,
    if known. Raises `LogsError`.
    """
    done: Written | None = None
    with replacing(Path(folder)) as fresh:
        events, users = _Table(fresh / "events.parquet"), _Table(fresh / "users.parquet")
        last = ""
        with events, users:
            for chunk in chunks:
                if done is None:
                    write_table(chunk.items, fresh / "items.parquet")
                    (fresh / "schema.toml").write_bytes(chunk.schema_text.encode())
                if len(chunk):
                    if chunk.events["user_id"][0] <= last:
                        raise LogsError("events.parquet", "user_id", "chunks sorted by user_id")
                    last = chunk.events["user_id"][-1]
                events.append(chunk.events)
                users.append(chunk.users)
                written = chunk.written()
                done = written if done is None else done + written
                update("write rows", done.events, total, {})
                del chunk  # the next one is made without it in memory
    if done is None:
        raise LogsError(str(folder), "events.parquet", "one chunk at least")
    return done


class _Table:
    """A Parquet file that frames are appended to, in row groups of `EVENTS` rows at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None

    def __enter__(self) -> _Table:
        return self

    def append(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        with writing(self.path):
            if self.writer is None:
                self.writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
            self.writer.write_table(table, row_group_size=EVENTS)

    def __exit__(self, *_: Any) -> None:
        if self.writer is not None:
            with writing(self.path):
                self.writer.close()


def _marked(
    groups: Iterator[pl.DataFrame], nothing: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, bool]]:
    """Each frame, and whether it is the last; ``nothing`` where there is none."""
    before = nothing
    for rows in groups:
        yield before, False
        before = rows
    yield before, True


def _begin_of_last_user(events: pl.DataFrame) -> int:
    """The row at which the last user's events begin."""
    others = (events["user_id"].ne_missing(events["user_id"][-1])).to_numpy().nonzero()[0]
    return int(others[-1]) + 1 if len(others) else 0
