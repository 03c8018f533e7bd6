"""A service whose repository lies on an object store: it serves the copy, and follows the store."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mirror.remote import Remote
from model.contract.labels import LabelFile
from model.contract.repository import Repository
from tests.service.test_metrics import value
from tests.service.test_service import in_process
from tests.service.test_workers import NO_REDIS, until
from tests.support import Service, publish_toy


def test_what_is_pushed_is_served(tmp_path: Path) -> None:
    """A real process: a service that waits for a first model gets it, follows the newest, then the
    labels, a rollback among them."""
    source = Repository(tmp_path / "source", "toy")
    url = f"file://{tmp_path}/store"
    environment = {"DINSERVE_MIRROR": url, "DINSERVE_POLL_SECONDS": "0.05"}
    log = tmp_path / "log"

    def push() -> None:
        Remote(url).push(source)

    with Service(
        tmp_path / "copy", NO_REDIS, log=log, environment=environment, ready=False
    ) as service:
        assert service.client.get("/readyz").status_code == 503
        publish_toy(source.root)
        push()
        service.wait("/readyz")
        publish_toy(source.root, bias=1.0)
        push()
        until(lambda: service.metric("dinserve_model_version") == 2)
        labels = LabelFile(source, by="test")
        labels.promote(2)
        labels.rollback()
        push()
        until(lambda: service.metric("dinserve_model_version") == 1)
        assert service.metric("dinserve_mirror_failures_total") == 0
        assert service.metric("dinserve_mirror_last_success_timestamp_seconds") > 1.7e9
        assert service.score(user_id="u", candidates=["i1"]).status_code == 200
    said = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    brought = [message for message in said if "brought" in message]
    assert brought == ["toy version 1 brought here", "toy version 2 brought here"]


def test_a_store_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is here is served; failures are counted, told once, and over when it answers again."""
    url = f"memory://bucket-{uuid.uuid4().hex}"
    publish_toy(tmp_path / "source")
    source = Repository(tmp_path / "source", "toy")
    Remote(url).push(source)
    listing = MemoryFileSystem.ls

    def failing(*_: object, **__: object) -> None:
        raise PermissionError("s3cr3t")

    async def scenario() -> None:
        copy = tmp_path / "copy"
        async with in_process(copy, mirror=url, poll_seconds=0.02) as (client, _):

            async def told(name: str) -> float:
                return value(await client.get("/metrics"), f"dinserve_{name}")

            async def until_told(name: str, least: float) -> None:
                while await told(name) < least:
                    await asyncio.sleep(0.02)

            monkeypatch.setattr(MemoryFileSystem, "ls", failing)
            await until_told("mirror_failures_total", 3)
            assert (await client.get("/readyz")).status_code == 200
            publish_toy(source.root, bias=1.0)
            monkeypatch.setattr(MemoryFileSystem, "ls", listing)
            Remote(url).push(source)
            await until_told('model_version{model="toy"}', 2)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    said = [r.message for r in caplog.records if "object store" in r.message]
    assert said == ["the repository's object store failed: PermissionError"]
    MemoryFileSystem.store.clear()
