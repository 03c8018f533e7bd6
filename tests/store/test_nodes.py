"""Nodes on a real cluster: each call goes to who holds its key, also while slots move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError, ResponseError

from store.blocking import Clients
from store.nodes import Reached, reach
from store.url import StoreUrl
from tests.store.forms import Cluster, until
from tests.support import free_port

Got = TypeVar("Got")
KEYS = [f"k{number}" for number in range(30)]


def asked(url: str, work: Callable[[Reached], Awaitable[Got]]) -> Got:
    """What ``work`` makes of a store."""

    async def scenario() -> Got:
        store = reach(StoreUrl.parse(url), limit=4, connect_seconds=1.0)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(scenario())


def fill(cluster: Cluster) -> None:
    for key in KEYS:
        cluster.owner(key).set(key, key)


async def read(store: Reached) -> list[bytes]:
    """All `KEYS`, one by one."""
    return [(await store.ask(key, [("GET", key)]))[0] for key in KEYS]


async def read_together(store: Reached) -> list[bytes]:
    """All `KEYS`, in one call."""
    return await store.ask_each([(key, ("GET", key)) for key in KEYS])


EXPECTED = [key.encode() for key in KEYS]
reading = pytest.mark.parametrize("reading", [read, read_together])


@reading
def test_calls_go_to_who_holds_their_keys(
    reading: Callable[[Reached], Awaitable[list[bytes]]], cluster: Cluster
) -> None:
    """Keys of all nodes are found, knowing one node only, and all answers are in order."""
    fill(cluster)
    assert len({id(cluster.owner(key)) for key in KEYS}) == 3
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster.nodes[1].port}"
    assert asked(url, reading) == EXPECTED


@pytest.fixture
def moving(cluster: Cluster) -> tuple[str, Redis, Redis]:
    """A key, who holds it, and another node."""
    fill(cluster)
    key = KEYS[0]
    source = cluster.owner(key)
    return key, source, next(client for client in cluster.clients if client is not source)


@reading
def test_a_slot_that_is_moving_is_read_where_each_key_is(
    reading: Callable[[Reached], Awaitable[list[bytes]]],
    cluster: Cluster,
    moving: tuple[str, Redis, Redis],
) -> None:
    """While a slot moves, and when it has moved after the topology was learnt."""
    key, source, target = moving
    slot = key_slot(key.encode())

    async def work(store: Reached) -> None:
        assert await reading(store) == EXPECTED
        cluster.begin_to_move(slot, source, target)
        assert await reading(store) == EXPECTED
        cluster.move_keys(slot, source, target)
        assert await reading(store) == EXPECTED
        cluster.end_move(slot, target)
        assert await reading(store) == EXPECTED

    asked(cluster.url, work)


def test_what_one_node_refuses_harms_no_other_call(cluster: Cluster) -> None:
    """Each call has its own answer or error."""
    fill(cluster)
    cluster.owner(KEYS[0]).delete(KEYS[0])
    cluster.owner(KEYS[0]).lpush(KEYS[0], "x")
    first, *others = asked(cluster.url, read_together)
    assert isinstance(first, ResponseError)
    assert others == EXPECTED[1:]


def test_nobody_to_ask_is_an_error_at_once() -> None:
    """No node answers: a connection error, for the next caller too."""

    async def work(store: Reached) -> None:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await store.ask("k", [("GET", "k")])
            with pytest.raises(ConnectionError):
                await store.ask_each([("k", ("GET", "k"))])

    asked(f"redis+cluster://127.0.0.1:{free_port()}", work)


def test_a_job_finds_a_slot_anew(cluster: Cluster, moving: tuple[str, Redis, Redis]) -> None:
    """A client of the old owner is told so; after that the new one is asked."""
    key, source, target = moving
    slot = key_slot(key.encode())
    with Clients(StoreUrl.parse(cluster.url), 60) as clients:
        assert clients.of(key).get(key) == key.encode()
        assert len(clients.all()) == 3
        assert sum(len(keys) for _, keys in clients.by_node(KEYS)) == len(KEYS)
        cluster.move(slot, source, target)
        with pytest.raises(ResponseError):
            clients.of(key).get(key)

        def found_anew() -> bool:
            clients.forget()
            return bool(clients.of(key).get(key) == key.encode())

        until(found_anew)
