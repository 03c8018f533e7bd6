"""Impressions with what their scores were made from: features, and the history looked at.

Columns that no field may be named like start with "#".
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from model.contract.schema import SHOWN, Field, Schema
from training.fields import read_fields

KEY = ["user_id", "request_id", "item_id"]
SLICE = 50_000  # scores whose candidates are laid out at once


def impressions(
    events: pl.DataFrame, scores: pl.DataFrame, schema: Schema, young: int
) -> pl.DataFrame:
    """The impressions among some events, oldest first: `KEY`, ts, the fields of item, ad and
    context, seen_length and seen_newest (null where the caller gave the history), and

    - #why: the reason why one can't be used, else null; those with a ts from ``young`` are too new
    - #user, #entry: the profile that its score used, and the place of the score in its stream
    - #raw: the history that the caller gave, else null
    """
    shown = events.filter(pl.col("action") == SHOWN).sort("ts", maintain_order=True)
    shown = shown.select(*KEY, "ts", pl.col("fields").alias("#fields"))
    stored = pl.col("raw").is_null()
    names = ("entry", "candidates", "columns", "user", "context", "degraded", "raw")
    held = scores.select(
        *KEY[:2],
        pl.when(stored).then("length").alias("seen_length"),
        pl.when(stored & (pl.col("length") > 0)).then("newest").alias("seen_newest"),
        *(pl.col(name).alias(f"#{name}") for name in names),
    )
    held = held.join(shown, on=KEY[:2], how="semi", maintain_order="left").with_row_index("#score")
    of_score = held.drop("#candidates", "#columns")
    shown = shown.join(of_score, on=KEY[:2], how="left", maintain_order="left")
    sent = (*schema.item[1:], *schema.ad)
    candidates = _candidates(held, shown.select("#score", "item_id"), sent)
    shown = shown.join(candidates, on=["#score", "item_id"], how="left", maintain_order="left")
    shown = shown.with_columns(_why(young))
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
        "shown before in the same answer": known & ~pl.struct(KEY).is_first_distinct(),
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
        found = wanted.join(flat, on=["#score", "item_id"])
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
