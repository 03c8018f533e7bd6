"""Swaps under load: what fails, how long requests take while a version is swapped, what memory is
left. A real service, a realistic bundle published twice, requests at a constant rate, and the
label `stable` moved to and fro.

A request counts as made during a swap when it overlaps the time from the label's change to the
first answer of the version labelled.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import load, servers, world
from bench.graph import Exported
from bench.load import Outcome
from bench.servers import Cores, Server
from bench.turns import is_good
from bench.world import MIXED
from deploy import processes
from model.contract.labels import LabelFile
from model.contract.repository import Repository

CANDIDATES = 200
WARM = 300
SETTLE_SECONDS = 2.0
# How often the service looks: the time until it does is no part of a swap.
ENVIRONMENT = {"DINSERVE_POLL_SECONDS": "0.05"}


@dataclass(frozen=True)
class Plan:
    """How many swaps, how many seconds apart, at how many requests a second."""

    users: int = 10_000
    swaps: int = 100
    every: float = 1.5
    per_second: float = 60.0


@dataclass(frozen=True)
class Found:
    """What came of it. ``seen`` are the swaps after which the version labelled answered."""

    requests: int
    failed: int
    swaps: int
    seen: int
    during: int
    steady_ms: dict[str, float]
    during_ms: dict[str, float]
    swap_ms: dict[str, float]
    memory_before_mib: float
    memory_after_mib: float

    @property
    def ratio(self) -> float:
        """p99 during swaps over p99 of all other requests."""
        return self.during_ms["99"] / self.steady_ms["99"]

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "p99_ratio": self.ratio}


@contextmanager
def running(exported: Exported, users: int, cores: Cores) -> Iterator[tuple[Server, LabelFile]]:
    """The service on one core, with two versions of which the first is stable; its labels."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        servers.on(cores.client),
        processes.redis() as url,
    ):
        root = Path(folder)
        for _ in range(2):
            world.publish(root, exported)
        world.store(url, exported.encoder, users)
        labels = LabelFile(Repository(root, exported.encoder.schema.name), by="bench")
        labels.promote(1)
        command = {"ours": servers.ours(root, url)}
        with servers.running(command, cores.server, ENVIRONMENT) as found:
            yield found["ours"], labels


def measure(server: Server, labels: LabelFile, plan: Plan) -> Found:
    """Load the service, and swap its stable version meanwhile."""
    warm = [one.rows() for one in world.draw(MIXED, plan.users, CANDIDATES, WARM, seed=7)]
    load.closed(server.port, warm, 8)
    before = server.memory_mib()
    count = round(plan.per_second * plan.every * (plan.swaps + 1))
    requests = [one.rows() for one in world.draw(MIXED, plan.users, CANDIDATES, count, seed=8)]
    moved: list[tuple[float, int]] = []
    swapping = threading.Thread(target=_swap, args=(labels, plan, moved))
    swapping.start()
    outcome = load.opened(server.port, requests, plan.per_second)
    swapping.join()
    time.sleep(SETTLE_SECONDS)
    return _found(outcome, plan, moved, before, server.memory_mib())


def _swap(labels: LabelFile, plan: Plan, moved: list[tuple[float, int]]) -> None:
    """Move the label; when and to which version goes to ``moved``."""
    begin = time.monotonic() + plan.every / 2
    for at in range(plan.swaps):
        time.sleep(max(0.0, begin + at * plan.every - time.monotonic()))
        version = 2 - at % 2
        moved.append((time.monotonic(), version))
        labels.promote(version)


def _found(
    outcome: Outcome, plan: Plan, moved: Sequence[tuple[float, int]], before: float, after: float
) -> Found:
    due = outcome.began + np.arange(len(outcome.answers)) / plan.per_second
    ended = due + outcome.latency
    versions = np.array([_version(answer.body) for answer in outcome.answers])
    during = np.zeros(len(due), np.bool_)
    windows = []
    for at, (begin, version) in enumerate(moved):
        until = moved[at + 1][0] if at + 1 < len(moved) else np.inf
        its = ended[(versions == version) & (ended > begin) & (ended < until)]
        if len(its):
            end = float(its.min())
            windows.append(end - begin)
            during |= (due <= end) & (ended >= begin)
    latency = outcome.latency * 1e3
    return Found(
        requests=len(due),
        failed=sum(not is_good(answer) for answer in outcome.answers),
        swaps=len(moved),
        seen=len(windows),
        during=int(during.sum()),
        steady_ms=_percentiles(latency[~during]),
        during_ms=_percentiles(latency[during]),
        swap_ms=_percentiles(np.array(windows) * 1e3),
        memory_before_mib=before,
        memory_after_mib=after,
    )


def _version(body: bytes) -> int:
    try:
        return int(json.loads(body)["version"])
    except (ValueError, KeyError):
        return 0


def _percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(("50", "95", "99", "100"), float("nan"))
    return {str(at): float(np.percentile(values, at)) for at in (50, 95, 99, 100)}
