"""Recorded requests: a few real ones, as they were asked, on which a new version is warmed up.

They are kept raw, since a version encodes in its own way, and in memory only; no user id is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from model.contract.bundle import BundleError
from model.contract.encode import Encoder, FieldError
from model.contract.history import HistoryCodec
from service.encoding import encode
from service.engine import Engine
from service.features import Stored
from service.wire import Ask

KEPT = 32
EVERY = 16
MAX_BYTES = 65_536


@dataclass(frozen=True)
class Sample:
    """A request without its user, what the store knew, and the layout of that history."""

    asked: Ask
    stored: Stored
    codec: HistoryCodec


class Recorded:
    """The last `KEPT` of every `EVERY`-th request whose body has at most `MAX_BYTES`."""

    def __init__(self) -> None:
        self._ring: deque[Sample] = deque(maxlen=KEPT)
        self._met = 0

    def note(self, asked: Ask, stored: Stored, codec: HistoryCodec, size: int) -> None:
        """A request that was answered; ``size`` is its body's."""
        if size > MAX_BYTES:
            return
        if self._met % EVERY == 0:
            self._ring.append(Sample(replace(asked, user=""), stored, codec))
        self._met += 1

    def samples(self) -> list[Sample]:
        return list(self._ring)


def replay(samples: Iterable[Sample], encoder: Encoder, engine: Engine) -> None:
    """Run requests on a version; those that its schema can't read are passed over.

    Raises `BundleError` for a score that is not finite, and what the engine raises.
    """
    # The first run of a shape is slow on a device; on a CPU a second one would find nothing new.
    times = 1 if engine.provider == "cpu" else 2
    for sample in samples:
        history = encoder.codec.convert(sample.stored.history, sample.codec)
        try:
            stored = replace(sample.stored, history=history)
            batch = encode(sample.asked, stored, encoder).batch
        except FieldError:
            continue
        for _ in range(times):
            logit = engine.run(batch, weight=sample.asked.explain > 0).logit
            if not np.isfinite(logit).all():
                raise BundleError("a logit of a recorded request is not finite", "not_finite")
