"""A node: connections to one Redis that are kept open, on which an exchange is one round trip.

redis-py connects and logs in. From then on a connection is a `Line`: its streams, timeouts and
health checks cost more than Redis' answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(eq=False)
class _Exchange:
    """So many commands that were sent, and their answers, which come in order."""

    wanted: int
    answers: asyncio.Future[list[Any]]
    found: list[Any] = field(default_factory=list)

    def take(self, answer: Any) -> bool:
        """One more answer; whether it is the last. Of who is gone they are taken too."""
        self.found.append(answer)
        complete = len(self.found) == self.wanted
        if complete and not self.answers.done():
            self.answers.set_result(self.found)
        return complete


class Line(asyncio.Protocol):
    """A connection that redis-py has made, from then on: exchanges are answered in the order asked,
    and who asks waits for no one else's answer. ``lost`` is called once, with it, at its end."""

    def __init__(self, connection: AbstractConnection, lost: Callable[[Line], object]) -> None:
        self._lost = lost
        self._connection = connection  # its writer would close the transport with itself
        self._reader = Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_MORE,
        )
        self._loop = asyncio.get_running_loop()
        self._asked: deque[_Exchange] = deque()
        self._given_up = False
        self._heard = 0
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        return not (self._given_up or self._transport.is_closing())

    @property
    def load(self) -> int:
        """How many exchanges are under way."""
        return len(self._asked)

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands; their answers, a ResponseError where one failed. Raises RedisError.

        Cancelled while not a word comes, the line is given up: it may hang.
        """
        if not self.usable:
            raise ConnectionError("Connection closed by server.")
        exchange = _Exchange(len(commands), self._loop.create_future())
        self._asked.append(exchange)
        self._transport.write(b"".join(commands))
        heard = self._heard
        try:
            return await exchange.answers
        except asyncio.CancelledError:
            self._given_up |= self._heard == heard
            self._end_unasked()
            raise

    def data_received(self, data: bytes) -> None:
        self._heard += 1
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _MORE:
                if isinstance(answer, ConnectionError):  # Redis is loading, or full
                    raise answer
                if not self._asked:
                    raise InvalidResponse("An answer to nothing")
                if self._asked[0].take(answer):
                    self._asked.popleft()
        except RedisError as error:
            self._fail(error)
        self._end_unasked()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)
        self._fail(ConnectionError("Connection closed by server."))

    def close(self) -> None:
        """Close it at once, whatever is under way."""
        self._fail(ConnectionError("The node is closed"))

    def _end_unasked(self) -> None:
        """Close a line that was given up once nobody waits for it."""
        if self._given_up and all(each.answers.done() for each in self._asked):
            self.close()

    def _fail(self, error: RedisError) -> None:
        self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call]
        while self._asked:
            answers = self._asked.popleft().answers
            if not answers.done():
                answers.set_exception(error)


class Node:
    """At most ``limit`` connections. They are opened behind the callers' backs, which wait for one
    only where there is none yet; a busy one is shared until there is another. An exchange has no
    limit in time, which is the caller's.
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
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._limit, self._connect_seconds = limit, connect_seconds
        self._lines: dict[Line, None] = {}  # in the order of their opening
        self._opening: asyncio.Task[Line] | None = None
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
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        for line in list(self._lines):
            line.close()
        await asyncio.sleep(0)  # the loop is done with them

    async def _answers(self, packed: list[bytes], raises: bool) -> list[Any]:
        """Send commands and read their answers: a pipeline, and no more."""
        while line := self._least():
            if line.load and len(self._lines) < self._limit:
                self._grow()
            try:
                answers = await line.ask(packed)
                break
            except ConnectionError:  # closed while it lay idle; the next, or a new one
                continue
        else:
            line = await self._opened()
            answers = await line.ask(packed)
        if raises:
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
        return answers

    def _least(self) -> Line | None:
        """The connection that has least under way: the first idle one, if any."""
        least = None
        for line in self._lines:
            if line.usable and (least is None or line.load < least.load):
                least = line
                if not line.load:
                    break
        return least

    async def _opened(self) -> Line:
        """A new connection. Raises RedisError and OSError."""
        if self._opening is not None and not self._opening.done():
            try:
                return await asyncio.shield(self._opening)
            except (RedisError, OSError):  # begun before we came: what broke it may be over
                pass
        return await asyncio.shield(self._grow())

    def _grow(self) -> asyncio.Task[Line]:
        """Open one more connection, if that is not under way. Raises ConnectionError."""
        if self._closed:
            raise ConnectionError("The node is closed")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="connection")
            self._opening.add_done_callback(seen)
        return self._opening

    async def _open(self) -> Line:
        connection: AbstractConnection = self._make()
        try:
            if isinstance(connection, SSLConnection):
                connection.ssl_context.context = await self._contexts.get(self._options)
            async with asyncio.timeout(self._connect_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            connection._close()  # type: ignore[no-untyped-call]
            if isinstance(error, asyncio.CancelledError):  # by `close`; no one else is cancelled
                raise ConnectionError("The node is closed") from None
            raise
        line = Line(connection, self._forget)
        if not line.usable:
            raise ConnectionError("Connection closed by server.")
        self._lines[line] = None
        return line

    def _forget(self, line: Line) -> None:
        self._lines.pop(line, None)


def seen(task: asyncio.Task[Any]) -> None:
    """For the end of a task that no one may wait for: its error is none to warn of."""
    if not task.cancelled():
        task.exception()
