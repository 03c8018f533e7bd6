"""What the protocols of several data sets share: users drawn by hash, and unseen items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from xxhash import xxh3_64_intdigest

from training.logs import LogsError

VALIDATION_SHARE = 0.1
Ints = npt.NDArray[np.int64]


def drawn(ids: pl.Series, purpose: str, seed: int, share: float) -> pl.Series:
    """The ids whose hash for this purpose falls into the first ``share`` of its range."""
    limit = int(share * 2**64)
    chosen = [i for i in ids if xxh3_64_intdigest(f"{purpose} {i}".encode(), seed) < limit]
    return pl.Series("user_id", chosen, dtype=ids.dtype)


def by_user(name: str, test: pl.Series, validation: pl.Series) -> pl.Expr:
    """The split of an event from the user in a column: test before validation, else train."""
    return (
        pl.when(pl.col(name).is_in(test.implode()))
        .then(pl.lit("test"))
        .when(pl.col(name).is_in(validation.implode()))
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )


def unseen(
    wanted: pl.Series,
    users: pl.Series,
    items: pl.Series,
    catalogue: pl.Series,
    seed: int | Sequence[int],
    file: str,
) -> pl.Series:
    """For each wanted user one item of the catalogue that the user has no event with.

    Uniformly drawn; ``users`` and ``items`` are those of every event. Raises `LogsError`, which
    names the ``file`` of the catalogue, where some user has events with all of it.
    """
    every, known = catalogue.unique().sort(), users.unique().sort()
    listed = items.is_in(every.implode()).to_numpy()
    of_user = known.search_sorted(users).to_numpy().astype(np.int64)
    of_item = every.search_sorted(items).to_numpy().astype(np.int64)
    seen = np.sort((of_user * len(every) + of_item)[listed])
    seen = seen[np.diff(seen, prepend=-1) > 0]  # numpy's unique takes ten times as long
    rows: Ints = known.search_sorted(wanted).to_numpy().astype(np.int64)
    if len(rows) and np.bincount(seen // len(every), minlength=len(known))[rows].max() >= len(
        every
    ):
        raise LogsError(file, "item_id", "an item that each user has no event with")
    found = np.zeros(len(rows), np.int64)
    generator = np.random.default_rng(seed)
    left = np.arange(len(rows))
    while len(left):
        found[left] = generator.integers(len(every), size=len(left))
        left = left[_holds(seen, rows[left] * len(every) + found[left])]
    return every.gather(found).alias("item_id")


def _holds(ascending: Ints, values: Ints) -> npt.NDArray[np.bool_]:
    """Which of the values are among the ascending ones."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[at] == values
    return found
