"""The canonical form of logs: a folder with every event, item and user, and the schema they follow.

=============== ==================================================================================
events.parquet  one row per event, sorted by (user_id, ts), ties in the order of the source
items.parquet   item_id and the schema's other item fields; each item once
users.parquet   user_id and the schema's user fields; each user once
schema.toml     the schema, word for word
=============== ==================================================================================

An event is a behaviour (it enters the user's history and is seen by impressions with a later ts),
an impression (it was shown, and has a split and a label for each task), or both. Columns of events:

=============== ========= ========================================================================
user_id item_id String    never empty; no id ever goes through a float
ts              Int64     any unit, only the order matters
behaviour       Boolean   whether the event enters the history
split           String    train, validation or test; null when the event is not an impression
each task       Int8      0 or 1; null when the event is not an impression
each field      by kind   the schema's behaviour, context and ad fields: String for a category,
                          List[String] for tags, Float64 for a number
probability     Float64   optional: the true probability of the first task, known for synthetic logs
                          only; that of another is in TASK.probability
seen_length     Int64     optional: how many behaviours the impression's score looked at; null where
                          that is not known, and the impression sees those with an earlier ts
seen_newest     Int64     optional: the newest ts among them; null where there are none
=============== ========= ========================================================================
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from model.contract.schema import Field, Schema
from terminal.progress import Update, quiet
from training.scratch import temporary

TABLES = ("events.parquet", "items.parquet", "users.parquet")
SPLITS = ("train", "validation", "test")
SEEN = {"seen_length": pl.Int64(), "seen_newest": pl.Int64()}  # both or neither
LISTED = 20
BadRow = tuple[str, int, str]


@dataclass(frozen=True)
class Malformed:
    """What was dropped: ``bad`` lists the first 20 of ``count`` rows as (file, line, reason).

    Lines are those of the decompressed text, from 1, a CSV's header being line 1; for Parquet they
    are row numbers, from 1. ``total_rows`` counts the rows of all files, empty lines left out.
    """

    total_rows: int = 0
    bad: tuple[BadRow, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Lost:
    """What could not be read and was left out: a file, or one of its row groups, from 0."""

    file: str
    part: str
    error: str


@dataclass(frozen=True)
class Written:
    """What was written: rows of each table, impressions of each split; and what was left out.

    ``labels`` has, for each split and task, the least and the greatest label, and ``alone`` is the
    number of users with one event only.
    """

    events: int
    items: int
    users: int
    splits: dict[str, int]
    labels: dict[str, dict[str, tuple[int, int]]]
    alone: int
    malformed: Malformed
    left_out: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[Lost, ...] = ()

    def __add__(self, other: Written) -> Written:
        """With a chunk of other users, the same items, and what is malformed counted once."""
        labels = {split: dict(of) for split, of in self.labels.items()}
        for split, of in other.labels.items():
            mine = labels.setdefault(split, {})
            for task, (low, high) in of.items():
                least, most = mine.get(task, (low, high))
                mine[task] = min(low, least), max(high, most)
        return replace(
            self,
            events=self.events + other.events,
            users=self.users + other.users,
            splits=dict(Counter(self.splits) + Counter(other.splits)),
            labels=labels,
            alone=self.alone + other.alone,
            left_out=dict(Counter(self.left_out) + Counter(other.left_out)),
        )


class LogsError(ValueError):
    """Logs that can't be used: the file, the column (or part of the file) and what was expected."""

    def __init__(
        self, file: str, column: str, expected: str, malformed: Malformed | None = None
    ) -> None:
        super().__init__(f"{file}: {column}: expected {expected}")
        self.file, self.column, self.expected = file, column, expected
        self.malformed = malformed or Malformed()


def column_type(field: Field) -> pl.DataType:
    """The type a field has in the canonical form."""
    if field.kind == "number":
        return pl.Float64()
    return pl.List(pl.String()) if field.kind == "tags" else pl.String()


def event_columns(schema: Schema) -> dict[str, pl.DataType]:
    """Names and types of the events' columns, those that are optional left out."""
    fixed = {"user_id": pl.String(), "item_id": pl.String(), "ts": pl.Int64()}
    fields = (*schema.behaviour, *schema.context, *schema.ad)
    return {
        **fixed,
        "behaviour": pl.Boolean(),
        "split": pl.String(),
        **{task: pl.Int8() for task in schema.tasks},
        **{field.name: column_type(field) for field in fields},
    }


def optional_columns(schema: Schema) -> dict[str, pl.DataType]:
    """Names and types of the events' columns that need not be there."""
    names = ["probability", *(f"{task}.probability" for task in schema.tasks[1:])]
    return {**dict.fromkeys(names, pl.Float64()), **SEEN}


def item_columns(schema: Schema) -> dict[str, pl.DataType]:
    return {field.name: column_type(field) for field in schema.item}


def user_columns(schema: Schema) -> dict[str, pl.DataType]:
    return {"user_id": pl.String(), **{field.name: column_type(field) for field in schema.user}}


@dataclass(frozen=True, eq=False)
class Logs:
    """Events, items and users in the canonical form, with the schema and its text.

    ``malformed`` says what the reader dropped, and ``left_out`` how much of what was sound its
    protocol has no use for; neither is written.
    """

    schema: Schema
    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    schema_text: str
    malformed: Malformed = Malformed()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        schema_path: Path,
        events: pl.DataFrame,
        items: pl.DataFrame,
        users: pl.DataFrame,
        malformed: Malformed | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> Logs:
        """Sort the events, put the columns in order and check them.

        Raises `LogsError` and `SchemaError`.
        """
        schema = Schema.load(schema_path)
        optional = [name for name in optional_columns(schema) if name in events.columns]
        names = [*event_columns(schema), *optional]
        logs = cls(
            schema,
            events.select(names).sort("user_id", "ts", maintain_order=True),
            items.select(list(item_columns(schema))),
            users.select(list(user_columns(schema))),
            schema_path.read_bytes().decode(),
            malformed or Malformed(),
            {why: count for why, count in (left_out or {}).items() if count},
        )
        logs.check()
        return logs

    @classmethod
    def read(cls, folder: str | Path) -> Logs:
        """Read what `write` wrote; columns the schema doesn't name are left unread.

        Raises `LogsError` that names the file, the column and what was expected, and `SchemaError`.
        """
        folder = Path(folder)
        path = folder / "schema.toml"
        schema = Schema.load(path)
        events = read_table(
            folder / "events.parquet", event_columns(schema), optional_columns(schema)
        )
        items = read_table(folder / "items.parquet", item_columns(schema))
        users = read_table(folder / "users.parquet", user_columns(schema))
        logs = cls(schema, events, items, users, path.read_bytes().decode())
        logs.check(folder)
        return logs

    def write(self, folder: str | Path, update: Update = quiet) -> Written:
        """Write the four files whole or not at all, see `whole`."""
        with whole(folder, self.schema_text) as fresh:
            done, total = 0, sum(frame.height for frame in self._tables().values())
            update("write rows", done, total, {})
            for table, frame in self._tables().items():
                write_table(frame, fresh / table)
                done += frame.height
                update("write rows", done, total, {})
        return self.written()

    def __len__(self) -> int:
        """How many events there are."""
        return self.events.height

    def chunks(self, columns: Collection[str] | None = None) -> Iterator[Logs]:
        """All events in one piece: what is in memory already (see `training.chunks`)."""
        yield self

    def written(self) -> Written:
        """What `write` writes."""
        tasks = self.schema.tasks
        ends = [end for task in tasks for end in (pl.min(task), pl.max(task).alias(f"max {task}"))]
        shown = self.events.lazy().filter(pl.col("split").is_not_null()).group_by("split")
        splits, labels = {}, {}
        for split, rows, *found in shown.agg(pl.len(), *ends).collect().iter_rows():
            splits[split] = rows
            pairs = zip(found[::2], found[1::2], strict=True)
            labels[split] = dict(zip(tasks, pairs, strict=True))
        each = self.events.lazy().group_by("user_id").len()
        alone = each.select((pl.col("len") == 1).sum()).collect().item()
        events, items, users = (frame.height for frame in self._tables().values())
        return Written(events, items, users, splits, labels, alone, self.malformed, self.left_out)

    def check(self, folder: Path | None = None) -> None:
        """Hold the tables to the canonical form; ``folder`` only names them. Raises `LogsError`."""
        wanted = (event_columns(self.schema), item_columns(self.schema), user_columns(self.schema))
        for (file, frame), columns in zip(self._tables().items(), wanted, strict=True):
            where = str(folder / file) if folder else file
            if file == "events.parquet":
                optional = optional_columns(self.schema).items()
                extra = {name: kind for name, kind in optional if name in frame.columns}
                check_types(where, frame, {**columns, **extra})
                check_events(where, frame, self.schema)
            else:
                check_types(where, frame, columns)
                key = "item_id" if file == "items.parquet" else "user_id"
                _hold(where, frame)(key, ~_is_id(key), "ids that are not empty")
                _hold(where, frame)(key, pl.col(key).is_duplicated(), "each id once")

    def _tables(self) -> dict[str, pl.DataFrame]:
        return dict(zip(TABLES, (self.events, self.items, self.users), strict=True))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder for new files, which take the places of those in ``folder`` at the end.

    New files are complete before any old one is touched. schema.toml is taken away first and
    put back last, so a folder that has it is complete whatever happened in between.
    """
    with temporary(folder, ".logs-") as fresh:
        yield fresh
        for file in fresh.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        (folder / "schema.toml").unlink(missing_ok=True)
        for table in (*TABLES, "schema.toml"):
            os.replace(fresh / table, folder / table)


@contextmanager
def whole(folder: str | Path, schema_text: str) -> Iterator[Path]:
    """As `replacing`, with the schema."""
    with replacing(Path(folder)) as fresh:
        yield fresh
        (fresh / "schema.toml").write_bytes(schema_text.encode())


def read_table(
    path: Path, columns: dict[str, pl.DataType], extra: Mapping[str, pl.DataType] | None = None
) -> pl.DataFrame:
    """A Parquet file's columns, and those ``extra`` ones that it has. Raises `LogsError`."""
    names = read_names(path, columns, extra)
    try:
        return pl.read_parquet(path, columns=names).select(names)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogsError(str(path), "file", f"a readable Parquet file ({error})") from None


def write_table(frame: pl.DataFrame, path: Path, row_group_size: int | None = None) -> None:
    """Write a Parquet file. Raises `LogsError`."""
    with writing(path):
        frame.write_parquet(path, row_group_size=row_group_size)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises `LogsError` where a file can't be written, as on a full disk."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogsError(str(path), "file", f"a file that can be written ({error})") from None


def read_names(
    path: Path, columns: dict[str, pl.DataType], extra: Mapping[str, pl.DataType] | None = None
) -> list[str]:
    """The names of a Parquet file's columns that `read_table` reads. Raises `LogsError`."""
    try:
        found = pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogsError(str(path), "file", f"a readable Parquet file ({error})") from None
    columns = columns | {name: kind for name, kind in (extra or {}).items() if name in found}
    check_types(str(path), pl.DataFrame(schema=found), columns)
    return list(columns)


def check_types(file: str, frame: pl.DataFrame, columns: dict[str, pl.DataType]) -> None:
    """Hold a table to the names and types of its columns. Raises `LogsError`."""
    for name, kind in columns.items():
        if name not in frame.columns:
            raise LogsError(file, name, f"a column of type {kind}, found none")
        if frame.schema[name] != kind:
            raise LogsError(file, name, f"type {kind}, found {frame.schema[name]}")
        if kind == pl.Float64 and not frame.select(pl.col(name).is_finite().all()).item():
            raise LogsError(file, name, "finite numbers")


def _is_id(name: str) -> pl.Expr:
    return (pl.col(name) != "").fill_null(False)


def _hold(file: str, frame: pl.DataFrame) -> Callable[[str, pl.Expr, str], None]:
    def hold(column: str, broken: pl.Expr, expected: str) -> None:
        if frame.select(broken.any()).item():
            raise LogsError(file, column, expected)

    return hold


def check_events(file: str, frame: pl.DataFrame, schema: Schema) -> None:
    """Hold events to the canonical form. Raises `LogsError`."""
    hold = _hold(file, frame)
    for name in ("user_id", "item_id"):
        hold(name, ~_is_id(name), "ids that are not empty")
    for name in ("ts", "behaviour"):
        hold(name, pl.col(name).is_null(), "no nulls")
    hold("split", ~pl.col("split").is_in(SPLITS), "train, validation, test or null")
    for task in schema.tasks:
        hold(task, ~pl.col(task).is_in([0, 1]), "0, 1 or null")
        without = pl.col(task).is_null() != pl.col("split").is_null()
        hold(task, without, "a label where there is a split, and null elsewhere")
    for name, kind in optional_columns(schema).items():
        if name in frame.columns and kind == pl.Float64:
            hold(name, ~pl.col(name).is_between(0, 1), "numbers from 0 to 1")
    if SEEN.keys() & set(frame.columns):
        check_types(file, frame, dict(SEEN))
        length, newest = pl.col("seen_length"), pl.col("seen_newest")
        hold("seen_length", length < 0, "numbers from 0")
        hold("seen_length", length.is_not_null() & pl.col("split").is_null(), "impressions only")
        some = (length > 0).fill_null(False)
        hold("seen_newest", newest.is_not_null() != some, "a time where something was seen")
    user, ts = pl.col("user_id"), pl.col("ts")
    falls = (user < user.shift()) | ((user == user.shift()) & (ts < ts.shift()))
    hold("ts", falls, "rows sorted by user_id, then ts")
    neither = ~pl.col("behaviour") & pl.col("split").is_null()
    hold("behaviour", neither, "each event to be a behaviour, an impression or both")
