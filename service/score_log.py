"""The score log: answered requests go to the log behind the answers' back, with all that their
features were made from.

It never delays an answer and never fails one: what can't be logged is dropped, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch
from model.contract.catalogue import Catalogue
from model.contract.encode import Request, id_text
from model.contract.history import recent
from model.contract.log import Scored, Snapshot, digests
from service import scripts
from service.errors import Unavailable
from service.events import EventLog
from service.lineup import place
from service.telemetry import Telemetry
from service.verify import Version
from service.wire import Answer, Ask

TOGETHER = 32
_PAUSE_SECONDS = 0.2
_LOGGED = "dinserve log:"
_RESULTS = {scripts.ACCEPTED: "logged", scripts.ERASED: "erased", scripts.FULL: "full"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Noted:
    """An answer, and what it was made from; ``received`` (ms since 1970) is before the store was
    read for it."""

    asked: Ask
    answer: Answer
    version: Version
    request: Request
    batch: Batch
    received: int

    def scored(self) -> Scored:
        """The entry of the log."""
        asked, answer, request = self.asked, self.answer, self.request
        schema, encoder = self.version.schema, self.version.encoder
        looked_at = recent(request.history, schema.history_length)
        by_task = np.ascontiguousarray(answer.probability.T)
        return Scored(
            request_id=answer.request_id,
            user_id=asked.user,
            received=self.received,
            model=answer.model,
            version=answer.version,
            schema=schema.fingerprint,
            candidates=_names(asked.candidates, encoder.catalogue),
            probability=dict(zip(answer.tasks, by_task.tolist(), strict=True)),
            history=Snapshot.of(looked_at, asked.history),
            user=dict(request.user),
            context=dict(request.context),
            columns=_columns(asked),
            rows=digests(self.batch, schema),
            unknown=answer.unknown.tolist(),
            degraded=answer.degraded,
        )


def _names(candidates: Sequence[Any] | npt.NDArray[Any], catalogue: Catalogue) -> list[str | None]:
    if not isinstance(candidates, np.ndarray):
        return [id_text(each, "item_id") for each in candidates]
    return catalogue.names_of(candidates)


def _columns(asked: Ask) -> Mapping[str, Sequence[Any]]:
    """The fields that came with the candidates, field by field."""
    if not asked.given:
        return asked.columns
    names = {name for given in asked.given for name in given if name != "item_id"}
    return {name: [given.get(name) for given in asked.given] for name in sorted(names)}


class ScoreLog:
    """Keeps answers for a moment and writes them to the log; `async with` starts and ends it.

    ``share``: of the requests, by their id. ``limit``: answers kept at most.
    """

    def __init__(
        self, events: EventLog, *, share: float, telemetry: Telemetry, limit: int = 1000
    ) -> None:
        self._events, self._share, self._telemetry, self._limit = events, share, telemetry, limit
        self._waiting: deque[Noted] = deque()
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ScoreLog:
        self._task = asyncio.create_task(self._work(), name="score log")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        with suppress(Unavailable):
            while self._waiting:
                await self._write()
        self._count("dropped", len(self._waiting))

    def wants(self, request_id: str) -> bool:
        """Whether a request is among those to be logged."""
        return self._share > 0 and place(_LOGGED, request_id) < self._share

    def add(self, noted: Noted) -> None:
        """Log an answer soon."""
        if len(self._waiting) >= self._limit:
            self._count("dropped", 1)
            return
        self._waiting.append(noted)
        self._filled.set()

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._waiting:
                try:
                    await self._write()
                except Unavailable:
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _write(self) -> None:
        """Write the oldest answers; they stay until that is done. Raises `Unavailable`."""
        some = [self._waiting[at] for at in range(min(TOGETHER, len(self._waiting)))]
        calls = []
        for each in some:
            try:
                calls.append(self._events.noting(each.scored()))
            except Exception as error:  # one that can't be told must not keep the others
                _log.warning("an answer can't be logged: %s", type(error).__name__)
                self._count("failed", 1)
            await asyncio.sleep(0)  # a request may come between
        for code in await self._events.note(calls) if calls else ():
            self._count(_RESULTS[code], 1)
        for _ in some:
            self._waiting.popleft()

    def _count(self, result: str, number: int) -> None:
        if number:
            self._telemetry.logged.labels(result).inc(number)
