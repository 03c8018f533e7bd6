"""Loading: prepared logs into the behaviour store. Its one reader of Parquet (extra: load).

Per user the most recent `KEPT` x history_length behaviours are stored: enough for a later model
that looks further back, and bounded for the most active users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
from redis import Redis
from redis.exceptions import RedisError

from model.contract.history import KEPT, HistoryCodec, Records
from model.contract.ids import MISSING, Keys, keys
from model.contract.schema import Field, Schema
from model.contract.store import (
    LAYOUTS_SECONDS,
    erased_key,
    history_key,
    layouts_key,
    partition,
    profile_key,
)
from service import scripts
from store.blocking import Clients
from store.url import StoreUrl

if TYPE_CHECKING:
    import polars as pl

Entry = tuple[str, str, bytes]
"""A user, a key and what to store there."""
TIME_TO_LIVE = 90 * 24 * 3600
_TOGETHER = 1000
_SECONDS = 30.0  # that Redis may take for so many


class LoadError(RuntimeError):
    """Logs that can't be loaded: the file, the column and what was expected."""


@dataclass(frozen=True)
class Histories:
    """All behaviours as ``records`` in the order of their users; user i's are
    records[ends[i-1]:ends[i]]. ``profiles`` maps a user to the raw user fields."""

    users: Sequence[str]
    ends: npt.NDArray[np.int64]
    records: Records
    profiles: dict[str, dict[str, Any]]

    def __len__(self) -> int:
        return len(self.users) + len(self.profiles)

    def entries(self, schema: Schema, prefix: str) -> Iterator[Entry]:
        """What to store."""
        begin = 0
        for user, end in zip(self.users, self.ends.tolist(), strict=True):
            kept = max(begin, end - KEPT * schema.history_length)
            key = history_key(prefix, user, schema.layout)
            yield user, key, self.records[kept:end].tobytes()
            begin = end
        for user, profile in self.profiles.items():
            yield user, profile_key(prefix, user), orjson.dumps(profile)


def read(
    folder: Path, schema: Schema, progress: Callable[[int, int], object] = lambda done, total: None
) -> Histories:
    """Histories and profiles of prepared logs (events.parquet, users.parquet).

    A field of the schema that the logs lack is missing. ``progress`` is told how many columns are
    packed, of how many. Raises `LoadError`.
    """
    try:
        import polars as pl
    except ImportError:
        raise LoadError("polars is needed to read Parquet: pip install 'dinserve[load]'") from None
    fixed, fields = ["user_id", "item_id", "ts"], [field.name for field in schema.behaviour]
    columns = len(fixed) + len(fields)
    progress(0, columns)
    events = _columns(folder / "events.parquet", [*fixed, "behaviour"], fields)
    try:
        events = events.filter(pl.col("behaviour")).select(fixed + fields)
        events = events.with_columns(pl.col("user_id").cast(pl.String), pl.col("ts").cast(pl.Int64))
        events = events.sort("user_id", "ts", maintain_order=True)
        packed = {"ts": events["ts"].to_numpy(), "item_id": _keys(events["item_id"])}
        for field in schema.behaviour:
            progress(1 + len(packed), columns)
            packed[field.name] = _stored(field, events[field.name])
        counts = events.group_by("user_id", maintain_order=True).len()
    except pl.exceptions.PolarsError as error:
        raise LoadError(f"events.parquet: {str(error).splitlines()[0]}") from None
    progress(columns, columns)
    return Histories(
        users=counts["user_id"].to_list(),
        ends=np.cumsum(counts["len"].to_numpy(), dtype=np.int64),
        records=HistoryCodec.of(schema).pack(packed),
        profiles=_profiles(folder / "users.parquet", schema) if schema.user else {},
    )


def write(
    histories: Histories,
    schema: Schema,
    url: str,
    *,
    prefix: str,
    seconds: int = TIME_TO_LIVE,
    replace: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Store everything with a time to live; how many keys. Raises `LoadError`.

    Of users who were erased nothing is stored, and what a user has already, from events and in
    whatever layout, stays, unless ``replace``: then it goes. ``progress`` is told how many keys are
    done, time and again.
    """
    codec, entries = HistoryCodec.of(schema), histories.entries(schema, prefix)
    told = [codec.layout, codec.described, 1000 * max(LAYOUTS_SECONDS, seconds)]
    how = [1000 * seconds, int(replace)]
    written, done = 0, 0
    try:
        with Clients(StoreUrl.parse(url), _SECONDS) as clients:
            while some := list(islice(entries, _TOGETHER)):
                by_key = {key: (user, key, value) for user, key, value in some}
                for client, keys in clients.by_node(by_key):
                    written += _store(client, [by_key[key] for key in keys], prefix, told, how)
                done += len(some)
                progress(done)
    except (RedisError, OSError, ValueError) as error:
        raise LoadError(f"Redis: {error}") from None
    return written


def _store(
    client: Redis, entries: Sequence[Entry], prefix: str, told: Sequence[Any], how: Sequence[Any]
) -> int:
    """Store what one node holds; how many keys. ``told`` and ``how`` are what TELL and LOAD are
    given beside it. A history stands for those of its user in all layouts."""
    tell, load = map(client.register_script, (scripts.TELL, scripts.LOAD))
    pipeline = client.pipeline(transaction=False)
    places = {layouts_key(prefix, partition(user)) for user, _, _ in entries}
    for place in places:
        tell([place], told, pipeline)
    known = dict(zip(places, pipeline.execute(), strict=True))
    for user, key, value in entries:
        layouts = known[layouts_key(prefix, partition(user))]
        histories = {history_key(prefix, user, str(each, errors="replace")) for each in layouts}
        others = histories - {key} if key in histories else set()
        load([erased_key(prefix, user), key, *others], [value, *how], pipeline)
    return sum(pipeline.execute())


def _columns(file: Path, names: Sequence[str], fields: Sequence[str]) -> pl.DataFrame:
    """Columns that have to be there, and fields, null where they are not: logs of an older schema
    lack them."""
    import polars as pl

    try:
        found = pl.read_parquet_schema(file)
        for name in names:
            if name not in found:
                raise LoadError(f"{file}: {name}: this column is expected")
        there = [name for name in fields if name in found]
        null = [pl.lit(None).alias(name) for name in fields if name not in found]
        return pl.read_parquet(file, columns=[*names, *there]).with_columns(null)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LoadError(f"{file}: {str(error).splitlines()[0]}") from None


def _keys(column: pl.Series) -> Keys:
    """Stable keys of a column of ids; each distinct id is hashed once. Null is missing."""
    import polars as pl

    if column.dtype.is_float() or column.dtype.is_nested():
        raise LoadError(f"events.parquet: {column.name}: ids are strings or integers")
    texts = column.cast(pl.String)
    distinct = texts.drop_nulls().unique()
    if not len(distinct):
        return np.full(len(texts), MISSING, np.uint64)
    table = pl.Series(keys(distinct.to_list()))
    found = texts.replace_strict(distinct, table, default=MISSING, return_dtype=pl.UInt64)
    return found.fill_null(MISSING).to_numpy()


def _stored(field: Field, column: pl.Series) -> npt.NDArray[Any]:
    import polars as pl

    if field.kind != "number":
        return _keys(column)
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _profiles(file: Path, schema: Schema) -> dict[str, dict[str, Any]]:
    import polars as pl

    fields = [field.name for field in schema.user]
    users = _columns(file, ["user_id"], fields).with_columns(pl.col("user_id").cast(pl.String))
    return {
        row["user_id"]: {name: row[name] for name in fields if row[name] is not None}
        for row in users.iter_rows(named=True)
    }
