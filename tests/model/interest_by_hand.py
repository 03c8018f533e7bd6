"""Numpy alone, one candidate and one behaviour at a time: what formulas are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from model.contract.batch import Batch
from model.network import Network
from tests.model.test_networks import interest_of

Array = np.ndarray
Weights = Mapping[str, Array]
Formula = Callable[[Weights, Array, Array, Array], Array]


def weights(network: Network) -> Weights:
    """A copy of all weights; those of the interest without their prefix."""
    return {
        name.removeprefix("interest."): value.detach().numpy().copy()
        for name, value in network.state_dict().items()
    }


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum()


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


def item(of: Weights, row: Array) -> Array:
    """The vector of an item: its id's row beside the mean of its genres' (D,)."""
    genres = [of["embeddings.tables.genre.weight"][at] for at in row[1:4] if at]
    genre = np.mean(genres, 0) if genres else np.zeros(3)
    return np.concatenate([of["embeddings.tables.item_id.weight"][row[0]], genre])


def behaviour(of: Weights, row: Array) -> Array:
    """The vector of a behaviour: its item scaled and shifted by its rating and action, or shifted
    alone, or as it is (D,)."""
    if "history.gates.rating.weight" not in of:
        return item(of, row)
    both = of["history.gates.rating.weight"][row[4]] + of["history.gates.action.weight"][row[5]]
    scale = both[:6] if len(both) > 6 else 0
    return item(of, row) * (1 + scale) + both[-6:]


def interests(network: Network, batch: Batch, formula: Formula) -> list[Array]:
    """The interest of each candidate: ``formula(weights, e (T, D), ts (T,), q (D,))``. No
    behaviours, no interest."""
    of = weights(network)
    found = []
    for c in range(batch.candidates):
        seen = batch.owner[c], slice(batch.start[c], batch.stop[c])
        e = np.array([behaviour(of, row) for row in batch.history[seen]])
        nothing = np.zeros(network.interest.width)
        q = item(of, batch.item[c])
        found.append(formula(of, e, batch.ts[seen], q) if len(e) else nothing)
    return found


def holds(network: Network, batch: Batch, formula: Formula) -> None:
    """Assert that the interest of each candidate is that of `interests`; of the batch's own form,
    and of the dense one where all see everything."""
    expected = interests(network, batch, formula)
    assert np.std(expected) > 0.1
    forms = [False] if batch.start.any() else [False, True]
    for dense in forms:
        interest = interest_of(network, batch, dense)
        torch.testing.assert_close(interest, torch.tensor(np.array(expected)), rtol=0, atol=1e-10)
