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

USERS = 1024  # of a call
MOST = 1_000_000
"""Rows of a table that are met. Of a larger one as many, evenly spread."""


def sweep(engine: Engine, encoder: Encoder) -> None:
    """Raises `EngineError` where a score is not finite."""
    for batch in of_every_row(encoder):
        engine.run(batch)


def of_every_row(encoder: Encoder) -> Iterator[Batch]:
    """Batches in which each row of each table is in all columns that may hold it: as a candidate,
    a behaviour, a user ... A user has one behaviour, and one candidate that is another item."""
    schema = encoder.schema
    sizes = [encoder.tables[field.table].size for field in schema.tables.values()]
    most = min(max(sizes), MOST)
    users = min(most, USERS)
    calls, each = -(-most // users), np.arange(users)
    for call in range(calls):

        def rows(group: Group, begin: int = call * users) -> Ints:
            """(users, width) rows, every table's from the first to the last."""
            at = begin + each[:, None]
            columns = [np.zeros((users, 0), np.int64)]
            for field in schema.group(group):
                size = encoder.tables[field.table].size
                step = max(size // MOST, 1)
                columns.append(np.repeat(at * step % size, field.width, 1))
            return np.concatenate(columns, 1)

        after = call * users + 1
        behaviours = np.concatenate([rows("item", after), rows("behaviour", after)], 1)
        yield Batch(
            history=behaviours[:, None],
            ts=np.zeros((users, 1), np.int64),
            user=rows("user"),
            item=rows("item"),
            ad=rows("ad"),
            context=rows("context"),
            owner=each,
            start=np.zeros(users, np.int64),
            stop=np.ones(users, np.int64),
        )
