"""Ids: a raw id becomes a stable 64-bit key, a key becomes a row of an embedding table.

The key is xxh3-64 of the id's UTF-8 text; an integer counts as its decimal text, so 42 and "42"
are the same id. Key 0 says "missing". Keys never change with the model, the process or the
machine, which is why stored histories hold keys; rows belong to one version of one model.

Rows of every table: ``PAD`` = 0 (missing; its embedding is zero), ``OOV`` = 1 (unknown), then
the table's own rows. No id ever goes through a float.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

PAD = 0
OOV = 1
FIRST = 2
MISSING = 0

Keys = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def key(text: str) -> int:
    """Stable 64-bit key of one id. Raises UnicodeEncodeError for a lone surrogate."""
    return xxh3_64_intdigest(text.encode()) or 1


def keys(texts: Iterable[str]) -> Keys:
    """Stable keys of many ids, uint64 [n]. Raises UnicodeEncodeError for a lone surrogate."""
    return keys_of_bytes(list(map(str.encode, texts)))


def keys_of_bytes(texts: Sequence[bytes]) -> Keys:
    """The same of UTF-8."""
    found = np.fromiter(map(xxh3_64_intdigest, texts), np.uint64, len(texts))
    return np.maximum(found, 1, out=found)  # 0 says missing


class Table(Protocol):
    """Rows of one embedding table."""

    @property
    def size(self) -> int:
        """Number of rows, PAD and OOV among them."""
        ...

    def rows(self, keys: Keys) -> Rows:
        """Row of each key, int64, same shape; missing keys give PAD."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """A closed set of ids: ``sorted_keys`` uint64 [n], strictly rising; row i + 2 is key i."""

    sorted_keys: Keys

    @classmethod
    def learn(
        cls, texts: Sequence[str], counts: npt.NDArray[np.int64], min_count: int
    ) -> Vocabulary:
        """Keep the ids seen at least ``min_count`` times. ``texts`` are distinct.

        Raises ValueError when two ids share a key (about n^2 / 2^65 likely).
        """
        kept = np.sort(keys(texts)[np.asarray(counts) >= min_count])
        if np.any(kept[1:] == kept[:-1]):
            raise ValueError("two ids have the same 64-bit key; rename one of them")
        return cls(kept)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Memory-map a saved vocabulary. Raises ValueError when it is not one."""
        stored = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if stored.dtype != np.uint64 or stored.ndim != 1:
            raise ValueError(
                f"{path.name}: expected uint64 [n], found {stored.dtype} {stored.shape}"
            )
        if np.any(stored[1:] <= stored[:-1]):
            raise ValueError(f"{path.name}: expected strictly rising keys")
        return cls(stored)

    def save(self, path: Path) -> None:
        np.save(path, self.sorted_keys, allow_pickle=False)

    @property
    def size(self) -> int:
        return FIRST + len(self.sorted_keys)

    def rows(self, keys: Keys) -> Rows:
        if not len(self.sorted_keys):
            return np.where(keys == MISSING, PAD, OOV).astype(np.int64)
        at = np.searchsorted(self.sorted_keys, keys)
        at[at == len(self.sorted_keys)] = 0
        found = np.where(self.sorted_keys[at] == keys, at + FIRST, OOV)
        return np.where(keys == MISSING, PAD, found)


@dataclass(frozen=True)
class Buckets:
    """An open vocabulary: ``count`` hash rows; ids that collide share a row, none is unknown."""

    count: int

    @property
    def size(self) -> int:
        return FIRST + self.count

    def rows(self, keys: Keys) -> Rows:
        hashed = (keys % np.uint64(self.count)).astype(np.int64) + FIRST
        return np.where(keys == MISSING, PAD, hashed)
