"""The sweep: each row of each embedding table is met once before a version is served.

Golden and recorded requests meet few ids. A row that holds a NaN would be found by the first user
who has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model.contract.batch import Batch, Ints
from model.contract.encode import Encoder
from model.contract.schema import Group
from service.engine import Engine

USERS = 256
BEHAVIOURS = 16  # of a user, so that a call has some 4,000 pairs
MOST = 1_000_000
"""Rows of a table that are met. Of a larger one as many, evenly spread."""


def sweep(engine: Engine, encoder: Encoder) -> None:
    """Raises `EngineError` where a score is not finite."""
    for batch in of_every_row(encoder):
        engine.run(batch)


def of_every_row(encoder: Encoder) -> Iterator[Batch]:
    """Batches in which each row of each table is in all columns that may hold it: as a candidate,
    a behaviour, a user ... A user has one candidate."""
    schema = encoder.schema
    length = min(schema.history_length, BEHAVIOURS)
    sizes = [encoder.tables[field.table].size for field in schema.tables.values()]
    most = min(max(sizes), MOST)
    users = min(most, USERS)
    calls, each = -(-most // users), np.arange(users)
    for call in range(calls):

        def rows(group: Group, count: int = 1, call: int = call) -> Ints:
            """(users * count, width) rows, every table's from the first to the last."""
            at = (call * users + each[:, None]) * count + np.arange(count)
            columns = [np.zeros((at.size, 0), np.int64)]
            for field in schema.group(group):
                size = encoder.tables[field.table].size
                step = max(size // MOST, 1)
                columns.append(np.repeat(at.reshape(-1, 1) * step % size, field.width, 1))
            return np.concatenate(columns, 1)

        behaviours = np.concatenate([rows("item", length), rows("behaviour", length)], 1)
        yield Batch(
            history=behaviours.reshape(users, length, -1),
            ts=np.tile(np.arange(length), (users, 1)) * (1 + (schema.session_gap or 0)),
            user=rows("user"),
            item=rows("item"),
            ad=rows("ad"),
            context=rows("context"),
            owner=each,
            start=np.zeros(users, np.int64),
            stop=np.full(users, length),
        )
