"""Memory: what the service holds after many requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench import load, world
from bench.servers import Server, ServerError
from bench.turns import is_good
from bench.world import LONG

PORTION = 2000
CONNECTIONS = 8


def measure(
    ours: Server,
    users: int,
    requests: int,
    candidates: int,
    say: Callable[[str], object],
    portion: int = PORTION,
) -> Iterator[tuple[int, float]]:
    """Requests answered so far and resident MiB: after a warm-up, then at each tenth.

    Raises `ServerError` for an answer that is not good.
    """
    asked = [one.rows() for one in world.draw(LONG, users, candidates, portion, seed=5)]
    load.closed(ours.port, asked, CONNECTIONS)
    yield 0, ours.memory_mib()
    done = 0
    for tenth in range(1, 11):
        while done < (due := requests * tenth // 10):
            some = asked[: due - done]
            bad = [
                one for one in load.closed(ours.port, some, CONNECTIONS).answers if not is_good(one)
            ]
            if bad:
                raise ServerError(f"{bad[0].status} {bad[0].body[:300]!r}")
            done += len(some)
            say(f"{done:,} of {requests:,} requests")
        yield done, ours.memory_mib()
