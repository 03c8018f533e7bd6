"""The store for jobs, which wait for each answer: redis-py's clients, one per node."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from redis import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError
from redis.retry import Retry

from store.errors import in_words
from store.topology import Topology, TopologyError
from store.url import Address, StoreUrl

_CONNECT_SECONDS = 3.0


class Clients:
    """The clients of a store's masters; `with` closes them. Everything raises RedisError, after
    which `forget` has the next call ask anew who holds what."""

    def __init__(self, url: StoreUrl, seconds: float) -> None:
        """``seconds``: how long to wait for an answer."""
        self._url, self._seconds = url, seconds
        self._topology: Topology | None = None
        self._advisers: set[Address] = set(url.hosts)
        self._clients: dict[Address | str, Redis] = {}

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            for client in self._clients.values():
                closing.callback(client.close)
        self._clients.clear()

    def of(self, key: str) -> Redis:
        """The client of who holds a key."""
        if self._url.form == "single":
            return self._client(self._url.path or self._url.hosts[0])
        owner = self._known().owner(key)
        if owner is None:
            raise ConnectionError("No node holds this slot")
        return self._client(owner)

    def by_node(self, keys: Iterable[str]) -> list[tuple[Redis, list[str]]]:
        """Keys together with who holds them, which one pipeline can be about."""
        found: dict[int, tuple[Redis, list[str]]] = {}
        for key in keys:
            client = self.of(key)
            found.setdefault(id(client), (client, []))[1].append(key)
        return list(found.values())

    def all(self) -> list[Redis]:
        """The clients of all masters."""
        if self._url.form == "single":
            return [self.of("")]
        return [self._client(address) for address in sorted(self._known().addresses)]

    def forget(self) -> None:
        """Who holds what may have changed."""
        self._topology = None

    def _known(self) -> Topology:
        if self._topology is None:
            last: Exception | None = None
            for address in random.sample(sorted(self._advisers), len(self._advisers)):
                try:
                    self._topology = self._told(address)
                    break
                except (RedisError, OSError, TopologyError) as error:
                    last = error
            else:
                why = "" if last is None else f": {in_words(last)}"
                raise ConnectionError(f"No node tells who holds what{why}") from last
            if self._url.form == "cluster":
                self._advisers |= self._topology.addresses
        return self._topology

    def _told(self, address: Address) -> Topology:
        if self._url.form == "cluster":
            return Topology.of_slots(_said(self._client(address), "CLUSTER", "SLOTS"), address)
        with self._open(address, self._url.of_sentinels) as sentinel:
            asked = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
            return Topology.of_master(_said(sentinel, *asked), address)

    def _client(self, place: Address | str) -> Redis:
        if place not in self._clients:
            self._clients[place] = self._open(place, self._url.options)
        return self._clients[place]

    def _open(self, place: Address | str, options: Any) -> Redis:
        where: dict[str, Any]
        if isinstance(place, str):
            where = {"connection_class": UnixDomainSocketConnection, "path": place}
        else:
            kind = SSLConnection if self._url.tls else Connection
            where = {"connection_class": kind, "host": place[0], "port": place[1]}
        pool = ConnectionPool(
            **where,
            **options,
            socket_timeout=self._seconds,
            socket_connect_timeout=min(self._seconds, _CONNECT_SECONDS),
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        return Redis.from_pool(pool)


def _said(client: Redis, *command: str) -> Any:
    """The answer as it is; redis-py makes something else of commands that it knows."""
    return client.execute_command(*command)  # type: ignore[no-untyped-call]
