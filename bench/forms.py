"""The forms of a request: what the service does beside running its model, in CPU time."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np

from bench import load, world
from bench.measure import spread, taking_turns
from bench.servers import Server
from bench.turns import Turn, each, figures, is_good, take
from bench.world import FIXED

CANDIDATES = 500
WARM = 5


def measure(ours: Server, users: int, requests: int, turns: int) -> list[dict[str, Any]]:
    """A row per form that the service knows, all asking the same over one connection."""
    asked = world.draw(FIXED, users, CANDIDATES, requests, seed=4)
    forms = {
        "rows": [one.rows() for one in asked],
        "rows, explain 3": [one.rows(explain=3) for one in asked],
        "columns": [one.columns() for one in asked],
    }
    known = {
        name: bodies
        for name, bodies in forms.items()
        if is_good(load.closed(ours.port, bodies[:WARM], 1).answers[0])
    }
    jobs = {
        name: partial(take, ours, partial(load.closed, requests=bodies, connections=1))
        for name, bodies in known.items()
    }
    return [
        {
            "form": name,
            "lengths": str(FIXED),
            "N": CANDIDATES,
            **figures(of),
            "model_ms": spread(each(of, _model_ms)),
            "loop_ms": spread(each(of, lambda turn: turn.loop_ms)),
            "rest_ms": spread(each(of, lambda turn: turn.cpu_ms - _model_ms(turn))),
            "request_bytes": len(known[name][0]),
            "answer_bytes": len(of[0].outcome.answers[0].body),
        }
        for name, of in taking_turns(jobs, turns).items()
    ]


def _model_ms(turn: Turn) -> float:
    """The model's time as the service tells it. All runs are alike, and it is wall time: the lower
    quartile is what a run takes when nobody takes the core away."""
    answers = turn.outcome.answers
    return float(np.percentile([json.loads(one.body)["timing_ms"]["model"] for one in answers], 25))
