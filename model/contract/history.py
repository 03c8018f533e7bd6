"""The behaviour record: a user's history is one byte string of fixed-width records.

Little-endian, oldest first, no header; the layout is named by `Schema.layout`, which is part of
the key under which a history is stored.

====== ======== ==========================================================
offset type     what
====== ======== ==========================================================
0      int64    ts: when it happened, in the unit of the logs
8      uint64   stable key of the item
16...  8 bytes  each behaviour field of the schema, in its order: uint64 key of a category
                (0 = missing) or float64 number (NaN = missing)
====== ======== ==========================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from model.contract.schema import Schema

Records = npt.NDArray[np.void]


class HistoryError(ValueError):
    """Stored bytes that are no history of this layout."""


class HistoryCodec:
    """Packs and unpacks histories of one schema."""

    def __init__(self, schema: Schema) -> None:
        self.fields = schema.behaviour
        kinds = [(field.name, "<f8" if field.kind == "number" else "<u8") for field in self.fields]
        self.dtype = np.dtype([("ts", "<i8"), ("item_id", "<u8"), *kinds])

    @property
    def width(self) -> int:
        """Bytes of one record."""
        return self.dtype.itemsize

    def pack(self, columns: Mapping[str, npt.ArrayLike]) -> Records:
        """Records [n] from one column [n] per name: ts, item_id (keys), each behaviour field.

        Raises ValueError for a column of another length and for ids or times held as floats.
        """
        records = np.empty(len(np.asarray(columns["ts"])), self.dtype)
        for name in self.dtype.names or ():
            given, into = columns[name], self.dtype[name]
            # A list has no type of its own; numpy's guess for large integers is float64.
            column = np.asarray(given, into if isinstance(given, Sequence) else None)
            if column.shape != records.shape:
                raise ValueError(f"{name}: {column.shape} where {records.shape} was expected")
            if into.kind != "f" and column.dtype.kind not in "iu":
                raise ValueError(f"{name}: integers expected, found {column.dtype}")
            records[name] = column
        return records

    def unpack(self, data: bytes) -> Records:
        """Read-only records [n] over ``data`` without a copy. Raises `HistoryError`."""
        if len(data) % self.width:
            raise HistoryError(f"{len(data)} bytes are not a multiple of the record's {self.width}")
        return np.frombuffer(data, self.dtype)

    def empty(self) -> Records:
        return np.empty(0, self.dtype)


def recent(records: Records, length: int) -> Records:
    """The last ``length`` records."""
    return records[max(0, len(records) - length) :]
