"""Canaries that services tell of: withdrawn by who may write the labels, and no other ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from model.contract.labels import LabelError, LabelFile, Withdrawal
from model.contract.repository import Repository
from model.contract.store import withdrawn_key
from store.blocking import Clients
from store.url import StoreUrl
from tests.support import publish_toy, running_redis
from training.failed import Failed


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, protocol=2) as found:
        found.flushall()
        yield found


@pytest.fixture
def failed(url: str) -> Iterator[Failed]:
    with Clients(StoreUrl.parse(url), 10.0) as clients:
        yield Failed(clients, "din")


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    """Version 1 is stable, 2 its canary for everyone."""
    for bias in (0.0, 1.0):
        publish_toy(tmp_path, bias)
    found = LabelFile(Repository(tmp_path, "toy"), by="test")
    found.start_canary(2, 1.0)
    return found


def tell(client: redis.Redis, labels: LabelFile, why: str = "it failed") -> Withdrawal:
    """What a service tells now."""
    found = Withdrawal(2, labels.read().canary_since, why)
    client.hset(withdrawn_key("din"), "toy", found.described)
    return found


def test_a_canary_that_failed_is_withdrawn_once(
    client: redis.Redis, failed: Failed, labels: LabelFile
) -> None:
    """The labels say why, and nothing is left to be told."""
    told = tell(client, labels)
    assert failed.withdraw(labels) == told
    after = labels.read()
    assert (after.canary, after.canary_share, after.changes[-1].why) == (2, 0, "it failed")
    assert not client.exists(withdrawn_key("din"))
    assert failed.withdraw(labels) is None
    assert labels.read() == after


def test_a_canary_that_was_started_again_is_not_withdrawn_for_what_it_did_before(
    client: redis.Redis, failed: Failed, labels: LabelFile
) -> None:
    """With the same version and share: what was told of the one before is out of date."""
    tell(client, labels)
    labels.stop_canary()
    again = labels.start_canary(2, 1.0)
    assert failed.withdraw(labels) is None
    assert labels.read() == again
    assert not client.exists(withdrawn_key("din"))


def test_what_is_told_stays_until_the_labels_could_be_written(
    client: redis.Redis, failed: Failed, labels: LabelFile
) -> None:
    """A full disk loses nothing."""
    told = tell(client, labels)
    lock = labels.repository.folder / ".labels.lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(OSError, match=r"labels\.lock"):
        failed.withdraw(labels)
    lock.rmdir()
    assert failed.withdraw(labels) == told


def test_nonsense_is_an_error_once(client: redis.Redis, failed: Failed, labels: LabelFile) -> None:
    """It does not come back with every turn."""
    client.hset(withdrawn_key("din"), "toy", b"{")
    with pytest.raises(LabelError):
        failed.withdraw(labels)
    assert failed.withdraw(labels) is None
