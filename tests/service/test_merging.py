"""Merging: the limit is where sharing a call stops to pay, by the clock of the engine at hand."""

from __future__ import annotations

import numpy as np
import pytest

from model.contract.batch import Batch
from model.contract.schema import Schema
from service.engine import Scores
from service.merging import merge_limit

SCHEMA = Schema.parse('name = "s"\nhistory_length = 100\n[[item]]\nname = "item_id"\n')


class Engine:
    """Takes ``fixed`` for a call, 1 for a pair, and ``beyond`` for a pair above ``cache``."""

    def __init__(self, provider: str, fixed: float, cache: float, beyond: float) -> None:
        self.provider = provider
        self._fixed, self._cache, self._beyond = fixed, cache, beyond
        self.now = 0.0
        self.calls = 0

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        pairs = batch.candidates * batch.history.shape[1]
        slow = 1e6 if self.calls < 2 else 0.0  # the first runs of all say nothing
        self.now += self._fixed + pairs + self._beyond * max(0.0, pairs - self._cache) + slow
        self.calls += 1
        return Scores(np.zeros((batch.candidates, 1), np.float32))


@pytest.mark.parametrize(
    ("provider", "fixed", "cache", "beyond", "expected"),
    [
        ("cpu", 0.0, np.inf, 0.0, 0),  # nothing is saved
        ("cpu", 400.0, np.inf, 0.0, 2 * 100 * 20),  # 400 of 4,800 is the last worth it
        ("cpu", 400.0, 500.0, 5.0, 2 * 20 * 5),  # beyond the cache it costs more than it saves
        ("cpu", 1e9, np.inf, 0.0, 2 * 200 * 25),
        ("cuda", 1e9, np.inf, 0.0, 2 * 2000 * 100),  # a device is filled by more
    ],
)
def test_requests_share_a_call_as_long_as_it_pays(
    provider: str, fixed: float, cache: float, beyond: float, expected: int
) -> None:
    """Fixed costs speak for sharing, a cache that overflows against it."""
    engine = Engine(provider, fixed, cache, beyond)
    assert merge_limit(engine, SCHEMA, lambda: engine.now) == expected


def test_measuring_ends_where_it_stopped_to_pay() -> None:
    """Large calls that will not pay are not made."""
    engine = Engine("cpu", 0.0, np.inf, 0.0)
    merge_limit(engine, SCHEMA, lambda: engine.now)
    assert engine.calls <= 4 * 6
