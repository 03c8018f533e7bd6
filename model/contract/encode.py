"""The encoder: raw values to the arrays of a batch. The only code that does it.

Training encodes whole columns, serving one request; both go through `Encoder.column`,
`Encoder.items` and `Encoder.behaviours`, so the same raw values give the same rows whatever the
process, version or machine.

Bad values raise `FieldError`, which names the field and what was expected but never the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch
from model.contract.catalogue import Catalogue
from model.contract.history import HistoryCodec, Records, recent
from model.contract.ids import (
    FIRST,
    MISSING,
    PAD,
    Buckets,
    Keys,
    Rows,
    Table,
    Vocabulary,
    keys,
    keys_of_bytes,
)
from model.contract.schema import GROUPS, Field, Group, Schema

Given = Mapping[str, Any]
Placed = tuple[Field, slice]
MAX_ID_CHARACTERS = 256
ID_EXPECTED = f"a string of 1 to {MAX_ID_CHARACTERS} characters or a 64-bit integer"


class FieldError(ValueError):
    """A raw value that can't be encoded. ``index`` is its place in the column."""

    def __init__(self, field: str, expected: str, index: int = 0) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field, self.expected, self.index = field, expected, index

    def inside(self, where: str) -> FieldError:
        """The same, of a field that lies in ``where``."""
        return FieldError(f"{where}.{self.field}", self.expected, self.index)


@dataclass(frozen=True)
class Cuts:
    """Rows of a number: one per interval between boundaries, [b_i, b_i+1)."""

    boundaries: tuple[float, ...]

    @property
    def size(self) -> int:
        return FIRST + len(self.boundaries) + 1

    def rows_of_numbers(self, numbers: npt.NDArray[np.float64]) -> Rows:
        """Row of each number; NaN is missing and gives PAD."""
        at = np.searchsorted(self._edges, numbers, side="right") + FIRST
        return np.where(np.isnan(numbers), PAD, at)

    @cached_property
    def _edges(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.boundaries, np.float64)

    def rows(self, keys: Keys) -> Rows:
        """A number's bits are its key, as the history stores it."""
        return self.rows_of_numbers(keys.view(np.float64))


def table_of(field: Field, vocabulary: Vocabulary | None) -> Table:
    """The rows of a field's table; a vocabulary is needed just for fields that learn one."""
    if field.kind == "number":
        return Cuts(field.boundaries)
    if field.buckets:
        return Buckets(field.buckets)
    if vocabulary is None:
        raise ValueError(f"table {field.table} has no vocabulary")
    return vocabulary


def id_text(value: Any, field: str, index: int = 0) -> str:
    """The text of a raw id. Raises `FieldError`."""
    if type(value) is int and -(2**63) <= value < 2**64:
        return str(value)
    if type(value) is not str or not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise FieldError(field, ID_EXPECTED, index)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FieldError(field, "valid Unicode text", index) from None
    return value


def number(value: Any, field: str, index: int = 0) -> float:
    """A finite real number. Raises `FieldError`."""
    if type(value) is int and -(2**63) <= value < 2**64:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise FieldError(field, "a finite number", index)
    return value


def timestamp(value: Any, field: str, index: int = 0) -> int:
    """A 64-bit integer time. Raises `FieldError`."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise FieldError(field, "a 64-bit integer", index)
    return value


def id_keys(field: Field, values: Sequence[Any]) -> Keys:
    """Keys [n] of a category's raw values; None is missing. Raises `FieldError`."""
    # The common case without a call per id; which one is at fault, is found below.
    with suppress(TypeError, UnicodeEncodeError):
        texts = list(map(str.encode, values))
        lengths = set(map(len, texts))
        if 0 not in lengths and max(lengths, default=0) <= MAX_ID_CHARACTERS:
            return keys_of_bytes(texts)
    found = keys(
        id_text(value, field.name, at) for at, value in enumerate(values) if value is not None
    )
    if len(found) == len(values):
        return found
    filled = np.full(len(values), MISSING, np.uint64)
    filled[[at for at, value in enumerate(values) if value is not None]] = found
    return filled


def numbers(field: Field, values: Sequence[Any]) -> npt.NDArray[np.float64]:
    """float64 [n] of raw numbers; None is missing and gives NaN. Raises `FieldError`."""
    found = [
        math.nan if value is None else number(value, field.name, at)
        for at, value in enumerate(values)
    ]
    return np.asarray(found, np.float64)


def stored(field: Field, values: Sequence[Any]) -> npt.NDArray[Any]:
    """What a behaviour record holds of a field's raw values [n]: keys or numbers."""
    return numbers(field, values) if field.kind == "number" else id_keys(field, values)


@dataclass(frozen=True)
class Request:
    """One user and the candidates to score, in raw values.

    Candidates are raw ids or uint64 keys [N]. ``given[i]`` holds the item and ad fields that came
    with candidate i, {} when none did; ``columns[name][i]`` the same field by field, None when it
    did not come.
    """

    candidates: Sequence[Any] | Keys
    history: Records
    user: Given = field(default_factory=dict)
    context: Given = field(default_factory=dict)
    given: Sequence[Given] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Encoder:
    """Raw values to rows for one model version: its schema, tables and catalogue."""

    def __init__(self, schema: Schema, tables: Mapping[str, Table], catalogue: Catalogue) -> None:
        self.schema, self.tables, self.catalogue = schema, tables, catalogue
        self.codec = HistoryCodec.of(schema)
        self._widths = {group: schema.width(group) for group in GROUPS}
        self._placed = {
            group: list(zip(schema.group(group), schema.columns(group).values(), strict=True))
            for group in GROUPS
        }

    def column(self, field: Field, values: Sequence[Any]) -> Rows:
        """Rows [n, width] of raw values; None is missing. Raises `FieldError`."""
        table = self.tables[field.table]
        if field.kind == "tags":
            return table.rows(self._tag_keys(field, values))
        return table.rows(stored(field, values).view(np.uint64))[:, None]

    def _tag_keys(self, field: Field, values: Sequence[Any]) -> Keys:
        """Keys [n, max_values]; tags after the first max_values are checked, and dropped."""
        found = np.full((len(values), field.max_values), MISSING, np.uint64)
        texts: list[str] = []
        cells: list[int] = []
        for at, tags in enumerate(values):
            if tags is None:
                continue
            if not isinstance(tags, (list, tuple)):
                raise FieldError(field.name, "a list of tags", at)
            kept = [id_text(tag, field.name, at) for tag in tags][: field.max_values]
            texts += kept
            cells += range(at * field.max_values, at * field.max_values + len(kept))
        found.reshape(-1)[cells] = keys(texts)
        return found

    def items(self, keys: Keys) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Rows [n, F_item] of items from the catalogue, and whether each is known there.

        An unknown item keeps what its id alone gives (OOV, or its hash row); its other fields are
        missing.
        """
        at, known = self.catalogue.find(keys)
        if known.all():
            return self.catalogue.rows.take(at, axis=0).astype(np.int64), known
        rows = np.full((len(keys), self._widths["item"]), PAD, np.int64)
        rows[known] = self.catalogue.rows[at[known]]
        rows[~known, 0] = self.tables[self.schema.item[0].table].rows(keys[~known])
        return rows, known

    def candidates(self, ids: Sequence[Any] | Keys) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """`items` by raw ids or keys. Raises `FieldError`."""
        return self.items(ids if isinstance(ids, np.ndarray) else self._item_keys(ids))

    def behaviours(self, records: Records) -> Rows:
        """Rows [L, F_item + F_behaviour] of a history."""
        rows, _ = self.items(records["item_id"])
        if not self.schema.behaviour:
            return rows
        extra = [
            self.tables[f.table].rows(np.ascontiguousarray(records[f.name]).view(np.uint64))
            for f in self.schema.behaviour
        ]
        return np.concatenate([rows, *(each[:, None] for each in extra)], axis=1)

    def records(self, behaviours: Sequence[Given]) -> Records:
        """A history, oldest first, of raw behaviours {item_id, ts, fields}. Raises `FieldError`."""
        columns: dict[str, npt.ArrayLike] = {}
        try:
            columns["ts"] = [
                timestamp(raw.get("ts"), "ts", at) for at, raw in enumerate(behaviours)
            ]
            columns["item_id"] = self._item_keys([raw.get("item_id") for raw in behaviours])
            for each in self.schema.behaviour:
                columns[each.name] = stored(each, [raw.get(each.name) for raw in behaviours])
        except FieldError as error:
            raise error.inside(f"history[{error.index}]") from None
        records = self.codec.pack(columns)
        return records[np.argsort(records["ts"], kind="stable")]

    def encode(self, request: Request) -> tuple[Batch, npt.NDArray[np.bool_]]:
        """A batch of one user, and whether each candidate is known. Raises `FieldError`."""
        records = recent(request.history, self.schema.history_length)
        history = self.behaviours(records)
        count = len(request.candidates)
        if request.given and len(request.given) != count:
            raise FieldError("given", f"none or one entry for each of {count} candidates")
        ad = np.zeros((count, self._widths["ad"]), np.int64)  # PAD
        try:
            item, known = self.candidates(request.candidates)
            for rows, placed in ((item, self._placed["item"][1:]), (ad, self._placed["ad"])):
                if request.given:
                    self._fill(rows, placed, request.given)
                if request.columns:
                    self._fill_columns(rows, placed, request.columns)
        except FieldError as error:
            raise error.inside(f"candidates[{error.index}]") from None
        zeros = np.zeros(count, np.int64)
        context = self._one("context", request.context)
        batch = Batch(
            history=history[None],
            ts=np.array(records["ts"], np.int64)[None],
            user=self._one("user", request.user),
            item=item,
            ad=ad,
            context=context.repeat(count, axis=0),
            owner=zeros,
            start=zeros,
            stop=zeros + len(history),
        )
        return batch, known

    def _item_keys(self, ids: Sequence[Any]) -> Keys:
        """Keys [n] of item ids, none missing. Raises `FieldError`."""
        found = id_keys(self.schema.item[0], ids)
        if not found.all():
            raise FieldError("item_id", ID_EXPECTED, int(found.argmin()))
        return found

    def _fill(self, rows: Rows, placed: Sequence[Placed], given: Sequence[Given]) -> None:
        """Put the fields that came with a candidate in place of those in ``rows`` [n, F]."""
        for each, columns in placed:
            at = [index for index, values in enumerate(given) if each.name in values]
            if at:
                try:
                    rows[at, columns] = self.column(each, [given[i][each.name] for i in at])
                except FieldError as error:
                    raise FieldError(each.name, error.expected, at[error.index]) from None

    def _fill_columns(
        self, rows: Rows, placed: Sequence[Placed], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        """The same of fields that came in columns."""
        for each, at_columns in placed:
            values = columns.get(each.name, ())
            at = [index for index, value in enumerate(values) if value is not None]
            if at:
                try:
                    rows[at, at_columns] = self.column(each, [values[i] for i in at])
                except FieldError as error:
                    raise FieldError(each.name, error.expected, at[error.index]) from None

    def _one(self, group: Group, values: Given) -> Rows:
        """Rows [1, F_group] of a request's user or context fields."""
        rows = np.zeros((1, self._widths[group]), np.int64)  # PAD
        for each, columns in self._placed[group]:
            value = values.get(each.name)
            if value is not None:
                try:
                    rows[:, columns] = self.column(each, [value])
                except FieldError as error:
                    raise error.inside(group) from None
        return rows
