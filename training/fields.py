"""Columns of fields from JSON text, as collected logs hold what depends on a schema.

A value counts when the service would take it for a field of that kind (`model.contract.encode`);
one that is missing, null or of another kind is null, as it is in logs from before the schema had
the field. Fields that are not asked for are passed over, so logs of all schemas read alike.

polars reads JSON fast but would take 1.5 for an id and stops at the first value of another kind.
So texts that are plainly sound, nearly all, go to polars, and the others are read one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from model.contract.encode import MAX_ID_CHARACTERS, FieldError, id_text, number
from model.contract.schema import Field
from training.logs import column_type

_TEXT = "#text"
_CHARACTER = r'(?:[^"\\]|\\.)'
_LONG = f'"{_CHARACTER}{{{MAX_ID_CHARACTERS + 1}}}'
_ID = rf'(?:"{_CHARACTER}+"|0|-?[1-9]\d{{0,17}})'
_NUMBER = r"-?\d{1,15}(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?"


def read_fields(texts: pl.Series, fields: Sequence[Field], *, listed: bool = False) -> pl.DataFrame:
    """One column [n] per field from JSON objects [n]; null where there is no object.

    ``listed``: each value is a list of such values, one per candidate.
    """
    if not fields:
        return pl.DataFrame(height=len(texts))
    kinds = {field.name: column_type(field) for field in fields}
    kinds = {name: pl.List(kind) if listed else kind for name, kind in kinds.items()}
    distinct = texts.unique()
    sound = _sound(distinct, fields, listed)
    try:
        fast = _decode(distinct.filter(sound), kinds)
    except pl.exceptions.ComputeError:  # something odd in a field that is not asked for
        sound = pl.repeat(False, len(distinct), dtype=pl.Boolean, eager=True)
        fast = _decode(distinct.filter(sound), kinds)
    exact = _exact(distinct.filter(~sound), fields, kinds, listed)
    order = pl.concat([distinct.filter(sound), distinct.filter(~sound)])
    read = pl.concat([fast, exact]).with_columns(order.alias(_TEXT))
    found = texts.alias(_TEXT).to_frame()
    found = found.join(read, on=_TEXT, how="left", nulls_equal=True, maintain_order="left")
    return found.select(list(kinds))


def _decode(texts: pl.Series, kinds: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return texts.str.json_decode(pl.Struct(kinds)).struct.unnest()


def _sound(texts: pl.Series, fields: Sequence[Field], listed: bool) -> pl.Series:
    """Whether every field of a text has a value of its kind, or none."""
    sound = ~texts.str.contains(_LONG)
    for field in fields:
        tags = _list_of(_ID)
        value = {"category": _ID, "tags": tags, "number": _NUMBER}[field.kind]
        value = _list_of(f"(?:{value}|null)") if listed else value
        name = rf'"{re.escape(field.name)}"\s*:'
        whole = rf"{name}\s*(?:{value}|null)\s*[,}}]"
        # The name may also stand inside a field that is not asked for: it must be sound there too.
        sound &= texts.str.count_matches(name) == texts.str.count_matches(whole)
    return sound.fill_null(True)


def _list_of(value: str) -> str:
    return rf"\[\s*(?:{value}\s*(?:,\s*{value}\s*)*)?\]"


def _exact(
    texts: pl.Series, fields: Sequence[Field], kinds: Mapping[str, pl.DataType], listed: bool
) -> pl.DataFrame:
    """The same, value by value."""
    objects = [json.loads(text) for text in texts]
    columns: dict[str, list[Any]] = {}
    for field in fields:
        values = [each.get(field.name) if isinstance(each, dict) else None for each in objects]
        columns[field.name] = [_values(field, value, listed) for value in values]
    return pl.DataFrame(columns, schema=kinds)


def _values(field: Field, value: Any, listed: bool) -> Any:
    if not listed:
        return _value(field, value)
    return [_value(field, each) for each in value] if isinstance(value, list) else None


def _value(field: Field, value: Any) -> Any:
    try:
        return None if value is None else _READ[field.kind](value, field.name)
    except FieldError:
        return None


def _tags(value: Any, name: str) -> list[str]:
    if not isinstance(value, list):
        raise FieldError(name, "a list of tags")
    return [id_text(tag, name) for tag in value]


_READ: Mapping[str, Callable[[Any, str], Any]] = {
    "category": id_text,
    "tags": _tags,
    "number": number,
}
