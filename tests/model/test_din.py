"""DIN's interest in all its options, against the paper's formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.model import interest_by_hand, nets
from tests.model.interest_by_hand import Array, Weights, sigmoid, softmax

BOTH = pytest.mark.parametrize("whole", [False, True])


def activated(of: Weights, name: str, kind: str, s: Array) -> Array:
    """Equations 8 and 9 for an activation with the running statistics of inference."""
    match kind:
        case "sigmoid":
            return sigmoid(s)
        case "relu":
            return np.where(s > 0, s, 0)
        case "prelu":
            return np.where(s > 0, s, of[f"{name}.alpha"] * s)
    deviation = np.sqrt(of[f"{name}.norm.running_var"] + 1e-8)
    p = sigmoid((s - of[f"{name}.norm.running_mean"]) / deviation)
    return p * s + (1 - p) * of[f"{name}.alpha"] * s


@BOTH
@pytest.mark.parametrize("variant", [*nets.DIN, *nets.UNITS])
def test_the_interest_is_the_sum_of_behaviours_by_their_weights(variant: str, whole: bool) -> None:
    """Equation 3: v_U(A) = sum_j a(e_j, v_A) e_j, with a the MLP on [q, k] and how they meet."""
    options = {**nets.DIN, **nets.UNITS}[variant]
    kind = options["attention_activation"]

    def meet(q: Array, k: Array) -> list[Array]:
        return {
            "difference": [q - k, q * k],
            "product": [q * k],
            "outer": [np.outer(q, k).flatten()],
        }[options.get("interaction", "difference")]

    def interest(of: Weights, e: Array, q: Array) -> Array:
        score = []
        for at, k in enumerate(e):
            x = np.concatenate([q, k, *meet(q, k)])
            s = of["unit.first.weight"] @ x + of["unit.first.bias"]
            s = activated(of, "unit.first_activation", kind, s)
            s = of["unit.rest.0.weight"] @ s + of["unit.rest.0.bias"]
            s = activated(of, "unit.rest.1", kind, s)
            (weight,) = of["unit.rest.2.weight"] @ s + of["unit.rest.2.bias"]
            age = len(e) - 1 - at
            score.append(weight + (of["recency"][age] if options["recency"] else 0))
        weights = softmax(np.array(score)) if options["weights"] == "softmax" else score
        return sum((a * k for a, k in zip(weights, e, strict=True)), np.zeros(6))

    interest_by_hand.holds(nets.network(variant), nets.batch(whole=whole), interest)
