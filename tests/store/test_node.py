"""A node's connections: shared while they are busy, opened for all, given up when they hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hiredis import Reader
from redis.exceptions import ConnectionError

from store.node import Node
from store.secure import Contexts

PATIENT = 10.0


class Stub:
    """A server that answers each command with its last word, once its ``gate`` is open."""

    def __init__(self) -> None:
        self.accepted = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.held = asyncio.Event()  # a command waits at the gate
        self._serving: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[str, int]]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.accepted += 1
        commands = Reader()
        try:
            while data := await reader.read(65536):
                commands.feed(data)
                while command := commands.gets():
                    if not self.gate.is_set():
                        self.held.set()
                    await self.gate.wait()
                    writer.write(b"+%b\r\n" % command[-1])
        finally:
            writer.close()


def on_a_stub(scenario: Callable[[Stub, Node], Awaitable[None]], limit: int = 4) -> None:
    async def run() -> None:
        stub = Stub()
        async with stub.open() as address:
            node = Node(
                address, contexts=Contexts(), limit=limit, connect_seconds=PATIENT, options={}
            )
            try:
                async with asyncio.timeout(PATIENT):
                    await scenario(stub, node)
            finally:
                await node.close()

    asyncio.run(run())


async def say(node: Node, word: str) -> str:
    [answer] = await node.ask("", [("ECHO", word)])
    return bytes(answer).decode()


async def give_up(waiting: asyncio.Task[Any]) -> None:
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


def test_all_who_come_at_once_get_their_own_answers_over_one_connection() -> None:
    """Nobody waits for a connection while there is one, and no answer goes astray."""

    async def scenario(stub: Stub, node: Node) -> None:
        words = [str(number) for number in range(50)]
        assert await asyncio.gather(*(say(node, word) for word in words)) == words
        assert stub.accepted == 1

    on_a_stub(scenario, limit=1)


def test_a_busy_node_opens_more_connections_up_to_its_limit() -> None:
    """Behind the backs of those who are served meanwhile."""

    async def scenario(stub: Stub, node: Node) -> None:
        while stub.accepted < 3:
            await asyncio.gather(*(say(node, "x") for _ in range(10)))
        for _ in range(20):
            await asyncio.gather(*(say(node, "x") for _ in range(10)))
        assert stub.accepted == 3

    on_a_stub(scenario, limit=3)


def test_a_connection_that_is_being_opened_survives_who_asked_for_it() -> None:
    """Whoever comes next gets it: a machine too slow to open one in time would never have one."""

    async def scenario(stub: Stub, node: Node) -> None:
        stub.gate.clear()
        impatient = asyncio.create_task(say(node, "first"))
        await stub.held.wait()
        await give_up(impatient)
        stub.gate.set()
        assert await say(node, "second") == "second"
        assert stub.accepted == 1

    on_a_stub(scenario)


def test_a_connection_that_says_nothing_is_given_up() -> None:
    """The next one asks on another; who still waits on it gets the answer."""

    async def scenario(stub: Stub, node: Node) -> None:
        await say(node, "x")
        stub.gate.clear()
        patient = asyncio.create_task(say(node, "patient"))
        impatient = asyncio.create_task(say(node, "impatient"))
        await stub.held.wait()
        await give_up(impatient)
        later = asyncio.create_task(say(node, "later"))
        stub.gate.set()
        assert await asyncio.gather(patient, later) == ["patient", "later"]
        assert stub.accepted == 2

    on_a_stub(scenario, limit=1)


@pytest.mark.parametrize("answered", [False, True])
def test_a_node_that_is_closed_fails_who_waits(answered: bool) -> None:
    """With an error of the connection, not as if it was cancelled; and who comes later."""

    async def scenario(stub: Stub, node: Node) -> None:
        if answered:
            await say(node, "x")
        stub.gate.clear()
        waiting = asyncio.create_task(say(node, "waiting"))
        await stub.held.wait()
        await node.close()
        for late in (waiting, say(node, "late")):
            with pytest.raises(ConnectionError, match="closed"):
                await late

    on_a_stub(scenario)
