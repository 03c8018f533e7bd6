"""A small HTTP proxy in front of replicas, as a load balancer is: it asks each for its readiness,
sends requests to those that are ready, in turn, over connections that it keeps, and never twice."""

from __future__ import annotations

import asyncio
from contextlib import suppress

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_ASK = b"GET /readyz HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n\r\n"


class Proxy:
    """`async with` listens and closes; ``ready`` are the ports that requests are sent to."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._idle: dict[int, list[Connection]] = {}
        self._open: set[asyncio.StreamWriter] = set()
        self._turn = 0
        self.ready: list[int] = []
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()
        for writer in self._open:
            with suppress(OSError):
                await writer.wait_closed()

    async def _connect(self, port: int) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self._open.add(writer)
        return reader, writer

    async def watch(self, port: int) -> None:
        """Ask a replica again and again whether it is ready, for ever."""
        while True:
            status = 0
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(30):
                    reader, writer = await self._connect(port)
                    writer.write(_ASK)
                    status, _, _ = await message(reader)
                    writer.close()
            if status == 200 and port not in self.ready:
                self.ready.append(port)
            if status != 200 and port in self.ready:
                self.ready.remove(port)
                for _, writer in self._idle.pop(port, []):
                    writer.close()
            await asyncio.sleep(self._every)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on each request of a caller; what fails on the way is a 502."""
        self._open.add(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                _, _, request = await message(reader)
                try:
                    answer = await self._forward(request)
                except (OSError, asyncio.IncompleteReadError, IndexError, ZeroDivisionError):
                    answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
                writer.write(answer)
                await writer.drain()
        writer.close()

    async def _forward(self, request: bytes) -> bytes:
        self._turn += 1
        port = self.ready[self._turn % len(self.ready)]
        idle = self._idle.setdefault(port, [])
        reader, writer = idle.pop() if idle else await self._connect(port)
        writer.write(request)
        _, closes, answer = await message(reader)
        if closes or port not in self.ready:
            writer.close()
        else:
            self._idle.setdefault(port, []).append((reader, writer))
        return answer.replace(b"connection: close\r\n", b"")


async def message(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """The next request or answer: its status (0 of a request), whether it is the last on its
    connection, and all of it."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers.get(b"content-length", 0)))
    word = first.split(b" ")[1]
    return int(word) if word.isdigit() else 0, headers.get(b"connection") == b"close", head + body
