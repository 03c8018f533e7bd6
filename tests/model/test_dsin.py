"""DSIN against its equations in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from model.dsin import DSINConfig
from tests.model import interest_by_hand, nets
from tests.model.interest_by_hand import Array, Formula, Weights, sigmoid, softmax


def normalised(of: Weights, name: str, x: Array) -> Array:
    gap = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return gap * of[f"{name}.weight"] + of[f"{name}.bias"]


def block(of: Weights, name: str, x: Array, heads: int, reach: int) -> Array:
    """Self-attention and feed-forward layer with residuals; with ``reach`` none looks ahead."""
    q, k, v = (x @ w.T for w in np.split(of[f"{name}.inputs.weight"], 3))
    size = x.shape[1] // heads
    found = []
    for at in range(len(x)):
        others = range(at + 1 if reach else len(x))
        joined = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            score = [
                q[at, part] @ k[j, part] / np.sqrt(size)
                + (of[f"{name}.distance"][min(at - j, reach - 1), head] if reach else 0)
                for j in others
            ]
            joined.append(softmax(np.array(score)) @ v[: len(score), part])
        y = normalised(
            of, f"{name}.attended", x[at] + of[f"{name}.mix.weight"] @ np.concatenate(joined)
        )
        up = of[f"{name}.up.weight"] @ y + of[f"{name}.up.bias"]
        up = np.where(up > 0, up, 0.01 * up)
        down = of[f"{name}.down.weight"] @ up + of[f"{name}.down.bias"]
        found.append(normalised(of, f"{name}.fed", y + down))
    return np.array(found)


def lstm(of: Weights, name: str, xs: list[Array]) -> list[Array]:
    """Equation 6, without the peepholes that torch does not have either."""
    w, u = (np.split(of[f"{name}.weight_{side}_l0"], 4) for side in ("ih", "hh"))
    b, c = (np.split(of[f"{name}.bias_{side}_l0"], 4) for side in ("ih", "hh"))
    h, cell, found = np.zeros(6), np.zeros(6), []
    for x in xs:
        i, f, g, o = (w[n] @ x + b[n] + u[n] @ h + c[n] for n in range(4))
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(cell)
        found.append(h)
    return found


def interest(config: DSINConfig) -> Formula:
    """Division, bias encoding, self-attention and mean, Bi-LSTM, and two activations."""
    size = config.session_length

    def formula(of: Weights, e: Array, q: Array) -> Array:
        alone = []
        for k, first in enumerate(range(0, len(e), size)):
            session = e[first : first + size]
            biased = np.array(
                [
                    x + of["of_session"][k, 0, 0] + of["of_place"][t, 0] + of["of_unit"]
                    for t, x in enumerate(session)
                ]
            )
            alone.append(block(of, "block", biased, config.heads, reach=0).mean(0))
        forwards = lstm(of, "forwards", alone)
        backwards = lstm(of, "backwards", alone[::-1])[::-1]
        context = [f + b for f, b in zip(forwards, backwards, strict=True)]
        found = []
        for name, vectors in (("alone", alone), ("in_context", context)):
            score = [x @ of[f"{name}.weight.weight"] @ q for x in vectors]
            found.append(softmax(np.array(score)) @ np.array(vectors))
        return np.concatenate(found)

    return formula


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("variant", ["dsin of 2", "dsin of 4", "dsin of 9"])
def test_the_interest_is_that_of_sessions_alone_and_in_context(variant: str, whole: bool) -> None:
    """A candidate at a time."""
    config = nets.config(variant)
    assert isinstance(config, DSINConfig)
    interest_by_hand.holds(nets.network(variant), nets.batch(whole=whole), interest(config))
