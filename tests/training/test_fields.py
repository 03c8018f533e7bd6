"""Fields from JSON text: what the service would take, column by column."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.contract.encode import MAX_ID_CHARACTERS, FieldError, id_text, number
from model.contract.schema import Field, Schema
from training.fields import read_fields

SCHEMA = Schema.parse(
    """
name = "shop"
[[item]]
name = "item_id"
[[context]]
name = "page"
[[context]]
name = "places"
kind = "tags"
max_values = 3
[[context]]
name = "dwell"
kind = "number"
boundaries = [1.0]
"""
)
LONG = "x" * MAX_ID_CHARACTERS
ids = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.integers(-(2**65), 2**65),
    st.sampled_from([LONG, LONG + "x", 'a"b\\', "true", "null", "é" * 200, '"page": 1.5']),
)
odd = st.one_of(st.none(), st.booleans(), st.floats(), st.just({"page": [1]}), st.just([]))
values = st.one_of(ids, odd, st.lists(st.one_of(ids, odd), max_size=4), st.floats(-9, 9))
names = st.sampled_from(["page", "places", "dwell", "other"])
objects = st.dictionaries(names, values)


def expected(field: Field, value: Any) -> Any:
    """What a request's value of this field counts as."""
    try:
        if value is None:
            return None
        if field.kind == "number":
            return number(value, "")
        if field.kind == "category":
            return id_text(value, "")
        return [id_text(tag, "") for tag in value] if isinstance(value, list) else None
    except FieldError:
        return None


@settings(deadline=None)
@given(st.lists(objects, max_size=6), st.sampled_from([(",", ":"), (", ", ": ")]))
def test_a_value_counts_when_the_service_would_take_it(
    raws: list[dict[str, Any]], separators: tuple[str, str]
) -> None:
    """Whatever stands beside it, and however the JSON is spaced."""
    texts = [json.dumps(raw, separators=separators) for raw in raws]
    found = read_fields(pl.Series(texts, dtype=pl.String), SCHEMA.context)
    assert found.schema == {"page": pl.String, "places": pl.List(pl.String), "dwell": pl.Float64}
    for field in SCHEMA.context:
        wanted = [expected(field, raw.get(field.name)) for raw in raws]
        assert found[field.name].to_list() == wanted


@settings(deadline=None)
@given(st.lists(st.dictionaries(names, st.lists(values, max_size=3)), max_size=4))
@example([{"page": [""], "other": [{"page": [1]}]}])
def test_lists_hold_a_value_for_each_candidate(raws: list[dict[str, Any]]) -> None:
    """A value of another kind is null at its place; the others stand."""
    texts = [json.dumps(raw, ensure_ascii=False) for raw in raws]
    found = read_fields(pl.Series(texts, dtype=pl.String), SCHEMA.context, listed=True)
    for field in SCHEMA.context:
        lists = [raw.get(field.name) for raw in raws]
        wanted = [None if each is None else [expected(field, v) for v in each] for each in lists]
        assert found[field.name].to_list() == wanted


@pytest.mark.parametrize("text", [None, "null", "[]", "{}"])
def test_where_there_is_no_object_every_field_is_missing(text: str | None) -> None:
    """Beside one that has them, and in the order of the texts."""
    texts = pl.Series([text, '{"page": 7}', text], dtype=pl.String)
    found = read_fields(texts, SCHEMA.context)
    assert found["page"].to_list() == [None, "7", None]
    assert found["places"].to_list() == [None] * 3
    assert read_fields(texts, ()).height == 3
