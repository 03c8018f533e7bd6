"""Log lines: JSON, with the request they are about, and never with who or what it was about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import REQUEST, JsonLines
from tests.service.test_workers import NO_REDIS
from tests.support import Service, publish_toy, spoilt_for

SECRET = "s3cr3t"
ASK = {"user_id": f"{SECRET}-user", "candidates": ["i1", f"{SECRET}-item"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without Redis, whose model can't score item i40 for who has seen it."""
    folder = tmp_path_factory.mktemp("alone")
    publish_toy(folder / "repository", change_graph=spoilt_for("i40", 1e10))
    with Service(folder / "repository", NO_REDIS, log=folder / "log") as running:
        yield running


def lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.logs().splitlines()]


def test_a_line_about_a_request_has_its_id(alone: Service) -> None:
    """The caller's id or one of the service's own, which the answer has too; other lines none."""
    event = {"user_id": f"{SECRET}-user", "item_id": "i1", "action": "click", "ts": 1_795_305_600}
    for headers in ({"X-Request-ID": "my-id-1"}, {}):
        lost = alone.client.post("/events", json=event, headers=headers)
        assert lost.status_code == 503
    about: dict[str | None, list[str]] = {}
    for line in lines(alone):
        assert {"time", "level", "logger", "message"} <= set(line)
        about.setdefault(line.get("request_id"), []).append(line["message"])
    for identity in ("my-id-1", lost.headers["x-request-id"]):
        assert about[identity] == [
            "the store did not take a write: ConnectionError (Connection refused)"
        ]
    assert any(message.startswith("provider ") for message in about[None])


def test_no_line_names_a_user_or_an_item(alone: Service) -> None:
    """Whatever works or fails: bad fields, bad routes, a model that fails, an erasure."""
    alone.score(**ASK)
    alone.score(**ASK, context={SECRET: SECRET})
    alone.client.post(
        "/score", content=SECRET.encode(), headers={"Content-Type": "application/json"}
    )
    alone.client.post("/score/columns", json={"user_id": SECRET, "item_ids": [SECRET]})
    alone.client.post("/events", json={"user_id": SECRET, "item_id": SECRET})
    alone.client.delete(f"/users/{SECRET}")
    alone.client.get(f"/{SECRET}?{SECRET}={SECRET}")
    seen = [{"item_id": "i40", "ts": 1}]
    failed = alone.score(**{**ASK, "candidates": [SECRET, "i40"]}, history=seen)  # and ends it
    assert failed.status_code == 500
    assert len(lines(alone)) > 3
    assert SECRET not in alone.logs()


def test_a_line_has_no_more_than_it_says() -> None:
    """The worker's number, the request's id and a traceback only where there are such."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "said %d", (7,), None)
    plain = json.loads(JsonLines().format(record))
    assert set(plain) == {"time", "level", "logger", "message"}
    assert plain["message"] == "said 7"
    token = REQUEST.set("abc")
    try:
        told = json.loads(JsonLines(worker=3).format(record))
    finally:
        REQUEST.reset(token)
    assert set(told) == {*plain, "worker", "request_id"}
    assert (told["worker"], told["request_id"]) == (3, "abc")
