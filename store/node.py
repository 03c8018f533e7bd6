"""A node: connections to one Redis that are kept open, on which an exchange is one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ResponseError

from store.url import Address

Command = tuple[Any, ...]
"""A command and its arguments: str, bytes, int or float."""


class Node:
    """At most ``limit`` exchanges at a time; who comes later waits. What is sent has no limit in
    time, which is the caller's: cancelled half-way, a connection is closed.
    """

    def __init__(
        self,
        address: Address | str,
        *,
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
        # The client's defaults wait for seconds and retry; protocol 2 spares the handshake. Its own
        # limit of a read costs a task for each write, and on Python 3.11 its wait_for loses a
        # cancellation that comes while the write is done.
        self._pool = ConnectionPool(
            **where,
            **options,
            max_connections=limit,
            socket_timeout=None,
            socket_connect_timeout=connect_seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        # Taken from the pool for good: its care for each use costs as much as Redis' answer.
        self._idle: list[AbstractConnection] = []
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
        await self._pool.disconnect()

    async def _answers(self, packed: list[bytes], raises: bool) -> list[Any]:
        async with self._slots:
            if self._closed:
                raise ConnectionError("The node is closed")
            while self._idle:
                connection = self._idle.pop()
                with suppress(ConnectionError):  # closed while it lay idle; the next, or a new one
                    return await self._exchange(connection, packed, raises)
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            return await self._exchange(connection, packed, raises)

    async def _exchange(
        self, connection: AbstractConnection, packed: list[bytes], raises: bool
    ) -> list[Any]:
        """Send commands and read their answers: a pipeline, and no more."""
        answers: list[Any] = []
        failed: ResponseError | None = None
        try:
            await connection.send_packed_command(packed, check_health=False)
            for _ in packed:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
                    failed = failed or error
        except BaseException:  # no other reader may find the answers to this one
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
            raise
        self._idle.append(connection)
        if raises and failed is not None:
            raise failed
        return answers
