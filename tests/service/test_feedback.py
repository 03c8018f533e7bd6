"""Feedback over HTTP: events, erasure and the score log of a running service."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from redis import Redis

from model.contract.batch import Batch
from model.contract.bundle import Bundle
from model.contract.encode import Encoder, Request
from model.contract.ids import keys
from model.contract.log import Erased, Event, Scored, Snapshot, digests, load
from model.contract.schema import Schema
from model.contract.store import log_key, partition, profile_key
from service import binary
from service.app import create_app
from service.engine import OnnxEngine, Scores
from service.events import EventLog
from service.lineup import place
from service.score_log import ScoreLog
from service.settings import Settings
from service.telemetry import Telemetry
from tests.support import RedisProcess, Service, free_port, problem

RATIO = 0.5


class Held(OnnxEngine):
    """A real engine that a test can hold while it is at work."""

    go, came = threading.Event(), threading.Event()

    @classmethod
    def opening(cls, graph: Path) -> Held:
        cls.go.set()
        return cls.open(graph, "cpu")

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        self.came.set()
        assert self.go.wait(120)
        return super().run(batch, weight)


@pytest.fixture(scope="module")
def logging_service(
    repository: Path, redis_process: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that logs all that it answers."""
    log = tmp_path_factory.mktemp("feedback") / "log"
    environment = {"DINSERVE_LOG_SHARE": "1"}
    with Service(repository, redis_process.url, log=log, environment=environment) as running:
        yield running


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url) as opened:
        yield opened


def event(ago: int = 0, **more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"user_id": "u", "item_id": "i1", "action": "click", "ts": now - ago, **more}


def entries(client: Any, user: str, count: int) -> list[Any]:
    """The log of a user's partition, once it holds ``count`` entries."""
    deadline = time.monotonic() + 120
    while True:
        found = client.xrange(log_key("din", partition(user)))
        if len(found) >= count or time.monotonic() > deadline:
            return [load(fields[b"k"].decode(), fields[b"d"]) for _, fields in found]
        time.sleep(0.02)


def test_the_next_score_sees_an_event(client: Any, logging_service: Service) -> None:
    """What was just posted is in the history that is looked at."""
    asked = {"user_id": "u", "candidates": ["i1", "i2"], "explain": 1}
    before = logging_service.score(**asked).json()
    answer = logging_service.client.post("/events", json=event(rating=4))
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 1,
        "duplicate": 0,
        "refused": 0,
        "results": [{"status": "accepted"}],
    }
    after = logging_service.score(**asked).json()
    assert (before["history_length"], after["history_length"]) == (0, 1)
    assert after["scores"][0]["because"][0]["item_id"] == "i1"


def test_several_events_are_answered_one_by_one(client: Any, logging_service: Service) -> None:
    """Sound ones are taken, bad ones named, and a retry of all counts nothing twice."""
    body = {"events": [event(3), event(2, item_id=""), event(-3600), event(1, user_id="v")]}
    first = logging_service.client.post("/events", json=body).json()
    assert [each["status"] for each in first["results"]] == [
        "accepted",
        "refused",
        "refused",
        "accepted",
    ]
    assert [each.get("field") for each in first["results"]] == [None, "item_id", "ts", None]
    again = logging_service.client.post("/events", json=body).json()
    assert (again["accepted"], again["duplicate"], again["refused"]) == (0, 2, 2)
    assert logging_service.score(user_id="v", candidates=["i1"]).json()["history_length"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({}, "action"),
        ({"events": []}, "events"),
        ({"events": {}}, "events"),
        ({"events": [{}] * 1001}, "events"),
        ({"events": [], "user_id": "u"}, "body"),
    ],
)
def test_a_body_that_is_no_event_is_a_problem(
    body: Any, field: str, client: Any, logging_service: Service
) -> None:
    """422 names what was wrong; nothing is stored."""
    found = problem(logging_service.client.post("/events", json=body))
    assert (found["status"], found["field"]) == (422, field)
    assert not client.keys("din:{*")


SOUND = b'{"user_id": "w", "item_id": "i1", "action": "click", "ts": TS}'


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (SOUND.replace(b'"w"', b'"w\\ud83d"'), "user_id"),
        (SOUND.replace(b'"i1"', b'"\\ude00"'), "item_id"),
        (SOUND.replace(b'"i1"', b'"\xed\xa0\x80"'), "item_id"),
        (SOUND.replace(b'"i1"', b"18446744073709551616"), "item_id"),
        (SOUND.replace(b'"i1"', b"1" + b"0" * 5000), "item_id"),
        (SOUND.replace(b'"click"', b'"click\\ud800"'), "action"),
        (SOUND.replace(b"TS", b"-9223372036854775809"), "ts"),
        (SOUND.replace(b"TS", b"NaN"), "ts"),
        (SOUND.replace(b"}", b', "rating": 1267650600228229401496703205376}'), "rating"),
        (SOUND.replace(b"}", b', "price": 1e400}'), "price"),
        (SOUND.replace(b"}", b', "genre": ["noir", "\\udfff"]}'), "genre"),
        (SOUND.replace(b"}", b', "request_id": "r\\ud800"}'), "request_id"),
        (SOUND.replace(b"}", b', "query": "caf\\ud83d"}'), "event"),
        (SOUND.replace(b"}", b', "query": {"deep": Infinity}}'), "event"),
        (SOUND.replace(b"}", b', "caf\\ud83d": 1}'), "event"),
        (b"99999999999999999999", "event"),
        (b'"\\ud800"', "event"),
    ],
)
def test_an_event_that_can_not_be_read_harms_no_other(
    part: bytes, field: str, client: Any, logging_service: Service
) -> None:
    """It is refused by itself and named; who sends all again gets on."""
    ids = (b'"u"', b'"v"', b"9223372036854775808")
    now = str(int(time.time())).encode()
    sound = [SOUND.replace(b'"w"', each) for each in ids]
    body = b'{"events": [%b]}' % b",".join([*sound[:1], part, *sound[1:]]).replace(b"TS", now)
    for status in ("accepted", "duplicate"):
        answer = logging_service.client.post(
            "/events", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 200
        found = answer.json()["results"]
        assert [each["status"] for each in found] == [status, "refused", status, status]
        assert found[1]["field"] == field
        assert found[1]["reason"].startswith("expected ")
    assert len(entries(client, "9223372036854775808", 1)) >= 1
    asked = {"user_id": 9223372036854775808, "candidates": ["i1"]}
    assert logging_service.score(**asked).json()["history_length"] == 1


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"user_id": NaN}', "application/json", 422),
        (b'{"ts": 1e400}', "application/json", 422),
        (b'{"user_id": "\\ud800"}', "application/json", 422),
        (b'{"events": NaN}', "application/json", 422),
        (b'{"events": [], "\\ud800": 1}', "application/json", 422),
        (b"18446744073709551616", "application/json", 422),
        (b"{", "application/json", 400),
        (b'{"events": [{"user_id": "\xff"}]}', "application/json", 400),
        ('{"user_id": "u"}'.encode("utf-16"), "application/json", 400),
        (b'{"events": [' + b"[" * 5000 + b"]" * 5000 + b"]}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
)
def test_hostile_bodies_are_problems(
    content: bytes, kind: str, status: int, logging_service: Service
) -> None:
    """Where it is not one event of several, as strict as a score's."""
    answer = logging_service.client.post("/events", content=content, headers={"content-type": kind})
    assert problem(answer)["status"] == status


def test_a_single_event_that_is_refused_is_a_problem(logging_service: Service) -> None:
    """Who sends one need not read a list."""
    found = problem(logging_service.client.post("/events", json=event(-3600)))
    assert (found["status"], found["field"]) == (422, "ts")
    assert "in the future" in found["detail"]


def test_a_user_is_forgotten(client: Any, logging_service: Service) -> None:
    """Ids may hold anything, slashes too; the next score knows nothing."""
    user = "a/ü b"
    logging_service.client.post("/events", json=event(1, user_id=user))
    client.set(profile_key("din", user), b'{"gender":"F"}')
    answer = logging_service.client.delete("/users/a%2F%C3%BC%20b")
    assert answer.status_code == 200
    assert answer.json() == {"keys": 3, "entries": 1}
    assert logging_service.score(user_id=user, candidates=["i1"]).json()["history_length"] == 0
    found = problem(logging_service.client.delete("/users/" + "x" * 300))
    assert (found["status"], found["field"]) == (422, "user_id")


def test_a_score_is_logged_with_all_that_it_was_made_from(
    client: Any, logging_service: Service, encoder: Encoder, schema: Schema
) -> None:
    """Ids, probabilities, raw fields, the history's snapshot, and a digest per encoded field that
    the same raw values give anywhere."""
    client.set(profile_key("din", "u"), b'{"gender":"F","income":15}')
    logging_service.client.post("/events", json=event(5, rating=3))
    asked = {
        "user_id": "u",
        "candidates": [{"item_id": "i1", "price": 1.5}, "i2", {"item_id": "never"}],
        "context": {"hour": 7},
        "user": {"income": 30},
    }
    answer = logging_service.client.post("/score", json=asked, headers={"X-Request-ID": "r-1"})
    clicked, scored = entries(client, "u", 2)
    assert isinstance(clicked, Event)
    assert isinstance(scored, Scored)
    assert (scored.request_id, scored.model, scored.version) == ("r-1", "toy", 1)
    assert scored.schema == schema.fingerprint
    assert scored.candidates == ["i1", "i2", "never"]
    assert scored.probability == {"ctr": [each["ctr"] for each in answer.json()["scores"]]}
    assert scored.unknown == [2]
    assert (scored.user, scored.context) == ({"gender": "F", "income": 30}, {"hour": 7})
    assert scored.columns == {"price": [1.5, None, None]}
    records = encoder.records([clicked.raw(schema)])
    assert scored.history == Snapshot.of(records)
    batch, _ = encoder.encode(
        Request(
            candidates=scored.candidates,
            history=records,
            user=scored.user,
            context=scored.context,
            columns=scored.columns,
        )
    )
    assert scored.rows == digests(batch, schema)


def test_every_form_of_a_request_is_logged(
    client: Any, logging_service: Service, repository: Path
) -> None:
    """Columns as they came; of the binary form's keys those that the catalogue names; a history
    that the caller gave is logged itself."""
    raw = [{"item_id": "i4", "ts": 5}]
    columns = {"user_id": "u", "item_ids": ["i1", 7], "fields": {"price": [None, 2]}}
    logging_service.client.post("/score/columns", json={**columns, "history": raw})
    found = keys(["i3", "never"])
    body = binary._REQUEST.pack(b"DIN1", 2, 0, 1) + b"u".ljust(8, b"\0") + found.tobytes()
    logging_service.client.post(
        "/score/columns", content=body, headers={"content-type": binary.MEDIA_TYPE}
    )
    first, second = entries(client, "u", 2)
    assert first.candidates == ["i1", "7"]
    assert first.columns == {"price": [None, 2]}
    assert first.history.raw == raw
    encoder = Bundle.open(repository / "toy" / "1").encoder
    assert first.history.digest == Snapshot.of(encoder.records(raw)).digest
    assert second.candidates == ["i3", None]
    assert second.unknown == [1]


@pytest.mark.parametrize("erased", [True, False])
def test_a_score_that_was_under_way_when_its_user_was_erased_is_not_logged(
    erased: bool, client: Any, repository: Path, redis_url: str
) -> None:
    """Its stamp is from before the profile was read; only the tombstone is left."""
    client.set(profile_key("din", "u"), b'{"gender":"F"}')

    async def scenario() -> tuple[int, float]:
        settings = Settings(
            repository=repository,
            redis_url=redis_url,
            timeout_ms=30_000,
            store_timeout_ms=10_000,
            event_timeout_ms=10_000,
            log_share=1.0,
        )
        telemetry = Telemetry()
        app = create_app(settings, open_engine=Held.opening, telemetry=telemetry)
        transport = httpx.ASGITransport(app)
        async with (
            asyncio.timeout(60),
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as asking,
        ):
            while (await asking.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            Held.go.clear()
            Held.came.clear()
            body = {"user_id": "u", "candidates": ["i1"]}
            score = asyncio.create_task(asking.post("/score", json=body))
            try:
                assert await asyncio.to_thread(Held.came.wait, 30)
                middle = int(time.time() * 1000)
                if erased:
                    assert (await asking.delete("/users/u")).json() == {"keys": 1, "entries": 0}
                await asyncio.sleep(0.005)
            finally:
                Held.go.set()
            assert (await score).status_code == 200
            counted = telemetry.logged.labels
            while not counted("erased")._value.get() + counted("logged")._value.get():
                await asyncio.sleep(0.01)
            return middle, counted("erased")._value.get()

    middle, refused = asyncio.run(scenario())
    [left] = entries(client, "u", 1)
    assert refused == erased
    assert isinstance(left, Erased if erased else Scored)
    if isinstance(left, Scored):
        assert left.user == {"gender": "F"}
        assert left.received <= middle


def test_an_answer_that_can_not_be_logged_keeps_no_other_from_it(
    client: Any, logging_service: Service
) -> None:
    """JSON may be nested deeper than it can be written; the next answer is logged all the same."""
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    refused = logging_service.score(
        user_id="u", candidates=[{"item_id": "i1", "genre": ["a", "b", deep]}]
    )
    assert problem(refused)["field"] == "candidates[0].genre"
    raw = [{"item_id": "i1", "ts": 1, "rating": None}]
    logging_service.score(user_id="u", candidates=["i1"], history=raw)
    [scored] = entries(client, "u", 1)
    assert scored.history.raw == raw


def test_a_score_log_goes_on_after_what_it_can_not_write(encoder: Encoder) -> None:
    """The bad one is counted and gone."""

    class Bad:
        def scored(self) -> Any:
            raise ValueError("no JSON")

    async def scenario() -> tuple[float, float]:
        telemetry = Telemetry()
        events = EventLog(
            f"redis://127.0.0.1:{free_port()}/0",
            prefix="din",
            timeout=1,
            connections=1,
            horizon_ms=1,
            tombstone_ms=1,
            limit=1,
        )
        async with events, ScoreLog(events, share=1.0, telemetry=telemetry) as log:
            for _ in range(3):
                log.add(Bad())  # type: ignore[arg-type]
                await asyncio.sleep(0.05)
            return telemetry.logged.labels("failed")._value.get(), len(log._waiting)

    assert asyncio.run(scenario()) == (3, 0)


def test_a_share_of_the_requests_is_logged_by_their_id(
    client: Any, repository: Path, redis_url: str, tmp_path: Path
) -> None:
    """The same ids wherever they are answered, and about as many as asked for."""
    share = {"DINSERVE_LOG_SHARE": str(RATIO)}
    names = [f"r{n}" for n in range(200)]
    expected = {name for name in names if place("dinserve log:", name) < RATIO}
    assert 70 <= len(expected) <= 130
    with Service(repository, redis_url, log=tmp_path / "log", environment=share) as service:
        for name in names:
            headers = {"X-Request-ID": name}
            service.client.post(
                "/score", json={"user_id": "u", "candidates": ["i1"]}, headers=headers
            )
        logged = entries(client, "u", len(expected))
    assert {each.request_id for each in logged} == expected
    assert client.xlen(log_key("din", partition("u"))) == len(expected)


def test_no_answer_waits_for_a_log_that_can_not_be_written(
    repository: Path, redis_process: RedisProcess, tmp_path: Path
) -> None:
    """Redis away: scores degrade, events are refused for now, and the service ends in time."""
    nowhere = "redis://127.0.0.1:1/0"
    share = {"DINSERVE_LOG_SHARE": "1"}
    with Service(repository, nowhere, log=tmp_path / "log", environment=share) as service:
        answer = service.score(user_id="u", candidates=["i1"])
        assert answer.status_code == 200
        assert answer.json()["degraded"] == "history_unavailable"
        refused = service.client.post("/events", json=event())
        assert problem(refused)["status"] == 503
        assert refused.headers["retry-after"]
        assert problem(service.client.delete("/users/u"))["status"] == 503


def test_feedback_is_documented(logging_service: Service) -> None:
    """/openapi.json says what may be sent and what comes back."""
    paths = httpx.get(f"{logging_service.url}/openapi.json").json()["paths"]
    sent = paths["/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert len(sent["anyOf"]) == 2
    assert "200" in paths["/users/{user_id}"]["delete"]["responses"]


def test_probabilities_of_the_log_are_those_of_the_answer_to_the_last_bit(
    client: Any, logging_service: Service
) -> None:
    """JSON keeps a float64 whole."""
    items = [f"i{n}" for n in range(50)]
    answer = logging_service.score(user_id="w", candidates=items)
    [scored] = entries(client, "w", 1)
    answered = [each["ctr"] for each in orjson.loads(answer.content)["scores"]]
    assert np.array_equal(scored.probability["ctr"], answered)
