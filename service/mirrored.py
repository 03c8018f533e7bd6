"""Mirrored: keeps the repository's folder a copy of one on an object store, while it is served.

Requests, the registry and the labels know the folder only, so a store that is away or slow delays
new versions, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from types import TracebackType

from mirror.remote import MirrorError, Remote
from model.contract.labels import LabelError
from service.background import background
from service.telemetry import Telemetry

_log = logging.getLogger(__name__)


class Mirrored:
    """Brings versions and labels here every so often; `async with` begins and ends that.

    Raises `MirrorError` for a URL that can't be used.
    """

    def __init__(
        self,
        url: str,
        root: Path,
        name: str | None,
        *,
        every: float,
        max_bytes: int,
        telemetry: Telemetry,
    ) -> None:
        self._ending = threading.Event()
        self._remote = Remote(url, self._ending.is_set)
        self._root, self._name = root, name
        self._every, self._max_bytes, self._telemetry = every, max_bytes, telemetry
        self._pool = background("mirror")
        self._told: set[str] = set()

    async def __aenter__(self) -> Mirrored:
        self._task = asyncio.create_task(self._watch(), name="mirror")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()  # a download ends with the piece it is at
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._pool, self._renew)
            except Exception as error:  # each store has errors of its own
                self._telemetry.mirror_failures.inc()
                ours = isinstance(error, (LabelError, MirrorError))  # which name nothing secret
                kind = str(error) if ours else type(error).__name__
                if kind not in self._told:  # once, not every time
                    self._told.add(kind)
                    _log.warning("the repository's object store failed: %s", kind)
            else:
                self._told.clear()
                self._telemetry.mirrored.set(time.time())
            await asyncio.sleep(self._every)

    def _renew(self) -> None:
        for name in self._remote.names() if self._name is None else [self._name]:
            self._remote.pull(self._root, name, self._max_bytes)
