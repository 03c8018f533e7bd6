"""A node: connections to one Redis that are kept open, on which an exchange is one round trip.

redis-py connects and logs in. From then on a connection is a `Line`: its streams, timeouts and
health checks cost more than Redis' answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from hiredis import Reader, pack_command
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, ResponseError

from store.secure import Contexts
from store.url import Address

Command = tuple[Any, ...]
"""A command and its arguments: str, bytes, int or float."""


_MORE = object()


class Line(asyncio.Protocol):
    """A connection that redis-py has made, from then on: one exchange at a time."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection  # its writer would close the transport with itself
        self._reader = Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_MORE,
        )
        self._loop = asyncio.get_running_loop()
        self._found: list[Any] = []
        self._wanted = 0
        self._asked: asyncio.Future[list[Any]] | None = None
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)

    def ask(self, commands: Sequence[bytes]) -> asyncio.Future[list[Any]]:
        """Send commands; their answers, a ResponseError where one failed. Fails with RedisError."""
        self._asked = asked = self._loop.create_future()
        self._found, self._wanted = [], len(commands)
        if self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(b"".join(commands))
        return asked

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _MORE:
                if isinstance(answer, ConnectionError):  # Redis is loading, or full
                    raise answer
                self._found.append(answer)
        except RedisError as error:
            self._fail(error)
            return
        if len(self._found) >= self._wanted:
            if self._asked is None:
                self._fail(InvalidResponse("An answer to nothing"))
            elif not self._asked.done():
                self._asked.set_result(self._found)
            self._asked = None

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionError("Connection closed by server."))

    def close(self) -> None:
        """Close it at once, whatever is under way."""
        self._fail(ConnectionError("The node is closed"))

    def _fail(self, error: RedisError) -> None:
        self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call]
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error)


class Node:
    """At most ``limit`` exchanges at a time; who comes later waits. What is sent has no limit in
    time, which is the caller's: cancelled half-way, a connection is closed.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        contexts: Contexts,
        tls: bool = False,
        limit: int,
        connect_seconds: float,
        options: Mapping[str, Any],
    ) -> None:
        """``address`` is that of a socket file where it is a string."""
        where: dict[str, Any]
        if isinstance(address, str):
            where = {"connection_class": UnixDomainSocketConnection, "path": address}
        else:
            kind = SSLConnection if tls else Connection
            where = {"connection_class": kind, "host": address[0], "port": address[1]}
        self._contexts, self._options = contexts, options
        # The client's defaults wait for seconds and retry; protocol 2 spares the handshake.
        self._make = partial(
            where.pop("connection_class"),
            **where,
            **options,
            socket_timeout=None,
            socket_connect_timeout=connect_seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._lines: set[Line] = set()
        self._idle: list[Line] = []
        self._slots = asyncio.Semaphore(limit)
        self._closed = False

    def ask(self, key: str, commands: Sequence[Command]) -> Coroutine[Any, Any, list[Any]]:
        """The answers to commands that are all about one key. Raises RedisError and OSError."""
        return self._answers([pack_command(each) for each in commands], raises=True)

    def ask_each(self, calls: Sequence[tuple[str, Command]]) -> Coroutine[Any, Any, list[Any]]:
        """The answer to each call, a key and a command about it; a ResponseError where one failed.

        Raises RedisError and OSError.
        """
        return self._answers([pack_command(command) for _, command in calls], raises=False)

    async def check(self) -> None:
        """Connect, if need be, and be answered. Raises RedisError and OSError."""
        await self.ask("", [("PING",)])

    async def close(self) -> None:
        """Close all connections; whose exchange is under way, fails."""
        self._closed = True
        self._idle.clear()
        for line in self._lines:
            line.close()
        await asyncio.sleep(0)  # the loop is done with them

    async def _answers(self, packed: list[bytes], raises: bool) -> list[Any]:
        async with self._slots:
            if self._closed:
                raise ConnectionError("The node is closed")
            while self._idle:
                try:
                    answers = await self._exchange(self._idle.pop(), packed)
                    break
                except ConnectionError:  # closed while it lay idle; the next, or a new one
                    continue
            else:
                answers = await self._exchange(await self._open(), packed)
        if raises:
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
        return answers

    async def _exchange(self, line: Line, packed: list[bytes]) -> list[Any]:
        """Send commands and read their answers: a pipeline, and no more."""
        try:
            answers = await line.ask(packed)
        except BaseException:  # no other reader may find the answers to this one
            line.close()
            self._lines.discard(line)
            raise
        self._idle.append(line)
        return answers

    async def _open(self) -> Line:
        connection: AbstractConnection = self._make()
        try:
            if isinstance(connection, SSLConnection):
                connection.ssl_context.context = await self._contexts.get(self._options)
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            connection._close()  # type: ignore[no-untyped-call]
            raise
        line = Line(connection)
        self._lines.add(line)
        return line
