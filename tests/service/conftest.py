"""One Redis, one repository and one service process for all tests that only read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from model.contract.encode import Encoder
from model.contract.schema import Schema
from tests.support import (
    TOY,
    RedisProcess,
    Service,
    publish_toy,
    running_redis,
    toy_encoder,
)


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_process: RedisProcess) -> str:
    """An empty Redis."""
    with Redis.from_url(redis_process.url) as client:
        client.flushall()
    return redis_process.url


@pytest.fixture(scope="session")
def schema() -> Schema:
    return Schema.parse(TOY)


@pytest.fixture(scope="session")
def encoder(schema: Schema) -> Encoder:
    return toy_encoder(schema)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with version 1 of the toy model. Not to be changed."""
    root = tmp_path_factory.mktemp("repository")
    publish_toy(root)
    return root


@pytest.fixture(scope="session")
def service(
    repository: Path, redis_process: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A running service. Its Redis may be empty or not."""
    log = tmp_path_factory.mktemp("service") / "log"
    with Service(repository, redis_process.url, log=log) as running:
        yield running
