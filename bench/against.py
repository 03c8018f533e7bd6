"""This service against that of another checkout, by turns on one core: CPU time per request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import load, servers, world
from bench.graph import Exported
from bench.measure import spread, taking_turns
from bench.servers import Cores
from bench.turns import each, is_good, take
from bench.world import FIXED, MIXED, Asked, Mix
from deploy import processes

THIS, OTHER = "this", "the other"
USERS = 2000
WARM = 40
FORMS: dict[str, tuple[Mix, int, int, Callable[[Asked], bytes]]] = {
    "columns": (FIXED, 500, 1, Asked.columns),
    "rows": (FIXED, 500, 1, Asked.rows),
    "rows, explain 3": (FIXED, 500, 1, lambda one: one.rows(explain=3)),
    "rows, 8 connections": (MIXED, 200, 8, Asked.rows),
}
"""Histories, candidates, connections, and how they ask."""


def measure(
    exported: Exported,
    cores: Cores,
    other: Path,
    turns: int,
    requests: int,
    say: Callable[[str], object],
) -> list[dict[str, Any]]:
    """A row per form: microseconds of CPU per request of the event loop's thread and of the whole
    process, and the ratios to those of the service in the folder ``other``."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        servers.on(cores.client),
        processes.redis() as url,
    ):
        repository = Path(folder) / "repository"
        world.publish(repository, exported)
        world.store(url, exported.encoder, USERS)
        commands = dict.fromkeys((OTHER, THIS), servers.ours(repository, url))
        with servers.running(commands, cores.server, folders={OTHER: other}) as found:
            rows = []
            for name, (mix, candidates, connections, form) in FORMS.items():
                say(name)
                drawn = world.draw(mix, USERS, candidates, requests, seed=4)
                bodies = [form(one) for one in drawn]
                send = partial(load.closed, requests=bodies, connections=connections)
                jobs = {at: partial(take, server, send) for at, server in found.items()}
                for server in found.values():
                    load.closed(server.port, bodies[:WARM], connections)
                taken = taking_turns(jobs, turns)
                loop = {at: each(of, lambda turn: turn.loop_ms) * 1e3 for at, of in taken.items()}
                whole = {at: each(of, lambda turn: turn.cpu_ms) * 1e3 for at, of in taken.items()}
                answers = [a for of in taken.values() for turn in of for a in turn.outcome.answers]
                rows.append(
                    {
                        "form": name,
                        "lengths": str(mix),
                        "N": candidates,
                        "loop_us": {at: spread(values) for at, values in loop.items()},
                        "all_us": {at: spread(values) for at, values in whole.items()},
                        "loop_ratio": spread(loop[THIS] / loop[OTHER]),
                        "all_ratio": spread(whole[THIS] / whole[OTHER]),
                        "errors": sum(not is_good(answer) for answer in answers),
                    }
                )
            return rows
