"""Merging: up to which size requests gain from sharing a call of the model, found by measurement.

What a shared call saves is the fixed cost of a run; what it costs is padding, and on a CPU work
that no longer fits the cache. Where the one outweighs the other depends on the graph, the provider
and the machine, so each version is measured when it is warmed up.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter, thread_time

from model.contract.batch import merge
from model.contract.schema import Schema
from service.engine import Engine, of_padding

GAIN = 0.95
"""A shared call has to take less than this part of the time that its requests take alone."""

_TIMES = 5
_FAILURES = 2
_SIZES = ((10, 1), (20, 5), (25, 20), (50, 20), (100, 20), (200, 25))
_DEVICE_SIZES = ((300, 50), (500, 100), (1000, 100), (2000, 200))  # what fills no core, but a GPU


def merge_limit(engine: Engine, schema: Schema, clock: Callable[[], float] | None = None) -> int:
    """The most candidate x behaviour pairs, padded, of a call that requests gain from sharing.

    Two equal requests are run in one call and in two, by turns, larger ones each time, until that
    has not paid for two sizes in a row. 0 where it never pays. On a CPU this thread's own time
    counts: a version is measured while another one serves, and waits for that one's requests.
    """
    clock = clock or (thread_time if engine.provider == "cpu" else perf_counter)
    limit, failures = 0, 0
    sizes = _SIZES + (_DEVICE_SIZES if engine.provider != "cpu" else ())
    for candidates, behaviours in sizes:
        length = min(behaviours, schema.history_length)
        alone = of_padding(schema, candidates, length)
        both = merge([alone, alone])
        shared, apart = list[float](), list[float]()
        for turn in range(1 + _TIMES):
            for batch, times in ((both, shared), (alone, apart)):
                began = clock()
                engine.run(batch)
                if turn:  # the first run of a shape is slow
                    times.append(clock() - began)
        if median(shared) < GAIN * 2 * median(apart):
            limit, failures = 2 * candidates * length, 0
        else:
            failures += 1
            if failures == _FAILURES:
                break
    return limit
