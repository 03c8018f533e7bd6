"""The shadow: a version scored beside the stable one, to see by how much its scores differ.

It runs after the answer was made, in one thread of its own that yields to all others, and a few
requests at most wait for it: what comes beyond is passed over and counted. No request ever waits
for it or fails by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from model.contract.schema import Schema
from service.background import background
from service.encoding import encode
from service.engine import expit
from service.features import Stored
from service.telemetry import Telemetry
from service.verify import Version
from service.wire import Ask

Floats = npt.NDArray[np.float64]

WAITING = 4
_log = logging.getLogger(__name__)


class Shadow:
    """Scores requests on a shadow version; `async with` opens and closes it."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._offered: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Shadow:
        self._pool = background("shadow")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def offer(
        self,
        version: Version,
        read: Callable[[Schema], Ask],
        asked: Ask,
        stored: Stored,
        answered: Version,
        probability: Floats,
    ) -> None:
        """Have ``version`` score what ``answered`` gave ``probability`` [C, tasks] for.

        ``asked`` and ``stored`` are as that version read them; ``read`` reads the body anew.
        """
        if len(self._offered) >= WAITING:
            self._telemetry.shadow_requests.labels("skipped").inc()
            return
        work = (version, read, asked, stored, answered, probability)
        offered = asyncio.wrap_future(self._pool.submit(self._score, *work))
        self._offered.add(offered)
        offered.add_done_callback(self._offered.discard)

    def idle(self) -> bool:
        """Whether all that was taken is scored."""
        return not self._offered

    def _score(
        self,
        version: Version,
        read: Callable[[Schema], Ask],
        asked: Ask,
        stored: Stored,
        answered: Version,
        probability: Floats,
    ) -> None:
        telemetry = self._telemetry
        try:
            if version.schema.fingerprint != answered.schema.fingerprint:
                asked = read(version.schema)
            codec = version.encoder.codec
            history = codec.convert(stored.history, answered.encoder.codec)
            batch = encode(asked, replace(stored, history=history), version.encoder).batch
            found = expit(version.engine.run(batch).logit[:, 0])
            theirs = probability[:, 0]
            difference = np.abs(found - theirs)
            telemetry.shadow_mean.observe(float(difference.mean()))
            telemetry.shadow_max.observe(float(difference.max()))
            correlation = rank_correlation(found, theirs)
            if correlation is not None:
                telemetry.shadow_rank.observe(correlation)
            telemetry.shadow_requests.labels("scored").inc()
        except Exception as error:  # a shadow's trouble is no one else's
            telemetry.shadow_requests.labels("failed").inc()
            _log.warning("the shadow could not score a request: %s", type(error).__name__)


def rank_correlation(one: Floats, two: Floats) -> float | None:
    """Spearman's rank correlation of [n] and [n]; None where one of them does not rank at all."""
    ranks = np.stack([_ranks(one), _ranks(two)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1)
    if not squares.all():
        return None
    return float((centred[0] * centred[1]).sum() / np.sqrt(squares.prod()))


def _ranks(values: Floats) -> Floats:
    """Ranks [n] from 0; equal values share the mean of theirs."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Floats = ends - (counts + 1) / 2
    return shared[at]
