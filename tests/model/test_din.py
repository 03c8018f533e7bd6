"""DIN's interest in all its options, against the paper's formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from model.din import DINConfig
from tests.model import interest_by_hand, nets
from tests.model.interest_by_hand import Array, Formula, Weights, activated, softmax


def interest(config: DINConfig) -> Formula:
    """Equation 3: v_U(A) = sum_j a(e_j, v_A) e_j, with a the MLP on [q, k] and how they meet."""
    kind = config.attention_activation

    def meet(q: Array, k: Array) -> list[Array]:
        return {
            "difference": [q - k, q * k],
            "product": [q * k],
            "outer": [np.outer(q, k).flatten()],
        }[config.interaction]

    def formula(of: Weights, e: Array, ts: Array, q: Array) -> Array:
        score = []
        for at, k in enumerate(e):
            x = np.concatenate([q, k, *meet(q, k)])
            s = of["unit.first.weight"] @ x + of["unit.first.bias"]
            s = activated(of, "unit.first_activation", kind, s)
            last = 2 * len(config.attention) - 2
            for layer in range(0, last, 2):
                s = of[f"unit.rest.{layer}.weight"] @ s + of[f"unit.rest.{layer}.bias"]
                s = activated(of, f"unit.rest.{layer + 1}", kind, s)
            (weight,) = of[f"unit.rest.{last}.weight"] @ s + of[f"unit.rest.{last}.bias"]
            age = len(e) - 1 - at
            score.append(weight + (of["recency"][age] if config.recency else 0))
        weights = softmax(np.array(score)) if config.weights == "softmax" else score
        return sum((a * k for a, k in zip(weights, e, strict=True)), np.zeros(6))

    return formula


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("variant", [*nets.DIN, *nets.UNITS])
def test_the_interest_is_the_sum_of_behaviours_by_their_weights(variant: str, whole: bool) -> None:
    """A candidate and a behaviour at a time."""
    config = nets.config(variant)
    assert isinstance(config, DINConfig)
    interest_by_hand.holds(nets.network(variant), nets.batch(whole=whole), interest(config))
