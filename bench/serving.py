"""The service under load, ours and REF's by turns: requests/s, latencies, CPU time per request."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import load, servers, world
from bench.graph import Exported
from bench.load import Answer
from bench.measure import spread, taking_turns
from bench.servers import Cores, Server
from bench.turns import calmer_half, each, figures, is_good, take
from bench.world import FIXED, LONG, MIXED, Mix
from deploy import processes

OURS, TRIMMED = "ours", "REF trimmed"
CANDIDATES = 200
ARRIVALS = 60.0  # a second
SHARE = 0.7  # of our saturation
TOLERANCE = 1e-4
WARM = 8
PERCENTILES = (10, 25, 50, 75, 90, 95, 99, 99.9)


class DifferentError(RuntimeError):
    """Ours and REF do not give the same probabilities: there is nothing to compare."""


@dataclass(frozen=True)
class Plan:
    """How much is measured; ``requests`` are those of a turn at saturation.

    ``overload_seconds`` is how long REF is sent what it may not keep up with. Of the turns with
    constant arrivals the calmer half counts, in which others took least of the server's core.
    """

    users: int
    mixes: tuple[Mix, ...]
    connections: tuple[int, ...]
    turns: int
    requests: int
    open_turns: int
    open_seconds: float
    overload_seconds: float


FULL = Plan(10_000, (MIXED, LONG, FIXED), (4, 8), 7, 120, 12, 6.0, 6.0)
QUICK = Plan(2_000, (MIXED, FIXED), (8,), 3, 60, 2, 3.0, 2.0)


def padded(longest: int) -> str:
    return f"REF padded to {longest}"


@contextmanager
def running(
    exported: Exported, users: int, mixes: Sequence[Mix], cores: Cores
) -> Iterator[dict[str, Server]]:
    """Ours, and REF for the lengths of ``mixes``, on one core; Redis and this process are on the
    other."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        servers.on(cores.client),
        processes.redis() as url,
    ):
        ours, naive = Path(folder) / "repository", Path(folder) / "reference"
        world.publish(ours, exported)
        world.publish_reference(naive, exported)
        world.store(url, exported.encoder, users)
        longest = sorted({mix.longest for mix in mixes})
        commands = {OURS: servers.ours(ours, url)}
        commands |= {padded(n): servers.reference(naive, url, n, trim=False) for n in longest}
        if longest:
            commands[TRIMMED] = servers.reference(naive, url, longest[-1], trim=True)
        with servers.running(commands, cores.server) as found:
            yield found


def measure(
    found: Mapping[str, Server], plan: Plan, say: Callable[[str], object]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of saturation and of constant arrivals. ``say`` is told what is measured.

    Raises `DifferentError`.
    """
    for mix in plan.mixes:
        check(found, plan.users, mix)
    rows = []
    for connections in plan.connections:
        for mix in plan.mixes:
            say(f"requests/s: {mix.name} lengths, {connections} connections")
            rows += saturation(found, plan, mix, connections)
    ours = [
        row["per_second"]["median"]
        for row in rows
        if row["server"] == OURS and row["mix"] == FIXED.name
    ]
    share = round(SHARE * max(ours), 1)
    constant = []
    for mix, per_second in ((MIXED, ARRIVALS), (FIXED, share)):
        say(f"latency: {mix.name} lengths, {per_second} requests/s")
        constant += open_loop(found, plan, mix, per_second)
    return {"saturation": rows, "open": constant}


def check(found: Mapping[str, Server], users: int, mix: Mix) -> float:
    """The largest difference of a probability between ours and REF. Raises `DifferentError`."""
    requests = [one.rows() for one in world.draw(mix, users, CANDIDATES, 5, seed=1)]
    answers = {
        name: load.closed(found[name].port, requests, 1).answers
        for name in (OURS, TRIMMED, padded(mix.longest))
    }
    for name, several in answers.items():
        for answer in several:
            if not is_good(answer):
                raise DifferentError(f"{name}: {answer.status} {answer.body[:300]!r}")
    ours = np.array([_probabilities(answer) for answer in answers[OURS]])
    worst = 0.0
    for name, several in answers.items():
        difference = float(np.abs(ours - [_probabilities(answer) for answer in several]).max())
        if not difference <= TOLERANCE:
            raise DifferentError(f"{name}, {mix.name}: a probability is off by {difference:.1e}")
        worst = max(worst, difference)
    return worst


def saturation(
    found: Mapping[str, Server], plan: Plan, mix: Mix, connections: int
) -> list[dict[str, Any]]:
    """A row per server: all answer the same requests, as fast as each can."""
    drawn = world.draw(mix, plan.users, CANDIDATES, plan.requests, seed=2)
    requests = [one.rows() for one in drawn]
    # A padded request costs the same whatever its history: fewer of them will do.
    few = requests[: max(connections, len(requests) // 4)]
    jobs = {
        name: partial(
            take, found[name], partial(load.closed, requests=some, connections=connections)
        )
        for name, some in ((padded(mix.longest), few), (TRIMMED, requests), (OURS, requests))
    }
    for name in jobs:
        load.closed(found[name].port, few[:WARM], connections)
    turns = taking_turns(jobs, plan.turns)
    rate = {name: each(of, lambda turn: turn.per_second) for name, of in turns.items()}
    cpu = {name: each(of, lambda turn: turn.cpu_ms) for name, of in turns.items()}
    return [
        {
            **_about(mix, name),
            **figures(of),
            "connections": connections,
            "times_faster": spread(rate[OURS] / rate[name]),
            "times_cpu": spread(cpu[name] / cpu[OURS]),
        }
        for name, of in turns.items()
    ]


def open_loop(
    found: Mapping[str, Server], plan: Plan, mix: Mix, per_second: float
) -> list[dict[str, Any]]:
    """A row for REF trimmed and for ours, at the same constant arrivals."""
    count = round(per_second * plan.open_seconds)
    requests = [one.rows() for one in world.draw(mix, plan.users, CANDIDATES, count, seed=3)]
    # The queue of a server that can't keep up grows as long as it is sent more.
    few = requests[: round(per_second * plan.overload_seconds)]
    jobs = {
        name: partial(take, found[name], partial(load.opened, requests=some, per_second=per_second))
        for name, some in ((TRIMMED, few), (OURS, requests))
    }
    taken = taking_turns(jobs, plan.open_turns)
    turns = {name: calmer_half(of) for name, of in taken.items()}
    return [
        {
            **_about(mix, name),
            **figures(of),
            "offered_per_second": per_second,
            "seconds": of[0].outcome.seconds,
            "busy": spread(each(of, lambda turn: turn.busy)),
            "tail": spread(each(of, lambda turn: turn.latency_ms(99) / turn.latency_ms(50))),
            "percentiles": {
                str(at): float(np.median([turn.latency_ms(at) for turn in of]))
                for at in PERCENTILES
            },
        }
        for name, of in turns.items()
    ]


def _probabilities(answer: Answer) -> npt.NDArray[np.float64]:
    return np.array([score["ctr"] for score in json.loads(answer.body)["scores"]])


def _about(mix: Mix, name: str) -> dict[str, Any]:
    return {"mix": mix.name, "lengths": str(mix), "N": CANDIDATES, "server": name}
