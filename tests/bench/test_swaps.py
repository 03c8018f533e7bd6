"""Swaps under load: no request fails, and memory comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bench import load, swaps, world
from bench.graph import Exported
from bench.load import Answer, Outcome
from bench.servers import Cores, Server, Used
from bench.swaps import Moved, Plan
from bench.turns import is_good
from bench.world import MIXED
from model.contract.labels import LabelFile
from tests.support import redis_server

USERS = 20
SWAPS = 10
PER_SECOND = 50.0


@pytest.fixture(scope="module")
def running(exported: Exported) -> Iterator[tuple[Server, LabelFile]]:
    redis_server()
    with swaps.running(exported, USERS, Cores.found()) as found:
        yield found


def test_ten_swaps_under_load_fail_no_request(running: tuple[Server, LabelFile]) -> None:
    """Each is followed under way, every answer is good, and resident memory is back within 32 MiB
    of what it was."""
    server, labels = running
    asked = [one.rows() for one in world.draw(MIXED, USERS, 20, 25, seed=4)]
    load.closed(server.port, asked, 4)
    before = server.memory_mib()
    stop = threading.Event()
    answers: list[Answer] = []

    def ask() -> None:
        while not stop.is_set():
            answers.extend(load.opened(server.port, asked, PER_SECOND).answers)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for at in range(SWAPS):
            version = 2 - at % 2
            labels.promote(version)
            deadline = time.monotonic() + 120
            while not answers or json.loads(answers[-1].body)["version"] != version:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        stop.set()
        asking.join()
    assert [answer for answer in answers if not is_good(answer)] == []
    assert server.memory_mib() - before <= 32


def test_all_is_measured(running: tuple[Server, LabelFile]) -> None:
    """Every request is answered and counted; what the figures say is not asserted."""
    server, labels = running
    labels.promote(1)
    found = swaps.measure(server, labels, Plan(USERS, swaps=2, every=0.5, per_second=20))
    assert (found.requests, found.failed, found.swaps) == (30, 0, 2)
    assert found.document()["memory_after_mib"] > 0


def test_a_request_is_of_a_swap_that_it_overlaps() -> None:
    """From the label's change to the first answer of the version labelled; the rest is steady."""
    plan = Plan(swaps=2, every=10, per_second=1)
    versions = [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    body = '{"version":%d,"degraded":null}'
    answers = [Answer(200, (body % version).encode()) for version in versions]
    latency = np.full(20, 0.1)
    latency[2] = 1.6  # ends after the label changed at 103.5
    used = Used(0.0, 0.0, 0.0)
    moved = [Moved(103.5, 2, used), Moved(111.5, 1, used), Moved(121.5, 2, used)]
    outcome = Outcome(answers, latency, 20.0, 100.0)
    found = swaps.found_in(outcome, plan, moved, 1.0, 2.0)
    assert (found.swaps, found.seen, found.failed) == (2, 2, 0)
    # 104 is the first answer of version 2, 112 that of version 1; 102 was still under way.
    assert found.during_ms["count"] == found.all_during_ms["count"] == 2
    assert found.all_steady_ms["count"] == 20 - 4 - 2
    assert found.steady_ms["count"] == 20 - 4 - 2  # 0 to 3 came before the first swap
    assert found.swap_ms["100"] == pytest.approx(600)
