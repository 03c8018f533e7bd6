"""The nodes of a store that has several: a cluster, or a master and those that may take its place.

Who holds a key is asked once, and again behind the callers' backs whenever an exchange fails: a
failover is noticed by the first caller who fails after it, and nobody waits for the search.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Protocol

from redis.exceptions import AskError, ConnectionError, MovedError, RedisError, ResponseError

from store.node import Command, Node, seen
from store.secure import Contexts
from store.topology import Topology, TopologyError
from store.url import Address, StoreUrl

_LOOK_SECONDS = 0.5  # that one who is asked may take
_PAUSE_SECONDS = 0.2  # between two searches
_REDIRECTS = 2


class Reached(Protocol):
    """A store that can be asked: a `Node`, or `Nodes`."""

    def ask(self, key: str, commands: Sequence[Command]) -> Coroutine[Any, Any, list[Any]]: ...

    def ask_each(self, calls: Sequence[tuple[str, Command]]) -> Coroutine[Any, Any, list[Any]]: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...


def reach(url: StoreUrl, *, limit: int, connect_seconds: float) -> Reached:
    """Connections to a store, none of them open yet: ``limit`` to each of its nodes."""
    node = partial(Node, contexts=Contexts(), limit=limit, connect_seconds=connect_seconds)
    if url.form != "single":
        return Nodes(url, node)
    place = url.path if url.path is not None else url.hosts[0]
    return node(place, tls=url.tls, options=url.options)


class Nodes:
    """As `Node`, of all who hold keys."""

    def __init__(self, url: StoreUrl, node: Callable[..., Node]) -> None:
        self._url = url
        self._make = node
        self._topology: Topology | None = None
        self._nodes: dict[Address, Node] = {}
        self._sentinels: dict[Address, Node] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked = -_PAUSE_SECONDS
        self._closing: set[asyncio.Task[None]] = set()

    async def ask(self, key: str, commands: Sequence[Command]) -> list[Any]:
        """As `Node.ask`. Raises RedisError and OSError."""
        try:
            node = self._node(await self._owner(key))
            try:
                return await node.ask(key, commands)
            except AskError as error:  # what is here and what has gone on is not told apart
                node, asking = self._redirected(error)
                answers = await node.ask(key, [each for one in commands for each in (*asking, one)])
                return answers[len(asking) :: len(asking) + 1]
        except BaseException:  # a caller who gave up, too, may have waited for one who is gone
            self.look_soon()
            raise

    async def ask_each(self, calls: Sequence[tuple[str, Command]]) -> list[Any]:
        """As `Node.ask_each`: one round trip to each node at a time. Of a node that fails the
        answers are the error."""
        answers: list[Any] = [None] * len(calls)
        open_calls: dict[int, tuple[Node, list[Command]]] = {}
        for at, (key, _) in enumerate(calls):
            open_calls[at] = self._node(await self._owner(key)), []
        for _ in range(1 + _REDIRECTS):
            by_node: dict[Node, list[int]] = {}
            for at, (node, _) in open_calls.items():
                by_node.setdefault(node, []).append(at)
            await asyncio.gather(
                *(self._fill(answers, calls, node, open_calls, at) for node, at in by_node.items())
            )
            open_calls = {
                at: self._redirected(answers[at])
                for at in open_calls
                if isinstance(answers[at], AskError) and answers[at].host
            }
            if not open_calls:
                break
        if any(_moved_on(answer) for answer in answers):
            self.look_soon()
        return answers

    async def check(self) -> None:
        """Find out who holds what, and have one of them answer. Raises RedisError and OSError."""
        await self._owner("")
        assert self._topology is not None
        await self._node(min(self._topology.addresses)).check()

    async def close(self) -> None:
        """Close all connections."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        for node in (*self._nodes.values(), *self._sentinels.values()):
            await node.close()
        if self._closing:
            await asyncio.wait(self._closing)

    def look_soon(self) -> None:
        """Ask anew who holds what, in the background and not too often."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="topology")
            self._looking.add_done_callback(seen)

    async def _owner(self, key: str) -> Address:
        """Who holds a key. Raises ConnectionError when nobody knows."""
        if self._topology is None:
            self.look_soon()
            assert self._looking is not None
            await asyncio.shield(self._looking)
        assert self._topology is not None
        owner = self._topology.owner(key)
        if owner is None:
            raise ConnectionError("No node holds this slot")
        return owner

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            self._nodes[address] = self._make(address, tls=self._url.tls, options=self._url.options)
        return self._nodes[address]

    def _redirected(self, error: AskError) -> tuple[Node, list[Command]]:
        """Where to ask instead, and what to say before each command. Raises the error itself where
        it does not say where."""
        if not error.host:
            raise error
        if isinstance(error, MovedError):
            self.look_soon()
        asking: list[Command] = [] if isinstance(error, MovedError) else [("ASKING",)]
        return self._node((error.host, error.port)), asking

    async def _fill(
        self,
        answers: list[Any],
        calls: Sequence[tuple[str, Command]],
        node: Node,
        how: Mapping[int, tuple[Node, list[Command]]],
        places: Sequence[int],
    ) -> None:
        """Put in the answers of one node."""
        said = [(calls[at][0], each) for at in places for each in (*how[at][1], calls[at][1])]
        try:
            found = await node.ask_each(said)
        except (RedisError, OSError) as error:
            for at in places:
                answers[at] = error
            return
        end = 0
        for at in places:
            end += len(how[at][1]) + 1
            answers[at] = found[end - 1]

    async def _look(self) -> None:
        """Find out who holds what. Raises ConnectionError when no one tells."""
        await asyncio.sleep(self._looked + _PAUSE_SECONDS - monotonic())
        last: Exception | None = None
        try:
            for address in self._advisers():
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        found = await self._told(address)
                except (RedisError, OSError, TimeoutError, TopologyError) as error:
                    last = error
                    continue
                self._take(found)
                return
            raise ConnectionError("No node tells who holds what") from last
        finally:
            self._looked = monotonic()

    def _advisers(self) -> list[Address]:
        """Who to ask, in any order: one who is cut off from the others must not always be first."""
        known = [] if self._topology is None else self._topology.addresses
        hosts = set(self._url.hosts) | (set(known) if self._url.form == "cluster" else set())
        return random.sample(sorted(hosts), len(hosts))

    async def _told(self, address: Address) -> Topology:
        if self._url.form == "cluster":
            [answer] = await self._node(address).ask("", [("CLUSTER", "SLOTS")])
            return Topology.of_slots(answer, address)
        if address not in self._sentinels:
            self._sentinels[address] = self._make(
                address, tls=self._url.tls, options=self._url.of_sentinels
            )
        asked = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
        [answer] = await self._sentinels[address].ask("", [asked])
        return Topology.of_master(answer, address)

    def _take(self, found: Topology) -> None:
        """Connections to those who hold nothing any more are closed, even if they hang."""
        self._topology = found
        for address in [each for each in self._nodes if each not in found.addresses]:
            closing = asyncio.create_task(self._nodes.pop(address).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _moved_on(answer: Any) -> bool:
    """Whether an answer says that another one is asked better."""
    if isinstance(answer, ResponseError):
        return not str(answer).startswith(("NOSCRIPT", "WRONGTYPE"))
    return isinstance(answer, Exception)
