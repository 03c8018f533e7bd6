"""The drain: how a server ends without failing a request.

Told to end, it is not ready from that moment on, but serves as before for a pause, so that whoever
sends it requests sees it and goes elsewhere; each answer closes its connection. Then it takes no
more connections, what it has begun is answered, and it ends with status 0. What is not done when
the grace is over is cut off. Told again, it ends at once.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from dataclasses import dataclass
from time import monotonic
from types import FrameType

import uvicorn

from service.settings import Settings

_CLOSE = (b"connection", b"close")
_CLOSING_SECONDS = 2.0  # of the grace, after the last answer
_log = logging.getLogger(__name__)


@dataclass
class Drain:
    """Whether this process was told to end."""

    begun: bool = False


class Server(uvicorn.Server):
    """uvicorn, ended by a drain; ``pause`` is the settings' where none is given."""

    def __init__(
        self, config: uvicorn.Config, drain: Drain, settings: Settings, pause: float | None = None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._pause = settings.drain_seconds if pause is None else pause
        self._grace = settings.grace_seconds
        self._ends_at = math.inf
        # One list for good, so that answers under way get the header too.
        self._headers: list[tuple[bytes, bytes]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            _log.info("listening on %s port %d", *each.getsockname()[:2])

    def drain(self) -> None:
        """Begin to end, if that has not begun."""
        if self._drain.begun:
            return
        self._drain.begun = True
        self._headers.append(_CLOSE)
        self._ends_at = monotonic() + self._pause
        if not self.started:
            self.should_exit = True
        last = threading.Timer(self._grace, _cut_off, [self._grace])
        last.daemon = True
        last.start()
        _log.info("draining for %g s", self._pause)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not handed on to uvicorn, which would raise the signal anew after an orderly end."""
        if self._drain.begun:
            end_by(sig)
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's ten times a second: whether it is time to end."""
        ends = await super().on_tick(counter)
        fresh = self.server_state.default_headers
        if fresh is not self._headers:
            self._headers[:] = [*fresh, _CLOSE] if self._drain.begun else fresh
            self.server_state.default_headers = self._headers
        return ends or monotonic() >= self._ends_at


def answer_seconds(settings: Settings) -> float:
    """How long requests that were begun have, once no more connections are taken."""
    return max(1.0, settings.grace_seconds - settings.drain_seconds - _CLOSING_SECONDS)


def end_by(sig: int) -> None:
    """End this process by a signal, at once."""
    signal.signal(sig, signal.SIG_DFL)
    signal.raise_signal(sig)


def _cut_off(seconds: float) -> None:
    _log.error("not ended %g s after it was told to: cut off", seconds)
    os._exit(0)
