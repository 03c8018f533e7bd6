"""A worker: one of several processes that serve on one port, each a whole service.

It takes connections from the door only once its model is loaded, verified and warm, and ends when
the supervisor does. What is imported here is imported by the supervisor too: no model, no engine.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from service.door import TAKEN
from service.drain import Drain, Server, answer_seconds
from service.settings import Settings

_FIRST_REQUEST_SECONDS = 0.1
_BEHIND_SECONDS = 1.0  # the supervisor ends the pause, and shuts the door first


@dataclass(frozen=True)
class Place:
    """What a worker gets from its supervisor: its number, its end of the door's hatch, the folder
    of the metrics, and whether others serve, so that it can wait until there is a model."""

    number: int
    hatch: socket.socket
    folder: Path
    others_serve: bool


def server_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn serves, in one process or in several."""
    from service.protocol import HttpProtocol

    return {
        "http": HttpProtocol,
        "log_config": None,
        "access_log": False,
        "timeout_keep_alive": settings.keep_alive_seconds,
        "timeout_graceful_shutdown": answer_seconds(settings),
        "server_header": False,
        "proxy_headers": settings.traces is not None,  # nothing else says how a caller came here
    }


def work(settings: Settings, place: Place) -> None:
    """Serve until SIGTERM, or say through the hatch why that can't be. SIGINT from a terminal comes
    to the supervisor too, which knows what to do."""
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    from service import shared
    from service.app import create_app
    from service.engine import EngineError
    from service.logs import log_as_json
    from service.telemetry import Telemetry

    log_as_json(worker=place.number)
    shared.join(place.folder, place.number)
    drain = Drain()
    try:
        app = create_app(
            settings,
            telemetry=Telemetry(place.folder),
            hold=lambda: place.others_serve and not server.should_exit,
            drain=drain,
        )
    except (EngineError, ValueError) as error:
        place.hatch.sendall(str(error).encode())
        sys.exit(1)
    config = uvicorn.Config(app, **server_options(settings))
    server = _Server(config, drain, settings, place.hatch)
    server.run()


class _Server(Server):
    """Serves the connections that come through the hatch, and listens to no socket."""

    def __init__(
        self, config: uvicorn.Config, drain: Drain, settings: Settings, hatch: socket.socket
    ) -> None:
        super().__init__(config, drain, settings, settings.drain_seconds + _BEHIND_SECONDS)
        self._hatch = hatch
        self._opening: set[asyncio.Task[Any]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Once is enough: a signal to a whole group comes here directly, and from the supervisor,
        who kills when there is no time."""
        if sig == signal.SIGTERM:
            self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._hatch.setblocking(False)
        asyncio.get_running_loop().add_reader(self._hatch, self._take)
        self._hatch.send(TAKEN)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What was dealt is served: requests of the newest connections are read before idle ones
        # are closed.
        self._take()
        asyncio.get_running_loop().remove_reader(self._hatch)
        self._hatch.close()
        await asyncio.sleep(_FIRST_REQUEST_SECONDS)
        await super().shutdown([])

    def _take(self) -> None:
        """Take the connections that were dealt; when no more will come, end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                message, descriptors, *_ = socket.recv_fds(self._hatch, 1, 1)
                if not message:
                    raise ConnectionResetError
                self._hatch.send(TAKEN)
            except BlockingIOError:
                return
            except OSError:
                loop.remove_reader(self._hatch)
                self.drain()
                self.should_exit = True
                return
            for descriptor in descriptors:
                connection = socket.socket(fileno=descriptor)
                opening = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)

    def _protocol(self) -> asyncio.Protocol:
        """One connection's, as uvicorn makes it for sockets of its own."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )


def leave(*_: object) -> None:
    """To end before anything is served is no failure."""
    sys.exit(0)
