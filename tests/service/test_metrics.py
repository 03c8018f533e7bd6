"""What the service tells Prometheus: by its naming rules, whole, and of no one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.errors import SHED, STAGES
from tests.exported import (
    collector_text,
    families,
    promtool,
    retrain_text,
    service_text,
)
from tests.service.test_service import in_process
from tests.support import Service

UNITS = ("seconds", "bytes", "info", "total")
# What a label may be. None of them can hold an id.
LABELS = {"le", "status", "reason", "stage", "label", "outcome", "model", "result", "worker"}
NO_UNIT = ("_ms", "_milliseconds", "_us", "_minutes", "_hours", "_days", "_kb", "_mib", "_percent")
ASK = {"user_id": "s3cr3t-user", "candidates": ["i1", "s3cr3t-item"]}


@pytest.mark.parametrize("text", [service_text(), collector_text(), retrain_text()])
def test_names_follow_the_rules(text: str) -> None:
    """One prefix, base units, `_total` on counters and on nothing else, and a text for each."""
    for name, told in families(text).items():
        own = name.startswith("dinserve_")
        assert own or name.startswith(("process_", "python_")), name
        assert told.help, name
        assert name.endswith("_total") == (told.kind == "counter"), name
        assert not name.removesuffix("_total").endswith(NO_UNIT), name
        if "timestamp" in name:
            assert name.endswith("_timestamp_seconds"), name


@pytest.mark.parametrize("text", [service_text(), collector_text(), retrain_text()])
def test_promtool_finds_no_fault(text: str) -> None:
    """Its lint of names, units, types and texts."""
    without = [line for line in text.splitlines(keepends=True) if "python_info" not in line]
    promtool("check", "metrics", text="".join(without))


def test_no_label_of_a_running_service_holds_an_id(service: Service) -> None:
    """After requests that work and that fail, labels are of a known few, with values of ours."""
    service.score(**ASK)
    service.score(**ASK, context={"s3cr3t": 1})
    service.client.post("/events", json={"user_id": "s3cr3t-user"})
    service.client.get("/s3cr3t")
    text = service.client.get("/metrics").text
    assert "s3cr3t" not in text
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("dinserve_")
    ]
    assert {label for sample in samples for label in sample.labels} <= LABELS
    assert len(samples) > 100


def test_a_running_service_tells_all_metrics_and_latencies(service: Service) -> None:
    """None appears only later, and an answered request is in each part of the latency once."""
    parts = ("request", "store", "encode", "queue", "model")
    before = {part: service.metric(f"dinserve_{part}_seconds_count") for part in parts}
    service.score(**ASK)
    text = service.client.get("/metrics").text
    assert set(families(text)) == set(families(service_text()))
    for part in parts:
        assert service.metric(f"dinserve_{part}_seconds_count") == before[part] + 1, part
    made = service.metric("dinserve_model_created_timestamp_seconds")
    assert 1.7e9 < made < 1e10


def value(answer: httpx.Response, series: str) -> float:
    found = [line for line in answer.text.splitlines() if line.startswith(series + " ")]
    return float(found[0].rsplit(" ", 1)[1])


def test_what_is_refused_or_late_is_counted_by_why(repository: Path) -> None:
    """One in the queue, told in requests; one refused at it, one that ends in it, one that ends
    in the model; all are 0 before."""

    async def scenario() -> None:
        limits = {"runs_side_by_side": 1, "max_queued_pairs": 1}
        async with in_process(repository, **limits) as (client, engine):

            async def told(series: str) -> float:
                return value(await client.get("/metrics"), f"dinserve_{series}")

            async def until_queued(count: float) -> None:
                while await told("queued_requests") != count:
                    await asyncio.sleep(0.01)

            for reason in SHED:
                assert await told(f'requests_shed_total{{reason="{reason}"}}') == 0
            for stage in STAGES:
                assert await told(f'requests_expired_total{{stage="{stage}"}}') == 0
            engine.gate.clear()
            running = asyncio.create_task(client.post("/score", json={**ASK, "timeout_ms": 1500}))
            while await told("model_calls_total") == 0:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(client.post("/score", json={**ASK, "timeout_ms": 700}))
            await until_queued(1)
            assert (await client.post("/score", json=ASK)).status_code == 503
            assert (await waiting).status_code == 504
            assert (await running).status_code == 504
            await until_queued(0)
            engine.gate.set()
            assert await told('requests_shed_total{reason="overloaded"}') == 1
            assert await told('requests_expired_total{stage="queue"}') == 1
            assert await told('requests_expired_total{stage="model"}') == 1
            assert await told('requests_total{status="504"}') == 2
            assert await told('requests_total{status="503"}') == 1

    asyncio.run(scenario())


def test_writes_that_fail_are_counted(service: Service, repository: Path) -> None:
    """An event that Redis does not take is a 503, and seen."""

    async def scenario() -> None:
        async with in_process(repository) as (client, _):
            event = {"user_id": "u", "item_id": "i1", "action": "click", "ts": 1}
            found = await client.post("/events", json={**event, "ts": 1_795_305_600})
            assert found.status_code == 503
            text = (await client.get("/metrics")).text
            assert 'dinserve_store_write_failures_total{reason="ConnectionError"}' in text

    asyncio.run(scenario())
