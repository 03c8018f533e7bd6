"""Golden requests: raw requests that a version must encode and score just as it did when made.

Taken from the logs' own users and items, with the cases that break things added: no history, the
longest one, one candidate, unknown items, missing and unknown fields, duplicates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from training.logs import Logs

USERS = 3
CANDIDATES = 7


def golden_requests(logs: Logs, seed: int = 0) -> list[dict[str, Any]]:
    """Raw requests in the form of `model.contract.bundle.Golden`."""
    schema, generator = logs.schema, np.random.default_rng(seed)
    behaviours = logs.events.filter(pl.col("behaviour"))
    counts = logs.events.group_by("user_id").agg(pl.col("behaviour").sum())
    counts = counts.sort("behaviour", "user_id", descending=True)
    picked = [counts["user_id"][int(at)] for at in np.linspace(0, len(counts) - 1, USERS)]
    item_ids = logs.items["item_id"].sort()
    names = ["item_id", "ts", *(field.name for field in schema.behaviour)]
    requests: list[dict[str, Any]] = []
    for number, user in enumerate(picked):
        history = behaviours.filter(pl.col("user_id") == user).tail(schema.history_length)
        shown = logs.events.filter(pl.col("user_id") == user, pl.col("split").is_not_null())
        profile = logs.users.filter(pl.col("user_id") == user)
        at = generator.integers(0, len(item_ids), CANDIDATES)
        request: dict[str, Any] = {
            "candidates": [item_ids[int(i)] for i in at][: 1 if number == 1 else None],
            "history": history.select(names).to_dicts(),
            "user": _values(profile, [field.name for field in schema.user]),
            "context": _values(shown, [field.name for field in schema.context]),
        }
        ads = _values(shown, [field.name for field in schema.ad])
        request["given"] = [ads for _ in request["candidates"]]
        requests.append(request)
    first = item_ids[0]
    requests.append({"candidates": [first, first, "an item nobody knows"]})
    overridden: dict[str, Any] = {}
    for field in schema.item[1:]:
        overridden[field.name] = {"tags": ["a new tag"], "number": 0.0}.get(field.kind, "a new id")
    requests.append({**requests[0], "candidates": [first], "given": [overridden], "user": {}})
    return requests


def _values(frame: pl.DataFrame, names: list[str]) -> dict[str, Any]:
    """The first row's values that are there."""
    if not len(frame) or not names:
        return {}
    row = frame.select(names).row(0, named=True)
    return {name: value for name, value in row.items() if value is not None}
