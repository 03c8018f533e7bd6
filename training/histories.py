"""Histories as the store held them at any place of the log, rebuilt from what was collected.

The store keeps a history sorted by ts; at one ts what came later stands later, and one of the same
item and action is not put in again. It drops the oldest of a long history; a model never looks at
those, so here they stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl

from model.contract.encode import stored
from model.contract.history import HistoryCodec, Records, recent
from model.contract.log import Snapshot
from model.contract.schema import Schema
from training.collected import Collected
from training.past import Before, arrival, behaviours, once, place_of

CLOCKS_MS = 5_000
"""The clocks of the service and of Redis differ by no more."""
_BEFORE = -1


@dataclass(frozen=True)
class Found:
    """The records that a score looked at, or what comes nearest; ``differs`` says in what: length,
    where the store held fewer than the log has, or records."""

    records: Records
    differs: str | None = None


@dataclass(frozen=True, eq=False)
class Histories:
    """All behaviours of some users: ``records`` [n] user by user, sorted as in the store, and
    ``came`` [n], their place in the log. ``spans`` has the begin and end of each user."""

    codec: HistoryCodec
    length: int
    spans: Mapping[str, tuple[int, int]]
    records: Records
    came: npt.NDArray[np.int64]

    @classmethod
    def read(
        cls, collected: Collected, schema: Schema, users: pl.DataFrame, last: date | None = None
    ) -> Histories:
        """Of ``users`` (user_id), from before the loop and up to a day. Raises `LogsError`."""
        names = ["user_id", "item_id", "ts", *(field.name for field in schema.behaviour)]
        before = Before.read(collected, schema).events.filter("behaviour").select(names)
        before = before.join(users, on="user_id", how="semi", maintain_order="left")
        since = once(before, behaviours(collected, schema, last, users), schema)
        since = since.select(*names, arrival().alias("#came"))
        before = before.with_columns(pl.lit(_BEFORE, pl.Int64).alias("#came"))
        rows = pl.concat([before, since])
        rows = rows.sort("user_id", "ts", maintain_order=True)
        codec = HistoryCodec.of(schema)
        columns = {"ts": rows["ts"].to_numpy()}
        for field in (schema.item[0], *schema.behaviour):
            columns[field.name] = stored(field, rows[field.name].to_list())
        counts = rows.group_by("user_id", maintain_order=True).len()
        ends = np.cumsum(counts["len"].to_numpy()).tolist()
        spans = dict(zip(counts["user_id"], zip([0, *ends][:-1], ends, strict=True), strict=True))
        return cls(
            codec, schema.history_length, spans, codec.pack(columns), rows["#came"].to_numpy()
        )

    def at(self, user: str, place: int, received: int, looked_at: Snapshot) -> Found:
        """What a score logged at ``place`` (`arrival`) looked at; ``received`` in ms since 1970.

        It is logged some time after the history was read: what came meanwhile may be missing.
        """
        begin, end = self.spans.get(user, (0, 0))
        records, came = self.records[begin:end], self.came[begin:end]
        known = came < place
        meanwhile = np.unique(came[known & (came >= place_of(received - CLOCKS_MS))])
        now, shorter = recent(records[known], self.length), None
        for until in [place, *meanwhile[::-1].tolist()]:
            state = recent(records[came < until], self.length)
            same = recent(state, looked_at.length)
            if looked_at == Snapshot.of(same):
                if len(state) == len(same):
                    return Found(same)
                shorter = same
        return Found(now, "records") if shorter is None else Found(shorter, "length")
