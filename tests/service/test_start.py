"""Starting with something missing: the service lives, is not ready, says why once, and goes on
trying."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.store.forms import speaking_tls
from tests.support import RedisProcess, Service, publish_toy, raw_exchange

STRICT = {"DINSERVE_READY_WITHOUT_REDIS": "0", "DINSERVE_POLL_SECONDS": "0.05"}
NO_REDIS = "redis://127.0.0.1:1/0"


def readiness(service: Service) -> tuple[int, dict[str, Any]]:
    status, _, body = raw_exchange(
        service.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    return status, json.loads(body)


def until_unready(service: Service, why: str) -> None:
    """Wait until it says that it is not ready, and why."""
    last = time.monotonic() + 120
    while (found := readiness(service))[1].get("detail") != why:
        assert time.monotonic() < last, found
        time.sleep(0.02)
    assert found[0] == 503


def warnings(service: Service) -> list[str]:
    """What the log warns of."""
    lines = [json.loads(line) for line in service.logs().splitlines()]
    return [line["message"] for line in lines if line["level"] not in {"info", "debug"}]


def test_without_redis_a_service_waits_for_it(repository: Path, tmp_path: Path) -> None:
    """It is not ready and says why, warns once however often it asks, scores all the same, and is
    ready when Redis has answered; that Redis goes away later changes no readiness."""
    redis = RedisProcess(tmp_path)
    with Service(
        repository, redis.url, log=tmp_path / "log", ready=False, environment=STRICT
    ) as service:
        service.wait("/healthz")
        while "No model" in (found := readiness(service))[1]["detail"]:
            time.sleep(0.02)
        assert found[0] == 503
        assert (
            found[1]["detail"] == "Redis has not answered yet: ConnectionError (Connection refused)"
        )
        for _ in range(8):
            answer = service.score(user_id="u", candidates=["i1"])
            assert answer.json()["degraded"] == "history_unavailable"
        while service.metric("dinserve_store_failures_total") < 8:
            time.sleep(0.02)
        assert service.metric("dinserve_ready") == 0
        told = [each for each in warnings(service) if "store" in each]
        assert len(told) == len(set(told))  # by the reason, which is another if time is short
        redis.start()
        try:
            service.wait("/readyz")
        finally:
            redis.kill()
        while not service.score(user_id="u", candidates=["i1"]).json()["degraded"]:
            time.sleep(0.02)
        assert readiness(service)[0] == 200


def test_a_store_that_proves_nothing_is_said(repository: Path, tmp_path: Path) -> None:
    """Why TLS fails stands in /readyz and the log; no URL does."""
    with (
        speaking_tls(tmp_path) as port,
        Service(
            repository,
            f"rediss://:s3cr3t@localhost:{port}/0",
            log=tmp_path / "log",
            ready=False,
            environment=STRICT,
        ) as service,
    ):
        why = "ConnectionError (the certificate is refused: self-signed certificate in certificate"
        until_unready(service, f"Redis has not answered yet: {why} chain)")
    assert f"the behaviour store does not answer: {why} chain)" in warnings(service)
    assert "s3cr3t" not in service.logs()


def test_with_nothing_at_all_a_service_lives(tmp_path: Path) -> None:
    """Neither a repository nor Redis: alive, not ready, one line for each thing that is missing,
    and ready once both are there."""
    redis = RedisProcess(tmp_path)
    root = tmp_path / "root"
    with Service(root, redis.url, log=tmp_path / "log", ready=False, environment=STRICT) as service:
        last = time.monotonic() + 120
        while len(warnings(service)) < 2:
            assert time.monotonic() < last, service.logs()
            time.sleep(0.02)
        looks = time.monotonic() + 1.0  # of one every 50 ms
        while time.monotonic() < looks:
            status, said = readiness(service)
            assert status == 503
            assert said["detail"].startswith("No model is served: ")
        assert service.process.poll() is None
        assert len(warnings(service)) == 2
        publish_toy(root)
        redis.start()
        try:
            service.wait("/readyz")
        finally:
            redis.kill()


def test_with_a_broken_model_a_service_waits_for_a_sound_one(tmp_path: Path) -> None:
    """It says which version is refused and why, once, and takes the next."""
    root = tmp_path / "root"
    publish_toy(root)
    graph = root / "toy" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    environment = {**STRICT, "DINSERVE_READY_WITHOUT_REDIS": "1"}
    with Service(
        root, NO_REDIS, log=tmp_path / "log", ready=False, environment=environment
    ) as service:
        while "refused" not in (found := readiness(service))[1]["detail"]:
            time.sleep(0.02)
        assert found[0] == 503
        assert "version 1" in found[1]["detail"]
        looks = time.monotonic() + 0.5
        while time.monotonic() < looks:
            assert readiness(service)[0] == 503
        assert len([each for each in warnings(service) if "version 1" in each]) == 1
        publish_toy(root, bias=1.0)
        service.wait("/readyz")
        assert service.score(user_id="u", candidates=["i1"]).json()["version"] == 2
