"""Formulas in plain numpy, a candidate and a behaviour at a time, over the schema of `nets`.

Weights are those of a network, copied out by name; none of its code is called.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch
from model.network import Network
from tests.model.interest_by_hand import activated

Floats = npt.NDArray[np.float64]


class Weights(dict[str, Floats]):
    """A network's weights by name, in float64."""

    @classmethod
    def of(cls, network: Network) -> Weights:
        return cls({name: value.numpy().copy() for name, value in network.state_dict().items()})

    def row(self, prefix: str, table: str, at: int) -> Floats:
        """One row of a table; that of padding is zero."""
        found: Floats = self[f"{prefix}.tables.{table}.weight"][at]
        return found

    def tags(self, prefix: str, table: str, ids: npt.NDArray[np.int64]) -> Floats:
        """The mean of those present, zero where none is."""
        rows = [self.row(prefix, table, at) for at in ids if at]
        return np.mean(rows, 0) if rows else 0 * self.row(prefix, table, 0)


def seen(batch: Batch, c: int) -> npt.NDArray[np.int64]:
    """The behaviours of a candidate."""
    found: npt.NDArray[np.int64] = batch.history[batch.owner[c], batch.start[c] : batch.stop[c]]
    return found


def item(w: Weights, prefix: str, row: npt.NDArray[np.int64]) -> list[Floats]:
    """The fields of an item: its id and its genres."""
    return [w.row(prefix, "item_id", row[0]), w.tags(prefix, "genre", row[1:4])]


def shown(w: Weights, prefix: str, batch: Batch, c: int) -> list[Floats]:
    """The fields of a candidate and what is around it: gender, likes, hour, campaign, item."""
    gender, *likes = batch.user[batch.owner[c]]
    return [
        w.row(prefix, "gender", gender),
        w.tags(prefix, "genre", np.array(likes)),
        w.row(prefix, "hour", batch.context[c, 0]),
        w.row(prefix, "campaign", batch.ad[c, 0]),
        *item(w, prefix, batch.item[c]),
    ]


def share(batch: Batch, c: int, mean: bool) -> float:
    """What a behaviour counts."""
    return 1 / max(len(seen(batch, c)), 1) if mean else 1.0


def interest(w: Weights, batch: Batch, c: int, dim: int, mean: bool) -> list[Floats]:
    """The behaviours' embeddings, scaled and shifted by rating and action, summed: two fields."""
    total = np.zeros(2 * dim)
    for row in seen(batch, c):
        both = w["history.gates.rating.weight"][row[4]] + w["history.gates.action.weight"][row[5]]
        scale, shift = np.split(both, 2)
        e = np.concatenate(item(w, "embeddings", row)) * (1 + scale) + shift
        total += e * share(batch, c, mean)
    return [total[:dim], total[dim:]]


def fields(w: Weights, batch: Batch, c: int, dim: int, mean: bool) -> list[Floats]:
    """All fields of a candidate, the interest's behind the others."""
    return shown(w, "embeddings", batch, c) + interest(w, batch, c, dim, mean)


def linear_terms(w: Weights, prefix: str, batch: Batch, c: int, mean: bool) -> list[Floats]:
    """``w_i x_i`` of each field of candidate and behaviours, (tasks,) each."""
    pooled = [np.zeros(2) for _ in range(4)]
    own = f"{prefix}.behaviour"
    for row in seen(batch, c):
        weights = [
            *item(w, own, row),
            w.row(own, "rating", row[4]),
            w.row(own, "action", row[5]),
        ]
        for at, weight in enumerate(weights):
            pooled[at] += weight * share(batch, c, mean)
    return shown(w, f"{prefix}.candidate", batch, c) + pooled


def linear(w: Weights, prefix: str, batch: Batch, c: int, mean: bool) -> Floats:
    """``w_0 + sum_i w_i x_i`` (tasks,)."""
    found: Floats = w[f"{prefix}.bias"] + sum(linear_terms(w, prefix, batch, c, mean))
    return found


def mlp(
    w: Mapping[str, Floats],
    x: Floats,
    name: str = "head",
    kind: str = "prelu",
    last: bool = False,
) -> Floats:
    """Linear layers, an activation between them, and one behind the last too where ``last``."""
    at = 0
    while (weight := w.get(f"{name}.layers.{at}.weight")) is not None:
        x = weight @ x + w[f"{name}.layers.{at}.bias"]
        if last or f"{name}.layers.{at + 3}.weight" in w:
            x = activated(w, f"{name}.layers.{at + 1}", kind, x)
        at += 3  # the layer, its activation, its dropout
    assert at
    return x
