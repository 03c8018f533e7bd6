"""Golden requests: raw requests that a version must encode and score just as it did when made.

Their users are made up, since a version outlives those who are erased: items of the catalogue in an
order that nobody clicked them in, and values that many users share. The cases that break things are
there: no history, the longest one, one candidate, unknown items, missing and unknown fields,
duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from model.contract.schema import Field
from training.chunks import AnyLogs
from training.merged import Merged

CANDIDATES = 7
SHARED_BY = 5  # users at least; a value that fewer have may tell who they are
COMMONEST = 20  # values of a field are drawn from so many
STEP = 100_000  # at most, between two behaviours, where there are no sessions
Values = Mapping[str, Sequence[str]]


def golden_requests(logs: AnyLogs, seed: int = 0) -> list[dict[str, Any]]:
    """Raw requests in the form of `model.contract.bundle.Golden`."""
    schema, draw = logs.schema, np.random.default_rng(seed)
    common = _common([logs.users], schema.user)
    fields = (*schema.behaviour, *schema.context, *schema.ad)
    if fields:
        columns = [field.name for field in fields]
        common |= _common((chunk.events for chunk in logs.chunks(columns)), fields)
    item_ids = logs.items["item_id"].sort()
    requests: list[dict[str, Any]] = []
    longest, gap = schema.history_length, schema.session_gap
    step = STEP if gap is None else 2 * gap + 2  # some pauses end a session, and some do not
    for count, length in ((CANDIDATES, longest), (1, longest // 2), (CANDIDATES, 0)):
        picked, seen = (
            [item_ids[int(at)] for at in draw.integers(0, len(item_ids), each)]
            for each in (count, length)
        )
        times = draw.integers(0, step, length).cumsum().tolist()
        requests.append(
            {
                "candidates": picked,
                "history": [
                    {"item_id": item, "ts": ts, **_drawn(schema.behaviour, common, draw)}
                    for item, ts in zip(seen, times, strict=True)
                ],
                "user": _drawn(schema.user, common, draw),
                "context": _drawn(schema.context, common, draw),
                "given": [_drawn(schema.ad, common, draw) for _ in picked],
            }
        )
    first = item_ids[0]
    requests.append({"candidates": [first, first, "an item nobody knows"]})
    overridden: dict[str, Any] = {}
    for field in schema.item[1:]:
        overridden[field.name] = {"tags": ["a new tag"], "number": 0.0}.get(field.kind, "a new id")
    requests.append({**requests[0], "candidates": [first], "given": [overridden], "user": {}})
    return requests


def _common(frames: Iterable[pl.DataFrame], fields: Sequence[Field]) -> dict[str, list[str]]:
    """Ids of each field that many users share, the commonest first; numbers are not looked at.

    No user is in two of the frames.
    """
    users = {each.name: Merged(pl.col("users").sum()) for each in fields if each.kind != "number"}
    for frame in frames:
        for name, found in users.items():
            held = frame.select("user_id", pl.col(name).alias("id"))
            if held.schema["id"] == pl.List(pl.String):
                held = held.explode("id", empty_as_null=True)
            by_id = held.drop_nulls("id").group_by("id")
            found.add(by_id.agg(pl.col("user_id").n_unique().alias("users")))
    common: dict[str, list[str]] = {field.name: [] for field in fields}
    for name, found in users.items():
        shared = found.total().filter(pl.col("users") >= SHARED_BY)
        shared = shared.sort("users", "id", descending=[True, False])
        common[name] = shared["id"].head(COMMONEST).to_list()
    return common


def _drawn(fields: Sequence[Field], common: Values, draw: np.random.Generator) -> dict[str, Any]:
    """A value for each field; there is none where no id is shared by many."""
    found: dict[str, Any] = {}
    for field in fields:
        ids = common[field.name]
        if field.kind == "number":
            low, high = field.boundaries[0], field.boundaries[-1]
            found[field.name] = round(float(draw.uniform(low - 1, high + 1)), 3)
        elif field.kind == "tags":
            count = int(draw.integers(0, min(len(ids), field.max_values) + 1))
            found[field.name] = [ids[int(at)] for at in draw.permutation(len(ids))[:count]]
        elif ids:
            found[field.name] = ids[int(draw.integers(len(ids)))]
    return found
