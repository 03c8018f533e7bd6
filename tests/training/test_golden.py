"""Golden requests: every kind of value is in them, and nothing of anybody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.contract.bundle import encode_golden
from model.contract.encode import Encoder
from training.golden import CANDIDATES, SHARED_BY, golden_requests
from training.logs import Logs


@pytest.fixture(scope="module")
def requests(shop_logs: Logs) -> list[dict[str, Any]]:
    return golden_requests(shop_logs)


def test_the_cases_that_break_things_are_there(
    requests: list[dict[str, Any]], shop_logs: Logs, shop_encoder: Encoder
) -> None:
    """The longest history, a shorter one, none; one candidate; every field has values, and some
    that are known; the same logs give the same requests."""
    schema = shop_logs.schema
    assert [len(each.get("history", [])) for each in requests] == [4, 2, 0, 0, 4]
    assert [len(each["candidates"]) for each in requests] == [CANDIDATES, 1, CANDIDATES, 3, 1]
    batch = encode_golden(shop_encoder, requests)
    assert batch.users == 5
    for name in ("user", "item", "history", "ad", "context"):
        rows = getattr(batch, name)
        known = rows.reshape(-1, rows.shape[-1]).max(axis=0) > 1
        assert known.any(), name
    held = requests[0]["history"][0].keys() | requests[0]["user"].keys()
    held |= requests[0]["context"].keys() | requests[0]["given"][0].keys()
    fields = (*schema.user, *schema.behaviour, *schema.ad, *schema.context)
    assert held == {"item_id", "ts", *(field.name for field in fields)}
    assert golden_requests(shop_logs) == requests


@pytest.mark.parametrize("gap", [0, 1800, None])
def test_pauses_end_a_session_or_do_not(shop_logs: Logs, gap: int | None) -> None:
    """About as often; without sessions any pause is one of up to a day or so."""
    schema = replace(shop_logs.schema, session_gap=gap, history_length=100)
    history = golden_requests(replace(shop_logs, schema=schema))[0]["history"]
    pauses = np.diff([each["ts"] for each in history])
    assert 25 < (pauses > (50_000 if gap is None else gap)).sum() < 75
    assert pauses.min() >= 0


def test_nothing_in_them_is_of_one_user(shop_logs: Logs) -> None:
    """Neither a history, nor a time, nor a value that few users have: whoever is erased, they
    stay as they are."""
    few = pl.col("user_id").rank("dense") < SHARED_BY
    own = pl.when(few).then(pl.lit("secret")).otherwise(pl.lit("common"))
    users = shop_logs.users.with_columns(own.alias("gender"), age=pl.lit(12345.678))
    events = shop_logs.events.with_columns(
        pl.when(few).then(pl.lit("secret hour")).otherwise("hour").alias("hour"),
        pl.lit(12345.678).alias("bid"),
    )
    found = golden_requests(replace(shop_logs, users=users, events=events))
    assert "common" in str(found)
    assert "secret" not in str(found)
    assert "12345.678" not in str(found)
    reversed_ts = events.with_columns(pl.col("ts").reverse() + 7, pl.col("item_id").reverse())
    assert golden_requests(replace(shop_logs, users=users, events=reversed_ts)) == found
