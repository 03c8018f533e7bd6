"""Small groups of rows on disk, watched: what of them is in memory at once."""

from __future__ import annotations

import weakref

import polars as pl
import pytest

from training import spill
from training.spill import Spill


def in_groups(patch: pytest.MonkeyPatch, run: int, group: int) -> list[tuple[str, str]]:
    """Have runs and groups of so many bytes; gives the groups, first and last beginning of each,
    as they are read. It is an error where rows of the group before are still in memory then."""
    for name, value in {"RUN": run, "GROUP": group, "LEAST": 3}.items():
        patch.setattr(spill, name, value)
    read, found = Spill.read, list[tuple[str, str]]()
    alive: list[weakref.ref[pl.DataFrame]] = []

    def watched(each: Spill, first: str, last: str) -> pl.DataFrame:
        if (first, last) not in found[-1:]:
            assert not any(frame() is not None for frame in alive)
            found.append((first, last))
            alive.clear()
        frame = read(each, first, last)
        alive.append(weakref.ref(frame))
        return frame

    patch.setattr(Spill, "read", watched)
    return found
