"""The service as a process: real HTTP, a real Redis, a real model."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from model.contract.batch import Batch
from model.contract.encode import Encoder, Request
from model.contract.repository import Repository
from model.contract.schema import Schema
from model.contract.store import history_key, profile_key
from service.app import create_app
from service.engine import OnnxEngine, Scores
from service.protocol import MAX_HEAD_BYTES
from service.scorer import expit
from service.settings import Settings
from tests.support import (
    ITEMS,
    ROOT,
    Service,
    problem,
    publish_toy,
    raw_exchange,
    running_redis,
)

SECRET = "s3cr3t"
HISTORY = [{"item_id": f"i{n}", "ts": n, "rating": "4"} for n in range(8)]


@pytest.fixture
def stored(redis_url: str, encoder: Encoder, schema: Schema) -> str:
    """A user with a history and a profile."""
    with Redis.from_url(redis_url) as client:
        records = encoder.records(HISTORY)
        client.set(history_key("din", "known", schema.layout), records.tobytes())
        client.set(profile_key("din", "known"), b'{"gender":"F","income":15}')
    return "known"


def reference(repository: Path, encoder: Encoder, **raw: Any) -> list[float]:
    """Probabilities straight from the contract and the graph."""
    engine = OnnxEngine.open(Repository(repository, "toy").folder / "1" / "model.onnx", "cpu")
    history = encoder.records(raw.pop("history", []))
    batch, _ = encoder.encode(Request(history=history, **raw))
    return list(expit(engine.run(batch).logit[:, 0].astype(np.float64)))


def ctrs(body: dict[str, Any]) -> list[float]:
    return [score["ctr"] for score in body["scores"]]


def test_a_score_is_the_graphs_on_the_encoded_request(
    service: Service, repository: Path, encoder: Encoder, stored: str
) -> None:
    """History and profile come from Redis; everything asked is answered, in the order asked."""
    answer = service.score(
        user_id=stored,
        candidates=["i3", {"item_id": "i1", "genre": ["noir"], "price": 1.5}, "unheard-of", "i3"],
        context={"hour": 7},
    )
    assert answer.status_code == 200
    body = answer.json()
    expected = reference(
        repository,
        encoder,
        candidates=["i3", "i1", "unheard-of", "i3"],
        given=[{}, {"genre": ["noir"], "price": 1.5}, {}, {}],
        history=HISTORY,
        user={"gender": "F", "income": 15},
        context={"hour": 7},
    )
    np.testing.assert_allclose(ctrs(body), expected, atol=1e-6)
    assert [score["item_id"] for score in body["scores"]] == ["i3", "i1", "unheard-of", "i3"]
    statuses = [score["status"] for score in body["scores"]]
    assert statuses == ["known", "known", "unknown_item", "known"]
    assert (body["model"], body["version"], body["degraded"]) == ("toy", 1, None)
    assert body["history_length"] == 5
    assert set(body["timing_ms"]) == {"store", "queue", "model", "total"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert all("because" not in score for score in body["scores"])


def test_overrides_win_over_the_profile(
    service: Service, repository: Path, encoder: Encoder, stored: str
) -> None:
    """User fields of the request replace the stored ones, one by one."""
    body = service.score(user_id=stored, candidates=["i3"], user={"gender": "M"}).json()
    user = {"gender": "M", "income": 15}
    expected = reference(repository, encoder, candidates=["i3"], history=HISTORY, user=user)
    np.testing.assert_allclose(ctrs(body), expected, atol=1e-6)


def test_a_history_in_the_request_replaces_the_stored_one(
    service: Service, repository: Path, encoder: Encoder, stored: str
) -> None:
    """It is put in the order of time, cut to what the model looks at, and named in because."""
    history = [{"item_id": item, "ts": ts} for item, ts in (("i9", 5), (77, 3), ("old", 1))]
    body = service.score(
        user_id=stored, candidates=["i3", "i4"], history=history, user={"gender": "F"}, explain=20
    ).json()
    user = {"gender": "F", "income": 15}
    expected = reference(repository, encoder, candidates=["i3", "i4"], history=history, user=user)
    np.testing.assert_allclose(ctrs(body), expected, atol=1e-6)
    assert body["history_length"] == 3
    for score in body["scores"]:
        assert {reason["item_id"] for reason in score["because"]} == {"i9", 77, "old"}


def test_because_names_the_heaviest_behaviours(
    service: Service, encoder: Encoder, repository: Path, stored: str
) -> None:
    """The behaviours of largest |weight| come first, with the weights of the graph."""
    body = service.score(user_id=stored, candidates=["i3", "i4"], explain=2).json()
    engine = OnnxEngine.open(repository / "toy/1/model.onnx", "cpu")
    request = Request(candidates=["i3", "i4"], history=encoder.records(HISTORY))
    weight = engine.run(encoder.encode(request)[0], weight=True).weight
    assert weight is not None
    looked_at = [behaviour["item_id"] for behaviour in HISTORY[-5:]]
    for row, score in zip(weight, body["scores"], strict=True):
        order = sorted(range(5), key=lambda at: -abs(row[at]))[:2]
        assert [reason["item_id"] for reason in score["because"]] == [looked_at[at] for at in order]
        np.testing.assert_allclose(
            [reason["weight"] for reason in score["because"]], row[order], atol=1e-6
        )


def test_a_behaviour_outside_the_catalogue_has_no_name(
    service: Service, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """Redis holds keys; a key that the catalogue does not know is null in because."""
    with Redis.from_url(redis_url) as client:
        records = encoder.records([{"item_id": "gone", "ts": 1}])
        client.set(history_key("din", "u", schema.layout), records.tobytes())
    [score] = service.score(user_id="u", candidates=["i1"], explain=3).json()["scores"]
    assert [reason["item_id"] for reason in score["because"]] == [None]


def test_unknown_user_unknown_items_and_no_history_are_scored(
    service: Service, redis_url: str
) -> None:
    """Nothing known at all still gives finite scores, and is said, not degraded."""
    body = service.score(user_id=2**63, candidates=["?", 5], explain=3).json()
    assert body["degraded"] is None
    assert body["history_length"] == 0
    assert [score["status"] for score in body["scores"]] == ["unknown_item"] * 2
    assert [score["because"] for score in body["scores"]] == [[], []]
    assert all(0 < ctr < 1 for ctr in ctrs(body))


@pytest.mark.parametrize("count", [1, 2, 64, 2000])
def test_candidates_from_one_to_two_thousand(
    count: int, service: Service, repository: Path, encoder: Encoder, stored: str
) -> None:
    """Any number of candidates in the limits is scored, each as it would be alone."""
    candidates = [ITEMS[n % len(ITEMS)] for n in range(count)]
    body = service.score(user_id=stored, candidates=candidates).json()
    expected = reference(
        repository,
        encoder,
        candidates=candidates,
        history=HISTORY,
        user={"gender": "F", "income": 15},
    )
    np.testing.assert_allclose(ctrs(body), expected, atol=1e-5)


def test_concurrent_requests_get_their_own_answers(service: Service, redis_url: str) -> None:
    """Requests that share calls of the model do not mix."""
    alone = {item: ctrs(service.score(user_id="u", candidates=[item]).json()) for item in ITEMS}

    def one(item: str) -> None:
        assert ctrs(service.score(user_id="u", candidates=[item]).json()) == pytest.approx(
            alone[item], abs=1e-6
        )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, ITEMS * 4))


VALUES: list[tuple[dict[str, Any], str]] = [
    ({"candidates": [{"item_id": "i1"}, {"item_id": None}]}, "candidates[1].item_id"),
    ({"candidates": [{}]}, "candidates[0].item_id"),
    ({"candidates": ["i1", True]}, "candidates[1].item_id"),
    ({"candidates": ["i1", ["s3cr3t"]]}, "candidates[1].item_id"),
    ({"candidates": ["i1", 1.0]}, "candidates[1].item_id"),
    ({"candidates": ["i" * 257]}, "candidates[0].item_id"),
    ({"candidates": [{"item_id": "i1", "genre": "s3cr3t"}]}, "candidates[0].genre"),
    ({"candidates": [{"item_id": "i1", "genre": [{}]}]}, "candidates[0].genre"),
    ({"candidates": ["i1", {"item_id": "i1", "price": "s3cr3t"}]}, "candidates[1].price"),
    ({"candidates": ["i1", {"item_id": "i1", "price": True}]}, "candidates[1].price"),
    ({"user": {"income": "s3cr3t"}}, "user.income"),
    ({"user": {"gender": {"s3cr3t": 1}}}, "user.gender"),
    ({"context": {"hour": 7.5}}, "context.hour"),
    ({"history": [{"item_id": "i1"}]}, "history[0].ts"),
    ({"history": [{"ts": 1}]}, "history[0].item_id"),
    ({"history": [{"item_id": "i1", "ts": 1}, {"item_id": "i", "ts": "s3cr3t"}]}, "history[1].ts"),
    ({"history": [{"item_id": "i1", "ts": 2**63}]}, "history[0].ts"),
    ({"history": [{"item_id": "i1", "ts": 1, "rating": []}]}, "history[0].rating"),
    ({"surprise": 1}, "surprise"),
    ({"timeout_ms": 0}, "timeout_ms"),
]


@pytest.mark.parametrize(("fields", "field"), VALUES)
def test_a_bad_value_is_named_and_not_echoed(
    fields: dict[str, Any], field: str, service: Service
) -> None:
    """What only the encoder finds is a problem document like any other."""
    body = {"user_id": "u", "candidates": ["i1"], **fields}
    answer = service.client.post("/score", content=json.dumps(body), headers=JSON_TYPE)
    assert answer.status_code == 422
    assert problem(answer)["field"] == field
    assert SECRET not in answer.text


JSON_TYPE = {"Content-Type": "application/json"}
GOOD = b'{"user_id": "u", "candidates": ["i1"]}'


def request(body: bytes, *headers: str, target: str = "POST /score") -> bytes:
    lines = [f"{target} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sized(body: bytes, *headers: str) -> bytes:
    return request(body, f"Content-Length: {len(body)}", *headers)


CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


@pytest.mark.parametrize(
    ("data", "status", "field"),
    [
        (sized(b"\xff\xfe"), 400, "body"),
        (sized(b'{"user_id": "\\ud800", "candidates": ["i1"]}'), 422, "user_id"),
        (sized(b'{"user_id": "u", "candidates": [NaN]}'), 422, "candidates[0]"),
        (sized(b'{"user_id": "u", "candidates": [1e400]}'), 422, "candidates[0]"),
        (sized(b"[" * 100_000), 400, "body"),
        (sized(b""), 400, "body"),
        (request(b"", "Content-Length: 1048577"), 413, "body"),
        (request(b"", "Content-Length: " + "9" * 18), 413, "body"),
        (request(CHUNK * 17, "Transfer-Encoding: chunked"), 413, "body"),
        (request(b"", target="GET /nowhere"), 404, None),
        (request(b"", target="GET /s3cr3t"), 404, None),
        (request(b"", target="DELETE /score"), 405, None),
        (request(b"", target="GET /score/"), 404, None),
        (b"s3cr3t\r\n\r\n", 400, None),
        (b"GET / HTTP/1.1\r\ns3cr3t\r\n\r\n", 400, None),
        (request(GOOD, "Content-Length: s3cr3t"), 400, None),
        (b"GET / HTTP/1.1\r\ns3cr3t: ".ljust(MAX_HEAD_BYTES + 1, b"s"), 431, None),
        (b"GET /s3cr3t".ljust(MAX_HEAD_BYTES + 1, b"s"), 431, None),
    ],
)
def test_hostile_http_is_a_problem_document(
    data: bytes, status: int, field: str | None, service: Service
) -> None:
    """Raw bytes on the socket get a 4xx in the one form of errors, and no echo."""
    found, headers, body = raw_exchange(service.port, data)
    assert found == status
    assert headers["content-type"] == "application/problem+json"
    document = json.loads(body)
    assert (document["status"], document["field"]) == (status, field)
    assert document["request_id"] == headers["x-request-id"]
    assert SECRET not in body.decode()


def test_only_json_is_taken(service: Service) -> None:
    """A body declared as something else is refused; one declared as nothing is read as JSON."""
    form = service.client.post("/score", content=GOOD, headers={"Content-Type": "text/plain"})
    assert form.status_code == 415
    assert problem(form)["field"] == "Content-Type"
    assert service.client.post("/score", content=GOOD).status_code == 200
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert service.client.post("/score", content=GOOD, headers=charset).status_code == 200


def test_a_compressed_body_is_refused_by_its_header(service: Service) -> None:
    """It is not taken for JSON that is broken; the field at fault is the coding."""
    packed = gzip.compress(GOOD)
    for path in ("/score", "/score/columns", "/events"):
        found = service.client.post(path, content=packed, headers={"Content-Encoding": "gzip"})
        assert found.status_code == 415
        assert problem(found)["field"] == "Content-Encoding"
    plain = {"Content-Encoding": "Identity"}
    assert service.client.post("/score", content=GOOD, headers=plain).status_code == 200


def test_a_body_just_under_the_limit_is_read(service: Service) -> None:
    """The limit of a body is 1 MiB, to the byte."""
    whole = GOOD + b" " * (2**20 - len(GOOD))
    assert raw_exchange(service.port, sized(whole))[0] == 200
    assert raw_exchange(service.port, sized(whole + b" "))[0] == 413


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False)],
)
def test_a_sane_request_id_is_kept(sent: str, kept: bool, service: Service) -> None:
    """The caller's id comes back in header and body; one that can't be echoed is replaced."""
    answer = service.client.post(
        "/score", content=GOOD, headers={**JSON_TYPE, "X-Request-ID": sent.encode()}
    )
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert (answer.headers["x-request-id"] == sent) is kept


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_fuzzed_requests_never_fail_the_service(data: st.DataObject, service: Service) -> None:
    """A request with arbitrary values anywhere is scored or refused with a problem document."""
    leaf = (
        st.none()
        | st.booleans()
        | st.integers(-(2**65), 2**65)
        | st.floats()
        | st.text(max_size=3)
        | st.just(SECRET)
        | st.sampled_from(["i1", "\udc80"])
    )
    inner = (
        leaf | st.lists(leaf, max_size=3) | st.dictionaries(st.text(max_size=3), leaf, max_size=2)
    )
    fields = {
        "candidates": st.lists(
            inner
            | st.fixed_dictionaries({"item_id": leaf}, optional={"genre": inner, "price": leaf}),
            max_size=4,
        ),
        "user": st.fixed_dictionaries({}, optional={"gender": inner, "income": inner}),
        "context": st.fixed_dictionaries({}, optional={"hour": inner}),
        "history": st.none()
        | st.lists(
            st.fixed_dictionaries({"item_id": leaf, "ts": leaf}, optional={"rating": inner}),
            max_size=3,
        ),
        "explain": leaf,
        "timeout_ms": leaf,
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True))
    body = {"user_id": "u", "candidates": ["i1"]}
    body |= {name: data.draw(fields[name] | inner) for name in chosen}
    answer = service.client.post("/score", content=json.dumps(body), headers=JSON_TYPE)
    if answer.status_code != 200:
        # 504 where timeout_ms happens to be drawn as 1
        assert 400 <= answer.status_code < 500 or answer.status_code == 504
        problem(answer)
        assert SECRET not in answer.text
    else:
        assert all(0 < ctr < 1 for ctr in ctrs(answer.json()))


def test_the_service_describes_itself(service: Service) -> None:
    """Liveness, readiness, metrics and documents answer without a score being asked."""
    assert service.client.get("/healthz").json() == {"status": "alive"}
    ready = service.client.get("/readyz").json()
    assert (ready["model"], ready["version"], ready["provider"]) == ("toy", 1, "cpu")
    assert service.client.get("/docs").status_code == 200
    document = service.client.get("/openapi.json").json()
    score = document["paths"]["/score"]["post"]
    schema = score["requestBody"]["content"]["application/json"]["schema"]
    assert {"user_id", "candidates", "explain"} <= set(schema["properties"])
    assert set(score["responses"]) >= {"200", "400", "413", "415", "422", "503", "504"}
    assert "$ref" not in json.dumps(document)


def test_what_happens_is_counted(service: Service, redis_url: str) -> None:
    """Metrics count answers by status, unknown items and calls, and know no ids."""
    before = service.metric("dinserve_unknown_items_total")
    answered = service.metric("dinserve_requests_total")
    service.score(user_id="s3cr3t-user", candidates=["i1", "s3cr3t-item"])
    service.score(user_id="s3cr3t-user", candidates=[])
    assert service.metric("dinserve_unknown_items_total") == before + 1
    assert service.metric("dinserve_requests_total") == answered + 2
    assert service.metric("dinserve_model_version") == 1
    assert service.metric("dinserve_model_calls_total") > 0
    assert service.metric("dinserve_model_call_requests_sum") >= service.metric(
        "dinserve_model_seconds_count"
    )
    assert service.metric("dinserve_ready") == 1
    assert SECRET not in service.client.get("/metrics").text


def test_ids_stay_out_of_the_log(service: Service, redis_url: str, schema: Schema) -> None:
    """Neither what fails nor what works leaves a user or an item id in the log."""
    with Redis.from_url(redis_url) as client:
        client.set(history_key("din", "s3cr3t-user", schema.layout), b"s3cr3t")
    answer = service.score(user_id="s3cr3t-user", candidates=["s3cr3t-item"])
    assert answer.json()["degraded"] == "history_unavailable"
    service.score(user_id="s3cr3t-user", candidates=["s3cr3t-item"], context={"s3cr3t": 1})
    lines = service.logs().splitlines()
    assert all(json.loads(line)["time"] for line in lines)
    assert SECRET not in service.logs()


def test_a_profile_that_does_not_fit_the_model_is_left_out(
    service: Service, redis_url: str
) -> None:
    """A bad stored value is the store's fault, not the caller's: scored without, and said."""
    with Redis.from_url(redis_url) as client:
        client.set(profile_key("din", "u"), b'{"income": "much", "shoe": 44}')
    body = service.score(user_id="u", candidates=["i1"]).json()
    assert body["degraded"] == "profile_unavailable"
    assert service.score(user_id="u", candidates=["i1"], user={"income": "x"}).status_code == 422


def test_a_deadline_that_passes_is_a_504_without_a_run(repository: Path, tmp_path: Path) -> None:
    """A request that spent its time on a store that hangs ends in 504; the model is not run."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        short = {"DINSERVE_STORE_TIMEOUT_MS": "40"}
        with Service(repository, url, log=tmp_path / "log", environment=short) as service:
            connection = socket.create_connection(("127.0.0.1", service.port), 60)
            body = b'{"user_id": "u", "candidates": ["i1"], "timeout_ms": 20}'
            head = sized(body)
            # The time counts from the request's arrival, its body among it.
            connection.sendall(head[:-1])
            time.sleep(0.2)
            connection.sendall(head[-1:])
            answer = connection.recv(65536).decode()
            connection.close()
            assert answer.startswith("HTTP/1.1 504 ")
            assert "application/problem+json" in answer
            assert service.metric("dinserve_model_seconds_count") == 0
            late = service.score(user_id="u", candidates=["i1"], timeout_ms=60_000)
            assert late.json()["degraded"] == "history_unavailable"
            assert service.metric("dinserve_model_seconds_count") == 1


def test_killing_redis_degrades_and_its_return_heals(
    repository: Path, encoder: Encoder, schema: Schema, tmp_path: Path
) -> None:
    """Without Redis every answer is a 200 that says so, soon; with it again, whole."""
    with running_redis(tmp_path) as redis:
        environment = {"DINSERVE_BREAKER_SECONDS": "0.1"}
        with Service(
            repository, redis.url, log=tmp_path / "log", environment=environment
        ) as service:

            def fill() -> None:
                with Redis.from_url(redis.url) as client:
                    records = encoder.records(HISTORY).tobytes()
                    client.set(history_key("din", "u", schema.layout), records)

            fill()
            assert service.score(user_id="u", candidates=["i1"]).json()["history_length"] == 5
            redis.kill()
            for _ in range(10):
                answer = service.score(user_id="u", candidates=["i1"])
                assert answer.status_code == 200
                assert answer.json()["degraded"] == "history_unavailable"
            given = service.score(
                user_id="u", candidates=["i1"], history=HISTORY, user={"gender": "F", "income": 1}
            )
            assert given.json()["degraded"] is None
            redis.start()
            fill()
            deadline = time.monotonic() + 120
            while service.score(user_id="u", candidates=["i1"]).json()["degraded"] is not None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert service.metric("dinserve_degraded_total") >= 10


def test_a_newer_version_takes_over_under_load(repository: Path, tmp_path: Path) -> None:
    """While requests come in, a version is swapped, a bad one refused, and none fails."""
    root = tmp_path / "root"
    shutil.copytree(repository, root)
    environment = {"DINSERVE_POLL_SECONDS": "0.05"}
    with Service(
        root, "redis://127.0.0.1:1/0", log=tmp_path / "log", environment=environment
    ) as service:
        stop = threading.Event()

        def load() -> list[tuple[int, int]]:
            seen = []
            while not stop.is_set():
                answer = service.score(user_id="u", candidates=["i1"], history=[])
                assert answer.status_code == 200
                seen.append((answer.json()["version"], round(ctrs(answer.json())[0], 4)))
            return seen

        def until(condition: Any) -> None:
            deadline = time.monotonic() + 120
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.02)

        def served() -> int:
            return int(service.client.get("/readyz").json()["version"])

        with ThreadPoolExecutor(3) as threads:
            runs = [threads.submit(load) for _ in range(3)]
            publish_toy(root, bias=2.0)
            until(lambda: served() == 2)
            number = publish_bad(root)
            until(lambda: f"version {number} refused" in service.logs())
            assert served() == 2
            publish_toy(root, bias=3.0)
            until(lambda: served() == 4)
            stop.set()
            seen = [pair for run in runs for pair in run.result()]
        assert {version for version, _ in seen} >= {1, 2}
        assert 3 not in {version for version, _ in seen}
        assert len(set(seen)) == len({version for version, _ in seen})
        assert service.metric("dinserve_model_versions_refused_total") == 1


def publish_bad(root: Path) -> int:
    """Put a version with a changed graph beside the others, as a whole; its number."""
    folder = root / "toy"
    shutil.copytree(folder / "2", folder / ".copy")
    graph = folder / ".copy" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    (folder / ".copy").rename(folder / "3")
    return 3


def test_without_a_model_the_service_lives_and_waits(tmp_path: Path) -> None:
    """It is alive but not ready, answers 503 with Retry-After, and takes the first version."""
    root = tmp_path / "root"
    with Service(root, "redis://127.0.0.1:1/0", log=tmp_path / "log", ready=False) as service:
        unready = service.client.get("/readyz")
        assert unready.status_code == 503
        assert problem(unready)["status"] == 503
        refused = service.score(user_id="u", candidates=["i1"])
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        publish_toy(root)
        service.wait("/readyz")
        assert service.score(user_id="u", candidates=["i1"]).status_code == 200


def test_a_stopped_service_ends_in_order(repository: Path, tmp_path: Path) -> None:
    """On SIGTERM the process closes what it opened and ends without a traceback."""
    with Service(repository, "redis://127.0.0.1:1/0", log=tmp_path / "log") as service:
        assert service.score(user_id="u", candidates=["i1"]).status_code == 200
        service.client.close()
        service.process.terminate()
        assert service.process.wait(60) == 0
    assert "Application shutdown complete" in service.logs()
    assert "Traceback" not in service.logs()


class Held(OnnxEngine):
    """A real engine that a test can make fail or wait."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__(session)
        self.failing = False
        self.gate = threading.Event()
        self.gate.set()

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        assert self.gate.wait(120)
        if self.failing:
            raise RuntimeError(SECRET)
        return super().run(batch, weight)


@asynccontextmanager
async def in_process(
    repository: Path, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Held]]:
    """The application in this process, ready, with its engine at hand."""
    engines: list[Held] = []

    def opening(graph: Path) -> Held:
        engines.append(Held.open(graph, "cpu"))
        return engines[-1]

    settings = Settings(
        repository=repository,
        redis_url="redis://127.0.0.1:1/0",
        ready_without_redis=True,
        timeout_ms=30_000,
        **options,
    )
    app = create_app(settings, open_engine=opening)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.02)
        yield client, engines[0]


ONE = {"user_id": "u", "candidates": ["i1"]}


def test_a_model_that_fails_is_a_500_without_details(repository: Path) -> None:
    """What goes wrong inside gives a problem with a request id, and says nothing else."""

    async def scenario() -> None:
        async with in_process(repository) as (client, engine):
            engine.failing = True
            answer = await client.post("/score", json=ONE, headers={"X-Request-ID": "me"})
            assert answer.status_code == 500
            assert problem(answer)["request_id"] == "me"
            assert SECRET not in answer.text
            engine.failing = False
            assert (await client.post("/score", json=ONE)).status_code == 200

    asyncio.run(scenario())


def test_overload_is_refused_early_with_retry_after(repository: Path) -> None:
    """One request runs, one waits, the next is told at once to come back later."""

    async def scenario() -> None:
        limits = {"runs_side_by_side": 1, "max_queued_pairs": 1}
        async with in_process(repository, **limits) as (client, engine):
            engine.gate.clear()
            taken = []
            for expected in (0.0, 1.0):
                taken.append(asyncio.create_task(client.post("/score", json=ONE)))
                while engine_waits(await client.get("/metrics")) != expected:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
            refused = await client.post("/score", json=ONE)
            assert refused.status_code == 503
            assert problem(refused)["title"] == "Overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            engine.gate.set()
            assert [(await each).status_code for each in taken] == [200, 200]

    def engine_waits(metrics: httpx.Response) -> float:
        lines = metrics.text.splitlines()
        [line] = [line for line in lines if line.startswith("dinserve_queued_pairs ")]
        return float(line.split()[1])

    asyncio.run(scenario())


def test_a_deadline_that_passes_in_the_queue_is_a_504_without_a_run(repository: Path) -> None:
    """Behind a busy worker a request is answered when its time is over, and is never run."""

    async def scenario() -> None:
        async with in_process(repository, runs_side_by_side=1) as (client, engine):
            engine.gate.clear()
            first = asyncio.create_task(client.post("/score", json=ONE))
            await asyncio.sleep(0.1)
            late = await client.post("/score", json={**ONE, "timeout_ms": 30})
            assert late.status_code == 504
            assert problem(late)["title"] == "Deadline exceeded"
            engine.gate.set()
            assert (await first).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert "dinserve_model_calls_total 1.0" in metrics

    asyncio.run(scenario())


def test_a_body_that_does_not_arrive_is_given_up(repository: Path) -> None:
    """A caller that stops sending gets 408 and does not hold the service for ever."""

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async def scenario() -> None:
        async with in_process(repository, body_timeout_seconds=0.05) as (client, _):
            answer = await client.post("/score", content=body(), headers=JSON_TYPE)
            assert answer.status_code == 408
            assert problem(answer)["field"] == "body"

    asyncio.run(scenario())


def test_the_service_process_never_loads_torch(repository: Path) -> None:
    """Neither torch nor anything of training or loading is imported to serve."""
    program = f"""
import sys
from pathlib import Path
from service.app import create_app
from service.settings import Settings
create_app(Settings(repository=Path({str(repository)!r})))
heavy = {{"torch", "polars", "pyarrow", "sklearn", "pandas", "training", "rich"}}
print(sorted(heavy & {{name.partition(".")[0] for name in sys.modules}}))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
