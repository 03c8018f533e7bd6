"""A server's turn: what it answered, how fast, and the CPU time it took for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.load import Answer, Outcome
from bench.measure import spread
from bench.servers import Server


@dataclass(frozen=True)
class Turn:
    """What came of one load of a server."""

    outcome: Outcome
    cpu_seconds: float
    loop_seconds: float  # of them in the event loop's thread
    core_seconds: float  # in which the server's core did anything

    @property
    def errors(self) -> int:
        return sum(not is_good(answer) for answer in self.outcome.answers)

    @property
    def per_second(self) -> float:
        """Good answers."""
        return (len(self.outcome.answers) - self.errors) / self.outcome.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU time per request."""
        return self.cpu_seconds * 1e3 / len(self.outcome.answers)

    @property
    def loop_ms(self) -> float:
        """CPU time per request in the event loop's thread."""
        return self.loop_seconds * 1e3 / len(self.outcome.answers)

    @property
    def busy(self) -> float:
        """Share of its core that the server used."""
        return self.cpu_seconds / self.outcome.seconds

    @property
    def taken(self) -> float:
        """Share of its core that others took from it."""
        return max(0.0, self.core_seconds - self.cpu_seconds) / self.outcome.seconds

    def latency_ms(self, percentile: float) -> float:
        return float(np.percentile(self.outcome.latency * 1e3, percentile))


def is_good(answer: Answer) -> bool:
    """Answered in full: an answer of ours without the stored history is none."""
    return answer.status == 200 and b'"degraded":"' not in answer.body


def take(server: Server, send: Callable[[int], Outcome]) -> Turn:
    """``send`` loads a server's port."""
    before = server.used()
    outcome = send(server.port)
    after = server.used()
    return Turn(
        outcome,
        after.server - before.server,
        after.loop - before.loop,
        after.core - before.core,
    )


def calmer_half(turns: Sequence[Turn]) -> list[Turn]:
    """Those in which others took least of the server's core, which says nothing of the server."""
    return sorted(turns, key=lambda turn: turn.taken)[: (len(turns) + 1) // 2]


def figures(turns: Sequence[Turn]) -> dict[str, Any]:
    """What is told of every server's turns."""
    return {
        "per_second": spread(each(turns, lambda turn: turn.per_second)),
        "cpu_ms": spread(each(turns, lambda turn: turn.cpu_ms)),
        "p50_ms": spread(each(turns, lambda turn: turn.latency_ms(50))),
        "p99_ms": spread(each(turns, lambda turn: turn.latency_ms(99))),
        "taken": spread(each(turns, lambda turn: turn.taken)),
        "errors": sum(turn.errors for turn in turns),
    }


def each(turns: Sequence[Turn], figure: Callable[[Turn], float]) -> npt.NDArray[np.float64]:
    """A figure of each turn."""
    return np.array([figure(turn) for turn in turns])
