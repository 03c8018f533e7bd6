"""Where a request's time goes beside the model: the event loop's thread by module."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import Any

from bench import load, servers, world
from bench.graph import Exported
from bench.servers import Cores
from bench.world import FIXED
from deploy import processes

CANDIDATES = 500
USERS = 2000
WARM = 100


def measure(exported: Exported, cores: Cores, form: str, requests: int) -> dict[str, Any]:
    """CPU microseconds per request of the event loop's thread by module, and what it takes when it
    is not profiled. ``form``: rows or columns."""
    asked = world.draw(FIXED, USERS, CANDIDATES, requests, seed=4)
    bodies = [getattr(one, form)() for one in asked]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        servers.on(cores.client),
        processes.redis() as url,
    ):
        repository, told = Path(folder) / "repository", Path(folder) / "profile.json"
        world.publish(repository, exported)
        world.store(url, exported.encoder, USERS)
        plain = servers.ours(repository, url)
        commands = {"plain": plain, "profiled": ["bench.profiled", str(told), *plain]}
        with servers.running(commands, cores.server) as running:
            taken = {}
            for name, server in running.items():
                load.closed(server.port, bodies[:WARM], 1)
                before = server.used()
                if name == "profiled":
                    server.process.send_signal(signal.SIGUSR1)
                load.closed(server.port, bodies, 1)
                taken[name] = (server.used().loop - before.loop) * 1e6 / requests
        found = json.loads(told.read_text())
    each = {name: seconds * 1e6 / requests for name, seconds in found.items()}
    rows = sorted(each.items(), key=lambda pair: -pair[1])
    return {"form": form, "candidates": CANDIDATES, "loop_us": taken, "rows": dict(rows)}
