"""The door: accepts the connections of a port and deals them to the workers in turn.

A connection is the door's until a worker says that it took it, so what was dealt to a worker that
dies is dealt again. While no worker serves, connections wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

TAKEN = b"\x06"
_BACKLOG = 2048
_log = logging.getLogger(__name__)


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets bound to all addresses of a host. They refuse until a `Door` opens.

    Raises OSError.
    """
    with ExitStack() as opened:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listeners = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = opened.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.setblocking(False)
            listeners.append(listener)
        yield listeners


class Door:
    """Deals the connections of bound sockets to hatches. Lives in an event loop."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        self._hatches: list[Hatch] = []  # whose turn is next comes first
        self._waiting: deque[socket.socket] = deque()
        self._listening = False
        self._open = False

    def hatch(self, end: socket.socket) -> Hatch:
        """A way to one more worker, who has the other end of a socket pair."""
        hatch = Hatch(end, self)
        self._hatches.append(hatch)
        return hatch

    def flow(self) -> None:
        """Deal what waits, and accept more as long as someone takes it."""
        while self._waiting and self._deal(self._waiting[0]):
            self._waiting.popleft()
        loop = asyncio.get_running_loop()
        may_open = not self._waiting and any(hatch.serves for hatch in self._hatches)
        if may_open and not self._listening:
            self._listening = True
            for listener in self._listeners:
                listener.listen(_BACKLOG)
                _log.info("listening on %s port %d", *listener.getsockname()[:2])
        if may_open and not self._open:
            for listener in self._listeners:
                loop.add_reader(listener, self._accept, listener)
        if self._open and not may_open:
            for listener in self._listeners:
                loop.remove_reader(listener)
        self._open = may_open

    def shut(self) -> None:
        """Deal what the kernel has accepted, then refuse whoever comes."""
        if self._open:
            for listener in self._listeners:
                self._accept(listener)
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners = []

    def finish(self) -> None:
        """Tell the workers that what was dealt is all."""
        for hatch in self._hatches:
            hatch.finish()

    def left(self, hatch: Hatch, untaken: deque[socket.socket]) -> None:
        """A worker takes no more: others get what it did not take."""
        self._hatches.remove(hatch)
        self._waiting.extend(untaken)
        self.flow()

    def _accept(self, listener: socket.socket) -> None:
        while not self._waiting:
            try:
                connection, _ = listener.accept()
            except OSError:  # no more, or one that went away again
                return
            self._waiting.append(connection)
            self.flow()

    def _deal(self, connection: socket.socket) -> bool:
        # In turn, but past a worker that hangs and has not taken what it was dealt.
        for hatch in sorted(self._hatches, key=lambda hatch: hatch.untaken):
            if hatch.deal(connection):
                self._hatches.remove(hatch)
                self._hatches.append(hatch)
                return True
        return False


class Hatch:
    """The way from the door to one worker.

    The worker says `TAKEN` once when it serves and once for each connection, or in words why it
    can't serve. It closes its end when it takes no more, and so does its death.
    """

    def __init__(self, end: socket.socket, door: Door) -> None:
        end.setblocking(False)
        asyncio.get_running_loop().add_reader(end, self.hear)
        self._end, self._door = end, door
        self._dealt: deque[socket.socket] = deque()
        self._words = b""
        self.served = False

    @property
    def serves(self) -> bool:
        return self.served and self._end.fileno() >= 0

    @property
    def untaken(self) -> int:
        """How many connections are on their way."""
        return len(self._dealt)

    @property
    def words(self) -> str:
        """Why it can't serve, if it said so."""
        return self._words.decode()

    def deal(self, connection: socket.socket) -> bool:
        """Whether the connection is on its way."""
        if not self.serves:
            return False
        try:
            socket.send_fds(self._end, [b"\0"], [connection.fileno()])
        except OSError:  # too many are on their way, or the worker has just ended
            return False
        self._dealt.append(connection)
        return True

    def finish(self) -> None:
        """Deal nothing more. What was dealt can still be taken."""
        with suppress(OSError):  # the worker has ended
            self._end.shutdown(socket.SHUT_WR)

    def hear(self) -> None:
        """Take in what the worker said."""
        while self._end.fileno() >= 0:
            try:
                said = self._end.recv(4096)
            except BlockingIOError:
                break
            except OSError:  # it ended with connections on their way
                said = b""
            if not said:
                asyncio.get_running_loop().remove_reader(self._end)
                self._end.close()
                self._door.left(self, self._dealt)
            elif said.startswith(TAKEN):
                for _ in range(len(said) - (not self.served)):
                    self._dealt.popleft().close()
                self.served = True
            else:
                self._words += said
        self._door.flow()
