"""The encoder: raw values to the arrays of a batch. The only code that does it.

Training encodes whole columns, serving one request; both go through `Encoder.column`,
`Encoder.items` and `Encoder.behaviours`, so the same raw values give the same rows whatever the
process, version or machine.

Bad values raise `FieldError`, which names the field and what was expected but never the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch
from model.contract.catalogue import Catalogue
from model.contract.history import HistoryCodec, Records, recent
from model.contract.ids import FIRST, MISSING, PAD, Buckets, Keys, Rows, Table, Vocabulary, keys
from model.contract.schema import Field, Group, Schema

Given = Mapping[str, Any]
MAX_ID_CHARACTERS = 256
ID_EXPECTED = f"a string of 1 to {MAX_ID_CHARACTERS} characters or a 64-bit integer"


class FieldError(ValueError):
    """A raw value that can't be encoded. ``index`` is its place in the column."""

    def __init__(self, field: str, expected: str, index: int = 0) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field, self.expected, self.index = field, expected, index


@dataclass(frozen=True)
class Cuts:
    """Rows of a number: one per interval between boundaries, [b_i, b_i+1)."""

    boundaries: tuple[float, ...]

    @property
    def size(self) -> int:
        return FIRST + len(self.boundaries) + 1

    def rows_of_numbers(self, numbers: npt.NDArray[np.float64]) -> Rows:
        """Row of each number; NaN is missing and gives PAD."""
        at = np.searchsorted(self.boundaries, numbers, side="right") + FIRST
        return np.where(np.isnan(numbers), PAD, at)

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
    if type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise FieldError(field, "a finite number", index)
    return value


def timestamp(value: Any, field: str) -> int:
    """A 64-bit integer time. Raises `FieldError`."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise FieldError(field, "a 64-bit integer")
    return value


def id_keys(field: Field, values: Sequence[Any]) -> Keys:
    """Keys [n] of a category's raw values; None is missing. Raises `FieldError`."""
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

    ``given[i]`` holds the item and ad fields that came with candidate i, {} when none did.
    """

    candidates: Sequence[str]
    history: Records
    user: Given = field(default_factory=dict)
    context: Given = field(default_factory=dict)
    given: Sequence[Given] = ()


class Encoder:
    """Raw values to rows for one model version: its schema, tables and catalogue."""

    def __init__(self, schema: Schema, tables: Mapping[str, Table], catalogue: Catalogue) -> None:
        self.schema, self.tables, self.catalogue = schema, tables, catalogue
        self.codec = HistoryCodec(schema)
        self._item_columns = schema.columns("item")
        self._overridable = {f.name: f for f in schema.item[1:]}
        self._unknown = np.full((1, schema.width("item")), PAD, np.int64)

    def column(self, field: Field, values: Sequence[Any]) -> Rows:
        """Rows [n, width] of raw values; None is missing. Raises `FieldError`."""
        if field.kind == "number":
            return Cuts(field.boundaries).rows_of_numbers(numbers(field, values))[:, None]
        table = self.tables[field.table]
        if field.kind == "tags":
            return table.rows(self._tag_keys(field, values))
        return table.rows(id_keys(field, values))[:, None]

    def _tag_keys(self, field: Field, values: Sequence[Any]) -> Keys:
        """Keys [n, max_values]; tags after the first max_values are dropped."""
        found = np.full((len(values), field.max_values), MISSING, np.uint64)
        for at, tags in enumerate(values):
            if tags is None:
                continue
            if not isinstance(tags, (list, tuple)):
                raise FieldError(field.name, "a list of tags", at)
            texts = [id_text(tag, field.name, at) for tag in tags[: field.max_values]]
            found[at, : len(texts)] = keys(texts)
        return found

    def items(self, keys: Keys) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Rows [n, F_item] of items from the catalogue, and whether each is known there.

        An unknown item keeps what its id alone gives (OOV, or its hash row); its other fields are
        missing.
        """
        at = self.catalogue.find(keys)
        known = at >= 0
        if known.all():
            return self.catalogue.rows[at].astype(np.int64), known
        rows = np.zeros((len(keys), self._unknown.shape[1]), np.int64)
        rows[known] = self.catalogue.rows[at[known]]
        rows[~known, 0] = self.tables[self.schema.item[0].table].rows(keys[~known])
        return rows, known

    def behaviours(self, records: Records) -> Rows:
        """Rows [L, F_item + F_behaviour] of a history."""
        rows, _ = self.items(records["item_id"])
        extra = [
            self.tables[f.table].rows(np.ascontiguousarray(records[f.name]).view(np.uint64))
            for f in self.schema.behaviour
        ]
        return np.column_stack([rows, *extra]) if extra else rows

    def records(self, behaviours: Sequence[Given]) -> Records:
        """A history, oldest first, of raw behaviours {item_id, ts, fields}. Raises `FieldError`."""
        columns: dict[str, npt.ArrayLike] = {
            "ts": [
                timestamp(raw.get("ts"), f"history[{at}].ts") for at, raw in enumerate(behaviours)
            ],
            "item_id": keys(
                id_text(raw.get("item_id"), f"history[{at}].item_id")
                for at, raw in enumerate(behaviours)
            ),
        }
        for each in self.schema.behaviour:
            values = [raw.get(each.name) for raw in behaviours]
            try:
                columns[each.name] = stored(each, values)
            except FieldError as error:
                where = f"history[{error.index}].{each.name}"
                raise FieldError(where, error.expected, error.index) from None
        records = self.codec.pack(columns)
        return records[np.argsort(records["ts"], kind="stable")]

    def encode(self, request: Request) -> tuple[Batch, npt.NDArray[np.bool_]]:
        """A batch of one user, and whether each candidate is known. Raises `FieldError`."""
        history = self.behaviours(recent(request.history, self.schema.history_length))
        count = len(request.candidates)
        item, known = self.items(keys(request.candidates))
        given = request.given or [{}] * count
        if self._overridable:
            self._override(item, given)
        zeros = np.zeros(count, np.int64)
        context = self._one("context", request.context)
        batch = Batch(
            history=history[None],
            user=self._one("user", request.user),
            item=item,
            ad=self._ads(given),
            context=np.repeat(context, count, axis=0),
            owner=zeros,
            start=zeros,
            stop=zeros + len(history),
        )
        return batch, known

    def _override(self, item: Rows, given: Sequence[Given]) -> None:
        """Put the item fields that came with a candidate in place of the catalogue's."""
        for name, overridden in self._overridable.items():
            at = [index for index, fields in enumerate(given) if name in fields]
            if at:
                values = [given[index][name] for index in at]
                item[at, self._item_columns[name]] = self._named(overridden, values, at)

    def _ads(self, given: Sequence[Given]) -> Rows:
        if not self.schema.ad:
            return np.zeros((len(given), 0), np.int64)
        every = range(len(given))
        columns = [
            self._named(each, [fields.get(each.name) for fields in given], every)
            for each in self.schema.ad
        ]
        return np.concatenate(columns, axis=1)

    def _named(self, field: Field, values: Sequence[Any], at: Sequence[int]) -> Rows:
        """`column`, with the candidate in the name of the field that fails."""
        try:
            return self.column(field, values)
        except FieldError as error:
            where = f"candidates[{at[error.index]}].{field.name}"
            raise FieldError(where, error.expected, at[error.index]) from None

    def _one(self, group: Group, values: Given) -> Rows:
        """Rows [1, F_group] of a request's user or context fields."""
        rows = np.zeros((1, self.schema.width(group)), np.int64)
        for name, columns in self.schema.columns(group).items():
            value = values.get(name)
            if value is not None:
                named = next(each for each in self.schema.group(group) if each.name == name)
                try:
                    rows[:, columns] = self.column(named, [value])
                except FieldError as error:
                    raise FieldError(f"{group}.{name}", error.expected) from None
        return rows
