"""Impressions with what their scores were made from: features, and the history looked at.

Columns that no field may be named like start with "#".
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from model.contract.schema import SHOWN, Field, Schema
from training.fields import read_fields

KEY = ["user_id", "request_id", "item_id"]
NEAREST = [pl.col("#said") > pl.col("received"), (pl.col("received") - pl.col("#said")).abs()]
"""The order of answers under one request id: the last one from before the impression was received
comes first. Both times are by the clock of the service."""
SLICE = 50_000  # scores whose candidates are laid out at once


def impressions(
    events: pl.DataFrame, scores: pl.DataFrame, schema: Schema, young: int
) -> pl.DataFrame:
    """The impressions among some events, oldest first: `KEY`, ts, the fields of item, ad and
    context, seen_length and seen_newest (null where the caller gave the history), and

    Of several answers under one request id that have the item it is the last one before.

    - #why: the reason why one can't be used, else null; those with a ts from ``young`` are too new
    - #user, #entry: the profile that its score used, and the place of the score in its stream
    - #raw: the history that the caller gave, else null
    """
    shown = events.filter(pl.col("action") == SHOWN).sort("ts", maintain_order=True)
    shown = shown.select(*KEY, "ts", "received", pl.col("fields").alias("#fields"))
    shown = shown.with_row_index("#shown")
    stored = pl.col("raw").is_null()
    names = ("entry", "candidates", "columns", "user", "context", "degraded", "raw")
    held = scores.select(
        *KEY[:2],
        pl.col("received").alias("#said"),
        pl.when(stored).then("length").alias("seen_length"),
        pl.when(stored & (pl.col("length") > 0)).then("newest").alias("seen_newest"),
        *(pl.col(name).alias(f"#{name}") for name in names),
    )
    held = held.join(shown, on=KEY[:2], how="semi", maintain_order="left").with_row_index("#score")
    sent = (*schema.item[1:], *schema.ad)
    answers = shown.select("#shown", *KEY, "received").join(
        held.select(*KEY[:2], "#score", "#said"), on=KEY[:2]
    )
    candidates = _candidates(held, answers.select("#score", "item_id"), sent)
    answers = answers.join(candidates, on=["#score", "item_id"], how="left")
    answers = answers.sort("#shown", pl.col("#place").is_null(), *NEAREST)
    answers = answers.unique("#shown", keep="first").drop(*KEY, "received", "#said")
    shown = shown.join(answers, on="#shown", how="left", maintain_order="left")
    of_score = held.drop(*KEY[:2], "#candidates", "#columns", "#said")
    shown = shown.join(of_score, on="#score", how="left", maintain_order="left")
    shown = shown.drop("#shown", "received").with_columns(_why(young))
    context = read_fields(shown["#context"], schema.context)
    shown = pl.concat([shown.drop("#context", "#place", "#degraded"), context], how="horizontal")
    own = read_fields(shown["#fields"], (*sent, *schema.context))  # as it was really shown
    shown = pl.concat([shown, own.rename(lambda name: f"##{name}")], how="horizontal")
    shown = shown.with_columns(pl.coalesce(f"##{name}", name).alias(name) for name in own.columns)
    return shown.drop("#fields", "#score", *(f"##{name}" for name in own.columns))


def _why(young: int) -> pl.Expr:
    known = pl.col("request_id").is_not_null()
    reasons = {
        "no request id": ~known,
        "shown before under this request id": known & ~pl.struct(KEY).is_first_distinct(),
        "no score record": pl.col("#score").is_null(),
        "scored without the store": pl.col("#degraded").is_not_null(),
        "not a candidate of its request": pl.col("#place").is_null(),
        "too new": pl.col("ts") >= young,
    }
    found = [pl.when(broken).then(pl.lit(why)) for why, broken in reasons.items()]
    return pl.coalesce(found).alias("#why")


def _candidates(held: pl.DataFrame, wanted: pl.DataFrame, fields: Sequence[Field]) -> pl.DataFrame:
    """``#place`` of items among the candidates of their scores, and the fields sent with them.

    ``wanted``: #score, item_id. An item that is there more than once counts where it is first.
    """
    parts: list[pl.DataFrame] = []
    for part in held.iter_slices(SLICE) if len(held) else [held]:
        flat = part.select(
            "#score",
            pl.col("#candidates").alias("item_id"),
            pl.int_ranges(pl.col("#candidates").list.len()).alias("#place"),
        ).explode("item_id", "#place", empty_as_null=False, keep_nulls=False)
        found = wanted.unique().join(flat, on=["#score", "item_id"])
        found = found.group_by("#score", "item_id").agg(pl.col("#place").min())
        columns = read_fields(part["#columns"], fields, listed=True)
        row = found["#score"].cast(pl.Int64) - (len(parts) * SLICE)
        parts.append(found.with_columns(_pick(lists, row, found["#place"]) for lists in columns))
    return pl.concat(parts)


def _pick(lists: pl.Series, row: pl.Series, place: pl.Series) -> pl.Series:
    """Element ``place`` [m] of the list in ``row`` [m] of lists [n]; null where there is none."""
    length = lists.list.len().fill_null(0).cast(pl.Int64)
    begin = (length.cum_sum() - length).gather(row)
    at = (begin + place).set(place >= length.gather(row), None)
    return lists.explode(empty_as_null=False, keep_nulls=False).gather(at)
