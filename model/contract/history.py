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

A schema whose behaviour fields change has another layout. What was stored in the old one stays
readable: `HistoryCodec.convert` keeps the fields that both have, and what is new is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from model.contract.ids import MISSING
from model.contract.schema import Schema, layout_of

Records = npt.NDArray[np.void]
KEPT = 4
"""A stored history holds this many times the behaviours that a model looks at, for a later model
that looks further back; what is older goes."""


class HistoryError(ValueError):
    """Stored bytes that are no history of this layout."""


class HistoryCodec:
    """Packs and unpacks histories of one layout, which is a `Schema.record`."""

    def __init__(self, record: Sequence[tuple[str, str]]) -> None:
        self.record = tuple(record)
        self.in_ms = self.record[:1] == (("ts", "ms"),)
        self.fields = self.record[1:] if self.in_ms else self.record
        kinds = [(name, "<f8" if kind == "number" else "<u8") for name, kind in self.fields]
        self.dtype = np.dtype([("ts", "<i8"), ("item_id", "<u8"), *kinds])
        self.layout = layout_of(self.record)  # the same digest as `Schema.layout`

    @classmethod
    def of(cls, schema: Schema) -> HistoryCodec:
        return cls(schema.record)

    @classmethod
    def parse(cls, text: str | bytes) -> HistoryCodec:
        """From `described`. Raises `HistoryError`."""
        try:
            fields = json.loads(text)
            pairs = [(name, kind) for name, kind in fields]
            if not all(isinstance(each, str) for pair in pairs for each in pair):
                raise ValueError("text expected")
            return cls(pairs)
        except (ValueError, TypeError) as error:
            raise HistoryError(f"no description of a layout ({error})") from None

    @property
    def described(self) -> str:
        """The record as JSON, for whoever meets this layout later."""
        return json.dumps([list(field) for field in self.record])

    @property
    def action(self) -> int:
        """Where in a record the behaviour field ``action`` begins; 0 where there is none."""
        names = [name for name, _ in self.fields]
        return 8 * (2 + names.index("action")) if "action" in names else 0

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

    def convert(self, records: Records, source: HistoryCodec) -> Records:
        """Records of another layout in this one: a field that it lacks, or has as another kind, is
        missing; ts is in this one's unit, whole seconds at that."""
        if source.record == self.record:
            return records
        found = np.empty(len(records), self.dtype)
        found["ts"], found["item_id"] = records["ts"], records["item_id"]
        if source.in_ms and not self.in_ms:
            found["ts"] //= 1000
        elif self.in_ms and not source.in_ms:
            found["ts"] *= 1000
        for name, kind in self.fields:
            missing = np.nan if kind == "number" else MISSING
            found[name] = records[name] if (name, kind) in source.fields else missing
        return found

    def empty(self) -> Records:
        return np.empty(0, self.dtype)


def recent(records: Records, length: int) -> Records:
    """The last ``length`` records."""
    return records[max(0, len(records) - length) :]


def in_order(parts: Sequence[Records]) -> Records:
    """Histories of one layout as one, oldest first; of one ts those of the first part first."""
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["ts"], kind="stable")]
