"""Figures of ids, added up chunk by chunk."""

from __future__ import annotations

from collections import Counter

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from training.merged import Merged


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=9), min_size=1, max_size=9))
def test_it_is_the_same_however_the_rows_were_cut(chunks: list[list[str]]) -> None:
    """Put together after every chunk or only at the end: the sums are those of all rows."""
    for least in (0, 1 << 18):
        found = Merged(pl.col("count").sum())
        found.LEAST = least
        for chunk in chunks:
            ids = pl.Series("id", chunk, pl.String)
            found.add(pl.DataFrame([ids, pl.Series("count", [1] * len(chunk), pl.Int64)]))
        assert dict(found.total().rows()) == Counter(id_ for chunk in chunks for id_ in chunk)
        assert dict(found.total().rows()) == Counter(id_ for chunk in chunks for id_ in chunk)
