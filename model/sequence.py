"""Interests that go through behaviours in their order: what DIEN, DSIN and transformers share.

Such an interest has two steps. `Ordered.encode` looks at a history alone, once for all candidates
that see it; `Ordered.attend` looks at it for each candidate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from model.layers import softmax
from model.tensors import Tensors, Views


class Ordered(nn.Module, ABC):
    """An interest of both forms of the batch; G histories of T behaviours with N candidates each.

    In the form that is exported G are the users. In the form that trains a history is encoded once
    for each view of it (`Views`), and each candidate has a copy of what that gave; views of about
    the same length go side by side, so that little of it is padding.
    """

    causal: bool  # whether a behaviour's code does not depend on later behaviours

    @abstractmethod
    def encode(self, x: Tensor, ts: Tensor, length: Tensor) -> Tensor:
        """Codes (G, ...) of behaviours x (G, T, D) that happened at ts (G, T), of which the first
        ``length`` (G,) are real."""

    @abstractmethod
    def attend(self, code: Tensor, q: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Interest (G, N, I) of candidates q (G, N, D), and the behaviours' weights (G, N, T).

        age (G, T): how many behaviours came after each, below 0 where a candidate sees none.
        """

    def learn(self, code: Tensor, row: Tensor, e: Tensor, item: Tensor) -> None:
        """What a training step takes from codes (G, ...) beside the candidates' labels: nothing.

        row (G, T) tells which of all behaviours e (B, D) each one is, B where there is none, and
        item (B,) which item each is of.
        """

    def forward(self, batch: Tensors, e: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Interest (C, I) from behaviours e and candidates q (C, D), and the weights."""
        if (on := batch.dense) is not None:
            code = self.encode(e, batch.ts, on.length)
            grid = nn.functional.embedding(on.grid, q)  # (U, N, D)
            interest, weight = self.attend(code, grid, on.age(e.shape[1]))
            interest = nn.functional.embedding(on.place, interest.flatten(0, 1))
            return interest, nn.functional.embedding(on.place, weight.flatten(0, 1))
        items = batch.behaviours()[:, 0]
        times = torch.cat([batch.times(), batch.ts.new_zeros(1)])
        interests, weights, candidates, pairs = [], [], [], []
        first = (batch.stop - batch.start).cumsum(0) - (batch.stop - batch.start)
        for candidate, views in Views.of_batch(batch, whole=not self.causal).alike():
            x = nn.functional.embedding(views.row, torch.cat([e, e.new_zeros(1, e.shape[1])]))
            code = self.encode(x, times[views.row], views.length)
            if self.training:
                self.learn(code, views.row, e, items)
            length = (batch.stop - batch.start).index_select(0, candidate)
            age = length[:, None] - 1 - torch.arange(x.shape[1])  # (C, T)
            query = q.index_select(0, candidate)[:, None]
            interest, weight = self.attend(code.index_select(0, views.of), query, age)
            interests.append(interest.squeeze(1))
            weights.append(weight.squeeze(1)[age >= 0])
            candidates.append(candidate)
            pairs.append((first[candidate][:, None] + torch.arange(x.shape[1]))[age >= 0])
        return _in_order(interests, candidates), _in_order(weights, pairs)


def _in_order(parts: list[Tensor], places: list[Tensor]) -> Tensor:
    """The rows of all parts, each at its place."""
    return torch.cat(parts).index_select(0, torch.cat(places).argsort())


class Bilinear(nn.Module):
    """Attention ``softmax_j(h_j W q)`` (DIEN equation 12, DSIN equations 8 and 9)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, q: Tensor, real: Tensor) -> Tensor:
        """Weights (G, N, T) of h (G, T, D) for q (G, N, D), over those ``real`` (G, T)."""
        return softmax(self.weight(q) @ h.transpose(1, 2), real[:, None])
