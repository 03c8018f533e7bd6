"""Swaps under load: what fails, how long requests take while a version is swapped, what memory is
left. A real service, a realistic bundle published twice, requests at a constant rate, and the
label `stable` moved to and fro.

A request counts as made during a swap when it overlaps the time from the label's change to the
first answer of the version labelled. Latencies are those of the calmer half of the swaps, each with
the time until the next, in which others took least of the server's core, and those of all swaps
beside them; failures are of all.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench import load, servers, world
from bench.graph import Exported
from bench.load import Outcome
from bench.servers import Cores, Server, Used
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
    every: float = 2.5
    per_second: float = 60.0


@dataclass(frozen=True)
class Found:
    """What came of it. ``seen`` are the swaps after which the version labelled answered;
    ``taken`` is the most that others took of the core in the calmer half."""

    requests: int
    failed: int
    swaps: int
    seen: int
    taken: float
    steady_ms: dict[str, float]
    during_ms: dict[str, float]
    all_steady_ms: dict[str, float]
    all_during_ms: dict[str, float]
    swap_ms: dict[str, float]
    memory_before_mib: float
    memory_after_mib: float

    @property
    def ratio(self) -> float:
        """p99 during swaps over p99 of all other requests, of the calmer half."""
        return self.during_ms["99"] / self.steady_ms["99"]

    @property
    def whole_ratio(self) -> float:
        """The same of all swaps, whatever others took."""
        return self.all_during_ms["99"] / self.all_steady_ms["99"]

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "p99_ratio": self.ratio, "p99_ratio_of_all": self.whole_ratio}


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
    moved: list[Moved] = []
    swapping = threading.Thread(target=_swap, args=(server, labels, plan, moved))
    swapping.start()
    outcome = load.opened(server.port, requests, plan.per_second)
    swapping.join()
    time.sleep(SETTLE_SECONDS)
    return found_in(outcome, plan, moved, before, server.memory_mib())


class Moved(NamedTuple):
    """When a label was moved to which version, and what the server and its core had used then."""

    at: float
    version: int
    used: Used


def _swap(server: Server, labels: LabelFile, plan: Plan, moved: list[Moved]) -> None:
    """Move the label every so often; one more entry tells the end of the last turn."""
    begin = time.monotonic() + plan.every / 2
    for at in range(plan.swaps + 1):
        time.sleep(max(0.0, begin + at * plan.every - time.monotonic()))
        version = 2 - at % 2
        moved.append(Moved(time.monotonic(), version, server.used()))
        if at < plan.swaps:
            labels.promote(version)


def found_in(
    outcome: Outcome, plan: Plan, moved: Sequence[Moved], before: float, after: float
) -> Found:
    due = outcome.began + np.arange(len(outcome.answers)) / plan.per_second
    ended = due + outcome.latency
    versions = np.array([_version(answer.body) for answer in outcome.answers])
    during, calm = np.zeros(len(due), np.bool_), np.zeros(len(due), np.bool_)
    loaded = (due >= moved[0].at) & (due < moved[-1].at)
    turns = list(pairwise(moved))
    quiet = float(np.median([_taken(*turn) for turn in turns]))
    windows = []
    for turn in turns:
        begin, end = turn[0].at, turn[1].at
        its = ended[(versions == turn[0].version) & (ended > begin) & (ended < end)]
        if len(its):
            end = float(its.min())
            windows.append(end - begin)
        during |= (due <= end) & (ended >= begin)
        if _taken(*turn) <= quiet:
            calm |= (due >= begin) & (due < turn[1].at)
    latency = outcome.latency * 1e3
    return Found(
        requests=len(due),
        failed=sum(not is_good(answer) for answer in outcome.answers),
        swaps=len(turns),
        seen=len(windows),
        taken=quiet,
        steady_ms=_percentiles(latency[calm & ~during]),
        during_ms=_percentiles(latency[calm & during]),
        all_steady_ms=_percentiles(latency[loaded & ~during]),
        all_during_ms=_percentiles(latency[loaded & during]),
        swap_ms=_percentiles(np.array(windows) * 1e3),
        memory_before_mib=before,
        memory_after_mib=after,
    )


def _taken(begin: Moved, end: Moved) -> float:
    """The share of its core that others took from the server."""
    core, server = end.used.core - begin.used.core, end.used.server - begin.used.server
    return max(0.0, core - server) / (end.at - begin.at)


def _version(body: bytes) -> int:
    try:
        return int(json.loads(body)["version"])
    except (ValueError, KeyError):
        return 0


def _percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """With their number as "count"."""
    places = (50, 95, 99, 100)
    found = np.percentile(values, places).tolist() if len(values) else [float("nan")] * 4
    return {"count": len(values), **{str(at): each for at, each in zip(places, found, strict=True)}}
