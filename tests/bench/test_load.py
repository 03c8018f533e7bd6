"""The load generator sees what a caller would see, the time in queues among it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from bench import load
from bench.load import Answer

STALLED = 20
SECONDS = 0.4

Answering = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def server(answer: Answering) -> Iterator[int]:
    """A small HTTP server that answers one request after the other; its port."""
    ready, port = threading.Event(), []

    async def serve() -> None:
        turn, seen = asyncio.Lock(), iter(range(10_000))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with open_until_lost(writer):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))
                    async with turn:
                        await answer(next(seen), writer)

        listening = await asyncio.start_server(talk, load.HOST, 0)
        port.append(listening.sockets[0].getsockname()[1])
        stop.append((asyncio.get_running_loop(), asyncio.Event()))
        ready.set()
        await stop[0][1].wait()
        listening.close()

    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield port[0]
    finally:
        loop, event = stop[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(10)


@contextmanager
def open_until_lost(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def stall_once(number: int, writer: asyncio.StreamWriter) -> None:
    if number == STALLED:
        await asyncio.sleep(SECONDS)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def requests(count: int) -> list[bytes]:
    return [load.post("/", b"{}", "application/json")] * count


@pytest.mark.parametrize("connections", [1, 64])
def test_constant_arrivals_count_from_when_a_request_should_leave(connections: int) -> None:
    """A server that stalls once keeps all waiting that should have come meanwhile."""
    with server(stall_once) as port:
        outcome = load.opened(port, requests(100), 200, connections)
    assert [answer.status for answer in outcome.answers] == [200] * 100
    first, last = outcome.latency[[STALLED, STALLED + 40]]
    assert first > last > SECONDS / 4
    assert (outcome.latency > SECONDS / 4).sum() > 20


def test_saturation_sees_a_stall_once() -> None:
    """A connection that waits sends nothing meanwhile: why latencies are not taken like this."""
    with server(stall_once) as port:
        closed = load.closed(port, requests(100), 1)
    with server(stall_once) as port:
        opened = load.opened(port, requests(100), 200)
    assert closed.latency[STALLED] > SECONDS * 0.9
    assert (closed.latency > SECONDS / 4).sum() < (opened.latency > SECONDS / 4).sum()
    assert closed.seconds >= closed.latency.sum() * 0.99


def test_answers_are_those_of_their_requests() -> None:
    """Statuses and bodies, in pieces, in the order of the requests; a lost connection is 0."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        body = f"answer {number}".encode() * 1000
        status = b"503 Busy" if number == 3 else b"200 OK"
        if number == 5:
            writer.transport.abort()
            return
        head = b"HTTP/1.1 %b\r\ncontent-length: %d\r\nX: y\r\n\r\n" % (status, len(body))
        whole = head + body
        for at in range(0, len(whole), 4096):
            writer.write(whole[at : at + 4096])
            await writer.drain()
            await asyncio.sleep(0.001)

    with server(answer) as port:
        found = load.closed(port, requests(8), 1)
    assert [each.status for each in found.answers] == [200, 200, 200, 503, 200, 0, 200, 200]
    assert found.answers[5] == Answer(0, b"")
    assert found.answers[7].body == b"answer 7" * 1000
    assert np.all(found.latency > 0)
