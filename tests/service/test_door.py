"""The door with workers that are plain sockets: who gets which connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.door import TAKEN, Door, Hatch, bound


class Worker:
    """The other end of a hatch."""

    def __init__(self, door: Door) -> None:
        ours, self.end = socket.socketpair()
        self.end.settimeout(30)
        self.hatch: Hatch = door.hatch(ours)

    def serve(self) -> None:
        self.end.sendall(TAKEN)

    def receive(self) -> socket.socket:
        """A connection that was dealt. The door is not told."""
        _, [descriptor], *_ = socket.recv_fds(self.end, 1, 1)
        return socket.socket(fileno=descriptor)

    def take(self) -> socket.socket:
        connection = self.receive()
        self.end.sendall(TAKEN)
        return connection


class Callers:
    """Connections to a door, each of which sends its name."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.connections: list[socket.socket] = []

    def call(self, name: str) -> None:
        caller = socket.create_connection(self._address, 30)
        caller.sendall(name.encode())
        self.connections.append(caller)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Door, Callers]]:
    with bound("127.0.0.1", 0) as listeners:
        door, callers = Door(listeners), Callers(listeners[0].getsockname())
        try:
            yield door, callers
        finally:
            door.shut()
            for caller in callers.connections:
                caller.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.001)


def name(connection: socket.socket) -> str:
    """Who called. Closes the connection."""
    with connection:
        connection.setblocking(True)
        return connection.recv(100).decode()


def test_connections_are_dealt_in_turn() -> None:
    """Workers get as many connections as each other, however fast they come."""

    async def scenario() -> None:
        async with opened() as (door, callers):
            workers = [Worker(door) for _ in range(3)]
            for worker in workers:
                worker.serve()
            await until(lambda: all(worker.hatch.serves for worker in workers))
            for each in "abcdef":
                callers.call(each)
            await until(lambda: sum(worker.hatch.untaken for worker in workers) == 6)
            got = [[name(worker.take()) for _ in range(2)] for worker in workers]
            assert got == [["a", "d"], ["b", "e"], ["c", "f"]]
            for worker in workers:
                worker.end.close()
            await until(lambda: not any(worker.hatch.serves for worker in workers))

    asyncio.run(scenario())


def test_what_a_worker_did_not_take_goes_to_another() -> None:
    """A worker that ends costs no connection but those it had taken."""

    async def scenario() -> None:
        async with opened() as (door, callers):
            doomed, other = Worker(door), Worker(door)
            doomed.serve()
            await until(lambda: doomed.hatch.serves)
            for each in "abc":
                callers.call(each)
            await until(lambda: doomed.hatch.untaken == 3)
            assert name(doomed.take()) == "a"
            await until(lambda: doomed.hatch.untaken == 2)
            doomed.receive().close()  # it fell before it could say so
            other.serve()
            doomed.end.close()
            await until(lambda: other.hatch.untaken == 2)
            assert [name(other.take()), name(other.take())] == ["b", "c"]
            other.end.close()
            await until(lambda: not other.hatch.serves)

    asyncio.run(scenario())


def test_a_worker_that_hangs_is_passed_over() -> None:
    """Who has not taken what it was dealt gets no more while another has."""

    async def scenario() -> None:
        async with opened() as (door, callers):
            hanging, other = Worker(door), Worker(door)
            hanging.serve()
            other.serve()
            await until(lambda: hanging.hatch.serves and other.hatch.serves)
            for count, each in enumerate("abcde"):
                callers.call(each)
                await until(lambda: hanging.hatch.untaken + other.hatch.untaken > 0)
                if count:
                    await until(lambda: other.hatch.untaken == 1)
                    assert name(other.take()) == each
                    await until(lambda: other.hatch.untaken == 0)
            assert hanging.hatch.untaken == 1
            hanging.end.close()
            await until(lambda: other.hatch.untaken == 1)
            assert name(other.take()) == "a"
            other.end.close()
            await until(lambda: not other.hatch.serves)

    asyncio.run(scenario())


def test_without_a_worker_connections_wait() -> None:
    """Nobody is refused between the end of the only worker and the start of the next."""

    async def scenario() -> None:
        async with opened() as (door, callers):
            first = Worker(door)
            first.serve()
            await until(lambda: first.hatch.serves)
            first.end.close()
            await until(lambda: not first.hatch.serves)
            callers.call("a")
            second = Worker(door)
            second.serve()
            await until(lambda: second.hatch.untaken == 1)
            assert name(second.take()) == "a"
            second.end.close()
            await until(lambda: not second.hatch.serves)

    asyncio.run(scenario())


def test_what_a_worker_says_instead_of_serving_is_kept() -> None:
    """Why it can't serve is at hand after its end."""

    async def scenario() -> None:
        async with opened() as (door, _):
            worker = Worker(door)
            worker.end.sendall(b"no device")
            worker.end.close()
            await until(lambda: worker.hatch.words == "no device")
            assert not worker.hatch.served

    asyncio.run(scenario())
