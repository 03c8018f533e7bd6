"""The load generator: HTTP/1.1 requests, encoded before, over connections that are kept open.

`closed` sends the next request of a connection when its last one is answered: how much a server
can do. `opened` sends at a constant rate whether the server keeps up or not, and takes latencies
from the moment each request should have left, so that waiting in a queue, this side's too, counts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

HOST = "127.0.0.1"
CONNECTIONS = 64
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"


class Answer(NamedTuple):
    """A status, 0 where the connection was lost, and a body."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """Answers and latencies in seconds, [n] in the order of the requests; all took ``seconds``,
    from ``began`` of the monotonic clock."""

    answers: Sequence[Answer]
    latency: npt.NDArray[np.float64]
    seconds: float
    began: float = 0.0


def closed(port: int, requests: Sequence[bytes], connections: int) -> Outcome:
    """Send all requests over so many connections, each of which waits for its answers."""
    return asyncio.run(_closed(port, requests, connections))


def opened(
    port: int, requests: Sequence[bytes], per_second: float, connections: int = CONNECTIONS
) -> Outcome:
    """Send request i at ``i / per_second`` seconds over at most so many connections."""
    return asyncio.run(_opened(port, requests, per_second, connections))


def post(path: str, body: bytes, kind: str) -> bytes:
    """The bytes of a request; ``kind`` is the body's Content-Type."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection; one request at a time, whose answer must have a Content-Length."""

    def __init__(self) -> None:
        self.lost = False
        self._received = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._answer(Answer(0, b""))

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END)
        if end < 0:
            return
        declared = _LENGTH.search(self._received, 0, end)
        body = end + len(_END)
        if declared is None:
            self.transport.abort()
        elif len(self._received) >= body + int(declared[1]):
            status = int(self._received[9:12])
            self._answer(Answer(status, bytes(self._received[body:])))

    async def ask(self, request: bytes) -> Answer:
        self._waiting = asyncio.get_running_loop().create_future()
        if self.lost:
            return Answer(0, b"")
        self.transport.write(request)
        return await self._waiting

    def _answer(self, answer: Answer) -> None:
        self._received.clear()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)


class Client:
    """At most ``limit`` connections to a port, opened when needed; more requests wait."""

    def __init__(self, port: int, limit: int) -> None:
        self._port, self._free = port, asyncio.Semaphore(limit)
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def ask(self, request: bytes) -> Answer:
        async with self._free:
            self._idle = [connection for connection in self._idle if not connection.lost]
            connection = self._idle.pop() if self._idle else await self._connect()
            answer = await connection.ask(request)
            if not connection.lost:
                self._idle.append(connection)
            return answer

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, HOST, self._port))[1]


async def _closed(port: int, requests: Sequence[bytes], connections: int) -> Outcome:
    clock = asyncio.get_running_loop().time
    answers = [Answer(0, b"")] * len(requests)
    latency = np.zeros(len(requests))

    async def go_on(client: Client, left: Iterator[tuple[int, bytes]]) -> None:
        for at, request in left:
            sent = clock()
            answers[at] = await client.ask(request)
            latency[at] = clock() - sent

    async with Client(port, connections) as client:
        left = enumerate(requests)
        begin = clock()
        await asyncio.gather(*(go_on(client, left) for _ in range(connections)))
        return Outcome(answers, latency, clock() - begin, begin)


async def _opened(
    port: int, requests: Sequence[bytes], per_second: float, connections: int
) -> Outcome:
    clock = asyncio.get_running_loop().time
    answers = [Answer(0, b"")] * len(requests)
    latency = np.zeros(len(requests))

    async def send(client: Client, at: int, due: float) -> None:
        answers[at] = await client.ask(requests[at])
        latency[at] = clock() - due

    async with Client(port, connections) as client, asyncio.TaskGroup() as group:
        begin = clock()
        for at in range(len(requests)):
            due = begin + at / per_second
            await asyncio.sleep(due - clock())
            group.create_task(send(client, at, due))
    return Outcome(answers, latency, clock() - begin, begin)
