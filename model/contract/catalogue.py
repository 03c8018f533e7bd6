"""The catalogue: what is known of each item, encoded once, found by the item's key.

Behaviours and candidates get their item fields from here, offline and online. Four arrays, each a
memory-mapped .npy file: ``keys`` uint64 [n] strictly rising, ``rows`` int32 [n, F_item],
``ends`` int64 [n] and ``names`` uint8 [bytes], the raw ids' UTF-8 text one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.contract.ids import Keys, Rows, keys

_DTYPES = {"keys": np.uint64, "rows": np.int32, "ends": np.int64, "names": np.uint8}


@dataclass(frozen=True)
class Catalogue:
    """Items sorted by key; arrays as in the module's docstring."""

    keys: Keys
    rows: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]

    @classmethod
    def build(cls, item_ids: Sequence[str], rows: Rows) -> Catalogue:
        """From distinct raw ids and their rows [n, F_item].

        Raises ValueError on a key collision, and when there are not as many rows as ids.
        """
        if len(rows) != len(item_ids):
            raise ValueError(f"{len(item_ids)} items but {len(rows)} rows")
        unsorted = keys(item_ids)
        order = np.argsort(unsorted)
        found = unsorted[order]
        if np.any(found[1:] == found[:-1]):
            raise ValueError("two items have the same 64-bit key; are the item ids distinct?")
        texts = [item_ids[at].encode() for at in order]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        names = np.frombuffer(b"".join(texts), np.uint8)
        return cls(found, rows[order].astype(np.int32), ends, names)

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Memory-map a saved catalogue. Raises ValueError when the arrays do not fit together."""
        arrays = {}
        for name, dtype in _DTYPES.items():
            stored = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            array = stored.view(np.ndarray)
            if array.dtype != dtype or array.ndim != (2 if name == "rows" else 1):
                raise ValueError(f"catalogue/{name}.npy: unexpected {array.dtype} {array.shape}")
            arrays[name] = array
        catalogue = cls(**arrays)
        if not len(catalogue.keys) == len(catalogue.rows) == len(catalogue.ends):
            raise ValueError("catalogue: keys, rows and ends differ in length")
        if np.any(catalogue.keys[1:] <= catalogue.keys[:-1]):
            raise ValueError("catalogue: expected strictly rising keys")
        begins = np.concatenate([[0], catalogue.ends])
        if np.any(begins[1:] < begins[:-1]) or begins[-1] != len(catalogue.names):
            raise ValueError("catalogue: names end where ends does not say")
        return catalogue

    def save(self, folder: Path) -> None:
        folder.mkdir()
        for name in _DTYPES:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Position of each key [n], which says nothing where the item is unknown, and whether it is
        known."""
        at = self.keys.searchsorted(keys)
        if not len(self.keys):
            return at, np.zeros(len(keys), np.bool_)
        return at, self.keys.take(at, mode="clip") == keys

    def names_of(self, keys: Keys) -> list[str | None]:
        """The raw id of each key [n], None where the item is unknown."""
        at, known = self.find(keys)
        at = np.where(known, at, 0)
        if not known.any():
            return [None] * len(keys)
        begins = np.where(at > 0, self.ends.take(at - 1, mode="wrap"), 0)
        places = zip(begins.tolist(), self.ends.take(at).tolist(), known.tolist(), strict=True)
        text = self.names.data
        return [
            str(text[begin:end], "utf-8") if is_known else None for begin, end, is_known in places
        ]
