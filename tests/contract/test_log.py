"""The log's entries: what is written is what is read; events are checked field by field."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.encode import Encoder, FieldError, Request
from model.contract.log import (
    MAX_FIELDS,
    Erased,
    Event,
    Scored,
    Snapshot,
    digests,
    dump,
    kinds_of,
    load,
    read_event,
)
from model.contract.schema import Schema

SHOP = Schema.parse(
    """
name = "shop"
[[item]]
name = "item_id"
[[behaviour]]
name = "action"
[[behaviour]]
name = "price"
kind = "number"
boundaries = [1.0]
[[context]]
name = "places"
kind = "tags"
max_values = 2
"""
)
KINDS = kinds_of(SHOP)
RAW = {"user_id": 7, "item_id": "a", "action": "click", "ts": 5}
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(user=IDS, item=IDS, ts=st.integers(-(2**63), 2**63 - 1), note=st.none() | IDS)
def test_an_entry_is_read_back_as_it_was_written(
    user: str, item: str, ts: int, note: str | None
) -> None:
    """Whatever the ids, every kind of entry survives its JSON."""
    entries = [
        Event(user, item, "click", ts, 9, note, {"price": 1.5, "tags": [item]}),
        Scored(
            request_id="r",
            user_id=user,
            received=9,
            model="m",
            version=3,
            schema="f",
            candidates=[item, None],
            probability={"ctr": [0.25, 0.5]},
            history=Snapshot(0, None, "0"),
            user={"age": 4},
            context={},
            columns={"price": [None, 2.0]},
            rows={"item.item_id": "00"},
            unknown=[1],
            degraded=note,
        ),
        Erased(user, 9),
    ]
    for entry in entries:
        assert load(entry.kind, json.dumps(dump(entry))) == entry


@given(st.tuples(IDS, IDS, IDS), st.tuples(IDS, IDS, IDS))
def test_events_share_a_key_only_when_they_are_the_same(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    """User, item, action and ts make the key, and no two splits of one text are alike."""
    keys = [Event(u, i, a, 1, 0).key for u, i, a in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_a_retried_event_has_the_key_of_the_first() -> None:
    """When it came, its request and its extra fields are no part of what an event is."""
    first = read_event(RAW, KINDS, 1)
    again = read_event({**RAW, "user_id": "7", "request_id": "r", "price": 2}, KINDS, 2)
    assert first.key == again.key
    assert first.key != read_event({**RAW, "ts": 6}, KINDS, 1).key
    assert first.key != read_event({**RAW, "action": "conversion"}, KINDS, 1).key


@pytest.mark.parametrize("kind", ["event", "score", "erase", "other"])
@pytest.mark.parametrize("data", ["{}", "[]", "nonsense", '{"history": 3}', '{"user_id": "u"}'])
def test_what_is_no_entry_is_refused(kind: str, data: str) -> None:
    """A damaged entry is a ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r"."):
        load(kind, data)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": 1.5}, "user_id"),
        ({"item_id": ""}, "item_id"),
        ({"item_id": "x" * 257}, "item_id"),
        ({"item_id": "\ud800"}, "item_id"),
        ({"action": "click me"}, "action"),
        ({"action": "x" * 33}, "action"),
        ({"action": None}, "action"),
        ({"ts": "5"}, "ts"),
        ({"ts": 5.0}, "ts"),
        ({"ts": True}, "ts"),
        ({"ts": 2**63}, "ts"),
        ({"request_id": ["r"]}, "request_id"),
        ({"price": "dear"}, "price"),
        ({"price": float("nan")}, "price"),
        ({"places": "home"}, "places"),
        ({"places": ["home", 1.5]}, "places"),
        ({"colour": {"deep": 1}}, "event"),
        ({"colour": True}, "event"),
        ({"a b": "c"}, "event"),
        ({f"f{n}": 1 for n in range(MAX_FIELDS + 1)}, "event"),
    ],
)
def test_a_bad_event_names_its_field(change: dict[str, Any], field: str) -> None:
    """Each field is held to what it should be."""
    with pytest.raises(FieldError) as found:
        read_event({**RAW, **change}, KINDS, 0)
    assert found.value.field == field


def test_what_is_no_object_is_no_event() -> None:
    """A list or a text is refused as a whole."""
    with pytest.raises(FieldError, match="an object"):
        read_event([1], KINDS, 0)


def test_a_field_that_no_schema_knows_yet_is_kept() -> None:
    """So that logs hold it by the time a model asks for it."""
    event = read_event({**RAW, "dwell": 2.5, "colour": "red", "shown_with": ["b"]}, KINDS, 0)
    assert event.fields == {"dwell": 2.5, "colour": "red", "shown_with": ["b"]}


def test_the_action_is_a_behaviour_field_where_the_schema_has_one() -> None:
    """Unless the event itself says otherwise."""
    assert read_event({**RAW, "price": 3, "dwell": 1}, KINDS, 0).raw(SHOP) == {
        "item_id": "a",
        "ts": 5,
        "action": "click",
        "price": 3,
    }
    plain = Schema.parse('name = "plain"\n[[item]]\nname = "item_id"\n')
    assert read_event(RAW, kinds_of(plain), 0).raw(plain) == {"item_id": "a", "ts": 5}


def test_each_field_has_a_digest_of_its_own(encoder: Encoder) -> None:
    """Another value of one field changes its digest and no other."""
    schema = encoder.schema

    def of(**changes: Any) -> dict[str, str]:
        request = Request(candidates=["x"], history=encoder.records([]), **changes)
        return digests(encoder.encode(request)[0], schema)

    plain = of()
    groups = {name.partition(".")[0] for name in plain}
    assert groups == {"user", "item", "ad", "context", "history"}
    named = {f"{g}.{f.name}" for g in ("user", "item", "ad", "context") for f in schema.group(g)}
    named |= {f"history.{f.name}" for f in (*schema.item, *schema.behaviour)}
    assert set(plain) == named
    each = next(f for f in schema.context if f.kind == "category")
    other = of(context={each.name: "somewhere else"})
    assert {name for name in plain if plain[name] != other[name]} == {f"context.{each.name}"}


def test_a_snapshot_names_what_was_looked_at(encoder: Encoder) -> None:
    """Length, newest ts and a digest that any change of a record changes."""
    records = encoder.codec.unpack(np.arange(8, dtype="<i8").tobytes() * 2)
    found = Snapshot.of(records)
    assert found.length == len(records)
    assert found.newest == int(records["ts"][-1])
    assert found.digest != Snapshot.of(records[:-1]).digest
    assert Snapshot.of(records[:0]).newest is None
