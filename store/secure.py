"""TLS of a store's connections: what each is checked by, made once for all of them.

To load a system's authorities takes longer than a read of the store may, tens of milliseconds of a
core; redis-py does so for each connection, in the event loop and within the time to connect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any

from redis.asyncio.connection import SSLConnection

from store.url import TLS


class Contexts:
    """TLS contexts by the options of a URL. Lives in one event loop."""

    def __init__(self) -> None:
        self._making: dict[frozenset[tuple[str, Any]], asyncio.Task[SSLContext]] = {}

    async def get(self, options: Mapping[str, Any]) -> SSLContext:
        """That of some of redis-py's options. It is made in a thread, and goes on being made when
        the caller gives up. Raises RedisError and OSError."""
        own = frozenset((name, options[name]) for name in TLS & options.keys())
        making = self._making.get(own)
        if making is None:
            making = asyncio.create_task(asyncio.to_thread(_made, dict(own)), name="tls")
            self._making[own] = making
            making.add_done_callback(lambda task: self._done(own, task))
        return await asyncio.shield(making)

    def _done(self, own: frozenset[tuple[str, Any]], task: asyncio.Task[SSLContext]) -> None:
        """What failed is tried anew: a file may be there later."""
        if task.cancelled() or task.exception() is not None:
            del self._making[own]


def _made(options: dict[str, Any]) -> SSLContext:
    context: SSLContext = SSLConnection(**options).ssl_context.get()
    return context
