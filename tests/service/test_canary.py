"""Canary and shadow as callers of the service meet them: no failure of theirs is an answer."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from model.contract.batch import Batch
from model.contract.labels import LABELS, LabelFile, Withdrawal
from model.contract.repository import Repository
from model.contract.store import withdrawn_key
from service.app import create_app
from service.engine import EngineError, OnnxEngine, Scores
from service.lineup import place
from service.settings import Settings
from tests.support import ROOT, TOY, problem, publish_toy

USERS = [f"u{n}" for n in range(400)]
HALF = {user for user in USERS if place("dinserve canary:", user) < 0.5}


class Failing(OnnxEngine):
    """A real engine that a test can make fail."""

    trouble: Exception | None = None

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        if self.trouble is not None:
            raise self.trouble
        return super().run(batch, weight)


class Running:
    """The application in this process, and its engines by version."""

    def __init__(self, client: httpx.AsyncClient, engines: dict[int, Failing]) -> None:
        self.client, self.engines = client, engines

    async def score(self, user: str, **more: Any) -> httpx.Response:
        body = {"user_id": user, "candidates": ["i1", "i2"], "history": [], **more}
        return await self.client.post("/score", json=body)

    async def version(self, user: str) -> int:
        answer = await self.score(user)
        assert answer.status_code == 200
        return int(answer.json()["version"])

    async def metric(self, name: str) -> float:
        lines = (await self.client.get("/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " "))

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Until /readyz says so."""
        async with asyncio.timeout(120):
            while not condition((await self.client.get("/readyz")).json()):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(root: Path, **options: Any) -> AsyncIterator[Running]:
    engines: dict[int, Failing] = {}

    def opening(graph: Path) -> Failing:
        engine = engines[int(graph.parent.name)] = Failing.open(graph, "cpu")
        return engine

    given: dict[str, Any] = {
        "redis_url": "redis://127.0.0.1:1/0",
        "ready_without_redis": True,
        "timeout_ms": 30_000,
        "poll_seconds": 0.01,
        "canary_requests": 20,
    }
    settings = Settings(repository=root, **{**given, **options})
    app = create_app(settings, open_engine=opening)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        found = Running(client, engines)
        await found.until(lambda ready: ready["status"] == "ready")
        yield found


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """Version 1 is stable, 2 its canary for half of the users."""
    for bias in range(2):
        publish_toy(tmp_path, bias=float(bias))
    found = LabelFile(Repository(tmp_path, "toy"), by="test")
    found.promote(1)
    found.start_canary(2, 0.5)
    return found


def canary_is(share: float | None) -> Callable[[dict[str, Any]], bool]:
    return lambda ready: ready.get("canary", {}).get("share") == share


def test_a_user_always_falls_on_the_same_side(labels: LabelFile) -> None:
    """Half of them on the canary's, with any other share accordingly; readiness says the labels."""

    async def scenario() -> None:
        async with running(labels.repository.root) as service:
            ready = (await service.client.get("/readyz")).json()
            assert (ready["version"], ready["canary"]) == (1, {"version": 2, "share": 0.5})
            for _ in range(2):
                found = {user for user in USERS if await service.version(user) == 2}
                assert found == HALF
            labels.withdraw(Withdrawal(2, labels.read().canary_since, "a test"))
            await service.until(canary_is(0))
            assert {await service.version(user) for user in USERS[:50]} == {1}
            labels.promote(2)
            await service.until(lambda ready: ready["version"] == 2)
            assert {await service.version(user) for user in USERS[:50]} == {2}

    assert 0.4 < len(HALF) / len(USERS) < 0.6
    asyncio.run(scenario())


@pytest.mark.parametrize(
    "trouble", [EngineError("a score is not finite", "not_finite"), RuntimeError("s3cr3t")]
)
def test_what_a_canary_can_not_answer_the_stable_version_does(
    trouble: Exception, labels: LabelFile, caplog: pytest.LogCaptureFixture
) -> None:
    """No caller notices; when it failed too often its share is 0 here, and then in the labels."""

    async def scenario() -> None:
        async with running(labels.repository.root) as service:
            service.engines[2].trouble = trouble
            for user in sorted(HALF)[:20]:
                assert await service.version(user) == 1
            assert canary_is(0)((await service.client.get("/readyz")).json())
            counted = 'dinserve_label_requests_total{label="%s",outcome="%s"}'
            assert await service.metric(counted % ("canary", "failed")) == 20
            assert await service.metric(counted % ("stable", "answered")) == 20
            service.engines[2].trouble = None
            assert await service.version(min(HALF)) == 1
            async with asyncio.timeout(120):
                while labels.read().canary_share:
                    await asyncio.sleep(0.01)
            labels.start_canary(2, 0.5)
            await service.until(canary_is(0.5))
            assert await service.version(min(HALF)) == 2

    asyncio.run(scenario())
    assert "canary version 2 withdrawn: 20 of 20 requests failed" in caplog.text
    assert not any(user in caplog.text for user in HALF)
    assert [change.by for change in labels.read().changes] == ["test", "test", "service", "test"]


def test_where_labels_are_read_only_the_collector_withdraws_a_failing_canary(
    labels: LabelFile, redis_url: str, tmp_path: Path
) -> None:
    """The service tells of it in Redis; what collects, and may write, sets the share in the labels,
    which every service follows. Given the same share again the canary is tried again."""
    seen = tmp_path / "read-only" / "toy"
    (seen / ".labels.lock").mkdir(parents=True)  # as good as read-only, for every user
    for name in ("1", "2", LABELS):
        (seen / name).symlink_to(labels.repository.folder / name)
    where = [
        "--logs",
        tmp_path / "logs",
        "--redis-url",
        redis_url,
        "--repository",
        labels.repository.root,
        "--name",
        "toy",
    ]
    collect = [sys.executable, "-m", "training", "collect", "--once", *map(str, where)]

    async def scenario() -> None:
        slow = {"store_timeout_ms": 5_000, "event_timeout_ms": 5_000}
        async with running(seen.parent, redis_url=redis_url, **slow) as service:
            service.engines[2].trouble = RuntimeError("s3cr3t")
            for user in sorted(HALF)[:20]:
                assert await service.version(user) == 1
            async with Redis.from_url(redis_url) as client, asyncio.timeout(120):
                while not await client.exists(withdrawn_key("din")):
                    await asyncio.sleep(0.01)
                assert await client.ttl(withdrawn_key("din")) > 0
            assert labels.read().canary_share == 0.5
            ended = await asyncio.to_thread(subprocess.run, collect, cwd=ROOT, capture_output=True)
            assert ended.returncode == 0, ended.stderr
            told = [json.loads(line) for line in ended.stdout.splitlines()]
            [line] = [each for each in told if each["event"] == "canary_withdrawn"]
            assert (line["model"], line["version"]) == ("toy", 2)
            after = labels.read()
            assert (after.canary, after.canary_share, after.changes[-1].by) == (2, 0, "collect")
            assert "20 of 20 requests failed" in after.changes[-1].why
            service.engines[2].trouble = None
            labels.start_canary(2, 0.5)
            await service.until(canary_is(0.5))
            assert await service.version(min(HALF)) == 2

    asyncio.run(scenario())


def test_a_score_that_is_not_finite_is_never_answered(labels: LabelFile) -> None:
    """Of the stable version it is a problem of ours, of which the caller learns nothing."""

    async def scenario() -> None:
        async with running(labels.repository.root) as service:
            for engine in service.engines.values():
                engine.trouble = EngineError("a score is not finite", "not_finite")
            for user in (min(HALF), min(set(USERS) - HALF)):
                answer = await service.score(user)
                assert answer.status_code == 500
                assert problem(answer)["detail"] == "Internal error"

    asyncio.run(scenario())


def test_a_bad_request_is_nobodys_failure(labels: LabelFile) -> None:
    """What both versions refuse is refused, on either side, and counts for neither."""

    async def scenario() -> None:
        async with running(labels.repository.root) as service:
            for user in USERS[:100]:
                answer = await service.score(user, context={"hour": []})
                assert answer.status_code == 422
                assert problem(answer)["field"] == "context.hour"
            assert await service.version(min(HALF)) == 2
            assert await service.metric("dinserve_canary_withdrawn_total") == 0

    asyncio.run(scenario())


def test_a_canary_that_does_not_take_what_callers_send_is_withdrawn(tmp_path: Path) -> None:
    """A schema that lacks a field of today's requests fails them all; they are answered."""
    publish_toy(tmp_path)
    publish_toy(tmp_path, schema_text=TOY.replace('name = "hour"', 'name = "day"'))
    labels = LabelFile(Repository(tmp_path, "toy"), by="test")
    labels.promote(1)
    labels.start_canary(2, 1.0)

    async def scenario() -> None:
        async with running(tmp_path) as service:
            assert await service.version("u") == 2  # without the field both read it
            for user in USERS[:25]:
                answer = await service.score(user, context={"hour": 7})
                assert answer.status_code == 200
                assert answer.json()["version"] == 1
            assert canary_is(0)((await service.client.get("/readyz")).json())

    asyncio.run(scenario())


def test_a_canary_of_another_schema_reads_requests_in_its_own_way(tmp_path: Path) -> None:
    """What both take is read with the schema of the version that answers."""
    publish_toy(tmp_path)
    number = 'name = "hour"\nkind = "number"\nboundaries = [12]\n'
    publish_toy(tmp_path, schema_text=TOY.replace('name = "hour"\n', number))
    labels = LabelFile(Repository(tmp_path, "toy"), by="test")
    labels.promote(1)
    labels.start_canary(2, 0.5)

    async def scenario() -> None:
        async with running(tmp_path) as service:
            for user in USERS[:40]:
                answer = (await service.score(user, context={"hour": 7})).json()
                assert answer["version"] == (2 if user in HALF else 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("begin", ["canary", "stable"])
def test_a_version_of_another_layout_sees_an_event_at_once(
    begin: str, tmp_path: Path, redis_url: str
) -> None:
    """Whether it is a canary or was just swapped in, and though nobody was read in the layout that
    the event was written in."""
    dwell = '[[behaviour]]\nname = "dwell"\nkind = "number"\nboundaries = [1.0]\n'
    publish_toy(tmp_path)
    publish_toy(tmp_path, schema_text=TOY + dwell)
    labels = LabelFile(Repository(tmp_path, "toy"), by="test")
    labels.promote(1)
    if begin == "canary":
        labels.start_canary(2, 1.0)

    async def scenario() -> None:
        slow = {"store_timeout_ms": 5_000, "event_timeout_ms": 5_000}
        async with running(tmp_path, redis_url=redis_url, **slow) as service:
            click = {"user_id": "u", "item_id": "i1", "action": "click", "ts": int(time.time())}
            assert (await service.client.post("/events", json=click)).json()["accepted"] == 1
            if begin == "stable":
                labels.promote(2)
                await service.until(lambda ready: ready["version"] == 2)
            body = {"user_id": "u", "candidates": ["i1"]}
            answer = (await service.client.post("/score", json=body)).json()
            assert (answer["version"], answer["history_length"]) == (2, 1)

    asyncio.run(scenario())


def test_a_shadow_is_scored_beside_and_seen_in_the_metrics(labels: LabelFile) -> None:
    """The stable version answers; the difference to the shadow is its bias, the order is the
    same. A shadow that fails fails nothing else."""

    async def scenario() -> None:
        async with running(labels.repository.root) as service:
            labels.stop_canary()
            labels.start_shadow(2, 1.0)
            await service.until(lambda ready: "shadow" in ready)
            answer = (await service.score("u")).json()
            assert answer["version"] == 1
            async with asyncio.timeout(120):
                while not await service.metric('dinserve_shadow_requests_total{outcome="scored"}'):
                    await asyncio.sleep(0.005)
            logits = [math.log(p / (1 - p)) for p in (each["ctr"] for each in answer["scores"])]
            other = [1 / (1 + math.exp(-logit - 1)) for logit in logits]
            differences = [
                abs(one - each["ctr"]) for one, each in zip(other, answer["scores"], strict=True)
            ]
            mean = await service.metric("dinserve_shadow_difference_mean_sum")
            assert mean == pytest.approx(sum(differences) / 2, abs=1e-5)
            largest = await service.metric("dinserve_shadow_difference_max_sum")
            assert largest == pytest.approx(max(differences), abs=1e-5)
            assert await service.metric("dinserve_shadow_rank_correlation_sum") == pytest.approx(1)
            service.engines[2].trouble = RuntimeError("s3cr3t")
            assert await service.version("u") == 1
            async with asyncio.timeout(120):
                while not await service.metric('dinserve_shadow_requests_total{outcome="failed"}'):
                    await asyncio.sleep(0.005)

    asyncio.run(scenario())
