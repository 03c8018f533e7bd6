"""Figures of ids that come chunk by chunk, added up as they come."""

from __future__ import annotations

import polars as pl


class Merged:
    """One row per ``id``, the other columns put together by ``how``; memory is of the ids alone.

    What came is put together whenever there is as much of it as there was before, so the work grows
    with what came and not with its number of chunks.
    """

    LEAST = 1 << 18

    def __init__(self, *how: pl.Expr) -> None:
        self._how, self._parts = how, list[pl.DataFrame]()
        self._before = self._waiting = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Rows of an id and what is to be put together, an id any number of times."""
        self._parts.append(frame)
        self._waiting += frame.height
        if self._waiting > max(self._before, self.LEAST):
            self.total()

    def total(self) -> pl.DataFrame:
        """Each id once. At least one frame was added."""
        self._parts = [pl.concat(self._parts).group_by("id").agg(*self._how)]
        self._before, self._waiting = self._parts[0].height, 0
        return self._parts[0]
