"""The column and binary forms: the scores of the row form, as strictly read."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from model.contract.encode import Encoder
from model.contract.ids import keys
from model.contract.schema import Schema
from model.contract.store import history_key, profile_key
from service.binary import MEDIA_TYPE
from tests.support import ITEMS, Service, problem

HISTORY = [{"item_id": f"i{n}", "ts": n, "rating": "4"} for n in range(8)]
ASKED = ["i3", "i1", "unheard-of", "i3"]


@pytest.fixture
def user(redis_url: str, encoder: Encoder, schema: Schema) -> str:
    """A user with a history and a profile."""
    with Redis.from_url(redis_url) as client:
        client.set(history_key("din", "ü1", schema.layout), encoder.records(HISTORY).tobytes())
        client.set(profile_key("din", "ü1"), b'{"gender":"F","income":15}')
    return "ü1"


def columns(service: Service, **body: Any) -> httpx.Response:
    return service.client.post("/score/columns", json=body)


def binary(service: Service, body: bytes) -> httpx.Response:
    headers = {"Content-Type": MEDIA_TYPE}
    return service.client.post("/score/columns", content=body, headers=headers)


def packed(user: str, found: np.ndarray, timeout_ms: int = 0) -> bytes:
    name = user.encode()
    header = struct.pack("<4sIII", b"DIN1", len(found), timeout_ms, len(name))
    return header + name + bytes(-len(name) % 8) + found.astype("<u8").tobytes()


def rows(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.score(**body)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_columns_give_the_scores_of_rows(service: Service, user: str) -> None:
    """The same user, candidates and context, with nothing per candidate but a number."""
    by_row = rows(service, user_id=user, candidates=ASKED, context={"hour": 7})
    answer = columns(service, user_id=user, item_ids=ASKED, context={"hour": 7})
    assert answer.status_code == 200
    body = answer.json()
    np.testing.assert_allclose(body["ctr"], [each["ctr"] for each in by_row["scores"]], atol=1e-7)
    assert np.std(body["ctr"]) > 0.01
    assert body["unknown"] == [2]
    for name in ("model", "version", "history_length", "degraded"):
        assert body[name] == by_row[name]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body["timing_ms"]) == {"store", "queue", "model", "total"}


def test_fields_come_in_columns(service: Service, user: str) -> None:
    """A value replaces the catalogue's, null leaves it; of ad fields null is missing."""
    candidates = [
        {"item_id": "i3", "genre": ["noir"], "price": 1.5},
        {"item_id": "i1"},
        {"item_id": "i2", "price": 0.5},
    ]
    by_row = rows(service, user_id=user, candidates=candidates)
    fields = {"genre": [["noir"], None, None], "price": [1.5, None, 0.5]}
    body = columns(service, user_id=user, item_ids=["i3", "i1", "i2"], fields=fields).json()
    np.testing.assert_allclose(body["ctr"], [each["ctr"] for each in by_row["scores"]], atol=1e-7)
    plain = columns(service, user_id=user, item_ids=["i3", "i1", "i2"]).json()["ctr"]
    assert abs(np.subtract(plain, body["ctr"])).min(initial=1, where=[True, False, True]) > 1e-6


def test_a_history_and_a_profile_may_come_with_columns(service: Service) -> None:
    """Then the store is not needed."""
    asked = {"user_id": 7, "history": HISTORY, "user": {"gender": "F", "income": 15}}
    by_row = rows(service, candidates=["i3", 7], **asked)
    body = columns(service, item_ids=["i3", 7], **asked).json()
    np.testing.assert_allclose(body["ctr"], [each["ctr"] for each in by_row["scores"]], atol=1e-7)
    assert body["unknown"] == [1]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"item_ids": ["i1"]}, "user_id"),
        ({"user_id": "u"}, "item_ids"),
        ({"user_id": "u", "item_ids": []}, "item_ids"),
        ({"user_id": "u", "item_ids": ["i1"] * 2001}, "item_ids"),
        ({"user_id": "u", "item_ids": "i1"}, "item_ids"),
        ({"user_id": "u", "item_ids": ["i1", None]}, "item_ids[1]"),
        ({"user_id": "u", "item_ids": ["i1", True]}, "item_ids[1]"),
        ({"user_id": "u", "item_ids": ["i1", 1.5]}, "item_ids[1]"),
        ({"user_id": "u", "item_ids": ["i1", ["i2"]]}, "item_ids[1]"),
        ({"user_id": "u", "item_ids": ["i1", {"item_id": "i2"}]}, "item_ids[1]"),
        ({"user_id": "u", "item_ids": ["i1", ""]}, "item_ids[1]"),
        ({"user_id": "u", "item_ids": ["i1"], "explain": 3}, "explain"),
        ({"user_id": "u", "item_ids": ["i1"], "fields": []}, "fields"),
        ({"user_id": "u", "item_ids": ["i1"], "fields": {"s3cr3t": [1]}}, "fields.s3cr3t"),
        ({"user_id": "u", "item_ids": ["i1"], "fields": {"item_id": ["i"]}}, "fields.item_id"),
        ({"user_id": "u", "item_ids": ["i1"], "fields": {"price": [1, 2]}}, "fields.price"),
        ({"user_id": "u", "item_ids": ["i1"], "fields": {"price": 1}}, "fields.price"),
        ({"user_id": "u", "item_ids": ["i1"], "fields": {"price": ["x"]}}, "fields.price[0]"),
        (
            {"user_id": "u", "item_ids": ["i1", "i2"], "fields": {"genre": [None, "x"]}},
            "fields.genre[1]",
        ),
        ({"user_id": "u", "item_ids": ["i1"], "context": {"x": 1}}, "context.x"),
        ({"user_id": "u", "item_ids": ["i1"], "history": [{"ts": 1}]}, "history[0].item_id"),
    ],
)
def test_bad_columns_are_refused_by_name(
    service: Service, body: dict[str, Any], field: str
) -> None:
    """The field is named in the form's own words, and no value comes back."""
    answer = columns(service, **body)
    assert answer.status_code == 422
    assert problem(answer)["field"] == field


def test_numbers_that_json_cant_hold_are_refused_in_columns(service: Service) -> None:
    """NaN, overflow, over 64 bits and lone surrogates, as in rows."""
    for value in ("NaN", "1e400", "99999999999999999999", '"\\ud800"'):
        body = f'{{"user_id": "u", "item_ids": ["i1", {value}]}}'
        headers = {"Content-Type": "application/json"}
        answer = service.client.post("/score/columns", content=body, headers=headers)
        assert answer.status_code == 422, value
        assert problem(answer)["field"] == "item_ids[1]"


def test_binary_gives_the_scores_of_rows(service: Service, user: str) -> None:
    """The header says what the JSON answer says; probabilities are 32-bit floats in order."""
    by_row = rows(service, user_id=user, candidates=ASKED)
    answer = binary(service, packed(user, keys(ASKED)))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == MEDIA_TYPE
    header = struct.unpack_from("<4sIIIQII", answer.content)
    assert header == (b"DIN1", 4, 1, by_row["history_length"], by_row["version"], 0, 1)
    found = np.frombuffer(answer.content, "<f4", 4, 32)
    np.testing.assert_allclose(found, [each["ctr"] for each in by_row["scores"]], atol=1e-7)
    assert np.frombuffer(answer.content, "<u4", 1, 48).tolist() == [2]
    assert len(answer.content) == 52


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{}", "body"),
        (b"DIN2" + packed("u", keys(["i1"]))[4:], "body"),
        (packed("u", keys(["i1"]))[:-1], "body"),
        (packed("u", keys(["i1"])) + b"\0", "body"),
        (packed("u", keys([])), "candidates"),
        (packed("u", keys(["i1"] * 2001)), "candidates"),
        (struct.pack("<4sIII", b"DIN1", 1, 0, 2**32 - 1), "body"),
        (packed("u", np.array([5, 0])), "candidates[1]"),
        (packed("", keys(["i1"])), "user_id"),
        (packed("u" * 257, keys(["i1"])), "user_id"),
        (packed("u", keys(["i1"])).replace(b"u", b"\xff"), "user_id"),
        (packed("u", keys(["i1"]), timeout_ms=60_001), "timeout_ms"),
    ],
)
def test_bad_binary_is_refused_by_name(service: Service, body: bytes, field: str) -> None:
    """A header that lies, a key of 0 (which is no id), a user that is no text."""
    answer = binary(service, body)
    assert answer.status_code == 422
    assert problem(answer)["field"] == field


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=80), head=st.booleans())
def test_no_bytes_break_the_binary_form(service: Service, data: bytes, head: bool) -> None:
    """Whatever is sent is scored or refused."""
    answer = binary(service, b"DIN1" * head + data)
    assert answer.status_code in {200, 422}


def test_each_route_takes_its_own_forms_only(service: Service) -> None:
    """Another Content-Type is refused, and says which there are."""
    for path, kind in (("/score", MEDIA_TYPE), ("/score/columns", "text/plain")):
        answer = service.client.post(path, content=b"DIN1", headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert problem(answer)["field"] == "Content-Type"
    assert columns(service, user_id="u", candidates=["i1"]).status_code == 422


def test_both_routes_are_documented(service: Service) -> None:
    """/openapi.json has the request and answer of each form, and a generated client can ask."""
    paths = service.client.get("/openapi.json").json()["paths"]
    body = paths["/score/columns"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", MEDIA_TYPE}
    schema = body["application/json"]["schema"]
    assert {"user_id", "item_ids", "fields"} <= set(schema["properties"])
    answer = paths["/score/columns"]["post"]["responses"]["200"]["content"]
    assert "ctr" in answer["application/json"]["schema"]["properties"]
    example = schema["example"]
    assert columns(service, **json.loads(json.dumps(example))).status_code == 200
    assert set(paths["/score"]["post"]["requestBody"]["content"]) == {"application/json"}


def test_all_items_at_once_and_again_give_the_same(service: Service, user: str) -> None:
    """What is remembered of ids changes no score."""
    first = columns(service, user_id=user, item_ids=ITEMS).json()["ctr"]
    again = columns(service, user_id=user, item_ids=[*ITEMS, *ITEMS]).json()["ctr"]
    np.testing.assert_allclose(again, [*first, *first], atol=1e-7)
