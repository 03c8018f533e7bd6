"""The wire: what is wrong with a request is found and named, and its values stay unsaid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.schema import Schema
from service.errors import Malformed, Problem
from service.rows import read
from tests.support import TOY

SECRET = "s3cr3t"
GOOD: dict[str, Any] = {"user_id": "u", "candidates": ["i1"]}


def changed(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


BAD: list[tuple[bytes, str | None]] = [
    (b"", "body"),
    (b"{", "body"),
    (b"null", "body"),
    (b"[]", "body"),
    (b'"s3cr3t"', "body"),
    (b"\xff", "body"),
    (b"\xef\xbb\xbf{}", "body"),
    (b'{"user_id": "u", "candidates": ["\xed\xa0\x80"]}', "candidates[0]"),
    (b"[" * 100_000, "body"),
    (b'{"user_id":' * 2000, "body"),
    (b'{"user_id": "u", "candidates": ' + b"[" * 500 + b"]" * 500 + b', "a": 1}', "a"),
    (b'{"user_id": "u", "candidates": ["i1"]} x', "body"),
    (b'{"user_id": "u", "candidates": ["i1"], }', "body"),
    (b'{"user_id": NaN, "candidates": ["i1"]}', "user_id"),
    (b'{"user_id": "u", "candidates": ["i1"], "user": {"income": NaN}}', "user.income"),
    (b'{"user_id": "u", "candidates": ["i1"], "user": {"income": -Infinity}}', "user.income"),
    (b'{"user_id": "u", "candidates": ["i1"], "user": {"income": 1e400}}', "user.income"),
    (
        b'{"user_id": "u", "candidates": ["i1"], "user": {"income": 9223372036854775808000}}',
        "user.income",
    ),
    (
        b'{"user_id": "u", "candidates": ["i1", {"item_id": 18446744073709551616}]}',
        "candidates[1].item_id",
    ),
    (b'{"user_id": -9223372036854775809, "candidates": ["i1"]}', "user_id"),
    (b'{"user_id": 1' + b"0" * 5000 + b', "candidates": ["i1"]}', "user_id"),
    (b'{"user_id": "\\ud800", "candidates": ["i1"]}', "user_id"),
    (b'{"user_id": "u", "candidates": ["i1"], "context": {"\\udfff": 1}}', "context"),
    (
        b'{"user_id": "u", "candidates": ["i1"], "user": {"gender": ["a", "\\ud800"]}}',
        "user.gender[1]",
    ),
    (without("user_id"), "user_id"),
    (without("candidates"), "candidates"),
    (changed(user_id=None), "user_id"),
    (changed(user_id=""), "user_id"),
    (changed(user_id="u" * 257), "user_id"),
    (changed(user_id=1.5), "user_id"),
    (changed(user_id=True), "user_id"),
    (changed(user_id=["s3cr3t"]), "user_id"),
    (changed(candidates=[]), "candidates"),
    (changed(candidates=["i"] * 2001), "candidates"),
    (changed(candidates="s3cr3t"), "candidates"),
    (changed(candidates={"item_id": "s3cr3t"}), "candidates"),
    (changed(candidates=[{"item_id": "i1", "colour": "s3cr3t"}]), "candidates[0].colour"),
    (changed(candidates=["i1", {"item_id": "i1", "rating": "5"}]), "candidates[1].rating"),
    (changed(candidates=[{"item_id": "i1", "s3cr3t key!": 1}]), "candidates[0]"),
    (changed(user={"hour": 1}), "user.hour"),
    (changed(user=[]), "user"),
    (changed(user=None), "user"),
    (changed(context={"gender": "F"}), "context.gender"),
    (changed(context="s3cr3t"), "context"),
    (changed(history={}), "history"),
    (changed(history=["s3cr3t"]), "history[0]"),
    (changed(history=[{"item_id": "i", "ts": 1}, {"genre": "noir"}]), "history[1].genre"),
    (changed(history=[{"item_id": "i", "ts": 1}] * 10_001), "history"),
    (changed(explain=-1), "explain"),
    (changed(explain=21), "explain"),
    (changed(explain=True), "explain"),
    (changed(explain=1.0), "explain"),
    (changed(explain="3"), "explain"),
    (changed(timeout_ms=0), "timeout_ms"),
    (changed(timeout_ms=60_001), "timeout_ms"),
    (changed(timeout_ms=2**70), "timeout_ms"),
    (changed(surprise="s3cr3t"), "surprise"),
    (json.dumps({**GOOD, "s3cr3t' or 1=1 --": 1}).encode(), "body"),
    (json.dumps({**GOOD, "a" * 65: 1}).encode(), "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD)
def test_what_is_wrong_is_named_and_not_echoed(body: bytes, field: str, schema: Schema) -> None:
    """Each hostile or mistaken body gives a 4xx that names its field and holds no value of it."""
    with pytest.raises(Problem) as found:
        read(body, schema)
    assert 400 <= found.value.status < 500
    assert found.value.field == field
    assert SECRET not in found.value.detail
    assert SECRET not in (found.value.field or "")


@pytest.mark.parametrize(
    "body",
    [
        b'{"user_id": 12345678901234567890, "candidates": ["1234567890123456789012345"]}',
        b'{"user_id": "u", "candidates": [18446744073709551615, -9223372036854775808]}',
        b'{"user_id": "u", "candidates": ["i1"], "user": {"income": 0.1234567890123456789012}}',
        '{"user_id": "日本", "candidates": ["\\ud83d\\ude00"]}'.encode(),
        changed(candidates=["i1", 5, {"item_id": "i2", "genre": ["noir"], "price": 2}]),
        changed(history=None, explain=20, timeout_ms=1),
    ],
)
def test_what_is_unusual_but_right_passes(body: bytes, schema: Schema) -> None:
    """64-bit integers, long digits inside strings and fractions, and any Unicode are fine."""
    read(body, schema)


def test_fields_are_kept_with_their_candidate(schema: Schema) -> None:
    """What came with a candidate stays at its place; bare ids have nothing."""
    asked = read(changed(candidates=["i1", {"item_id": 7, "genre": ["noir"]}]), schema)
    assert asked.candidates == ["i1", 7]
    assert asked.given == [{}, {"item_id": 7, "genre": ["noir"]}]
    assert read(changed(candidates=["i1", {"item_id": 7}]), schema).given == ()


def refusal(body: bytes) -> Problem | None:
    """How a body is refused, None when it is not."""
    try:
        read(body, Schema.parse(TOY))
    except Problem as problem:
        return problem
    return None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([SECRET, "\ud800", "i1", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["user_id", "candidates", "context", "user", "history", "explain", "timeout_ms", "other"]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, JSON | st.lists(JSON, max_size=3), max_size=4), st.booleans())
def test_any_json_is_read_or_refused(
    fields: dict[str, Any],
    keep: bool,
) -> None:
    """Whatever a body holds, reading it ends in a request or a 4xx, and never says the secret."""
    body = json.dumps({**(GOOD if keep else {}), **fields}).encode()
    problem = refusal(body)
    if problem is not None:
        assert 400 <= problem.status < 500
        assert SECRET not in problem.detail + (problem.field or "")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Bytes that are no request are a 4xx."""
    problem = refusal(body)
    assert problem is not None
    assert 400 <= problem.status < 500


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.integers(0, 255))
def test_a_broken_byte_never_breaks_more(at: int, byte: int) -> None:
    """A good body with any one byte replaced is read or refused."""
    body = bytearray(changed(user={"income": 1.5}, history=[{"item_id": "é", "ts": 5}]))
    body[at % len(body)] = byte
    problem = refusal(bytes(body))
    assert problem is None or 400 <= problem.status < 500


def test_malformed_json_is_a_400(schema: Schema) -> None:
    """What no JSON parser reads is told apart from a field that is wrong."""
    with pytest.raises(Malformed):
        read(b"{", schema)
