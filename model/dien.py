"""DIEN: Deep Interest Evolution Network (Zhou et al., AAAI 2019, arXiv 1809.03672).

A GRU turns behaviours into interest states; an auxiliary loss holds each state to the behaviour
that came next. A second GRU goes through the states, and its update gate is scaled by the attention
that the candidate pays to each: interest evolves only along what is relevant for the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.contract.schema import Schema
from model.layers import Activation
from model.network import NetworkConfig
from model.sequence import Bilinear, Ordered


@dataclass(frozen=True)
class DIENConfig(NetworkConfig):
    """What can be chosen of DIEN: ``auxiliary`` is the weight of the auxiliary loss (alpha of
    equation 7)."""

    head_activation: Activation = "dice"
    auxiliary: float = 1.0

    def interest(self, schema: Schema, width: int) -> Evolution:
        return Evolution(width, self.auxiliary)


class Evolution(Ordered):
    """The interest's last state, as it evolved for each candidate (section 4.3)."""

    causal = True

    def __init__(self, width: int, auxiliary: float) -> None:
        super().__init__()
        self.width, self.auxiliary = width, auxiliary
        self.extractor = nn.GRU(width, width, batch_first=True)  # equations 2 to 5
        self.attention = Bilinear(width)
        self.evolution = AUGRU(width)
        self._losses: list[Tensor] = []

    def encode(self, x: Tensor, ts: Tensor, length: Tensor) -> Tensor:
        """Interest states, and what they give to the AUGRU's gates, side by side (G, T, 4 D)."""
        h: Tensor = self.extractor(x)[0]
        return torch.cat([h, self.evolution.inputs(h)], -1)

    def attend(self, code: Tensor, q: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        h, given = code.split([self.width, 3 * self.width], -1)
        weight = self.attention(h, q, age >= 0)
        return self.evolution(given, weight), weight

    def learn(self, code: Tensor, row: Tensor, e: Tensor, item: Tensor) -> None:
        if self.auxiliary:
            self._losses.append(auxiliary_losses(code[..., : self.width], row, e, item))

    def loss(self) -> Tensor | None:
        """The auxiliary loss of the last training forward, weighted; it is handed over once.

        It is the mean over all steps of all views, where the paper adds up each history's; 0 where
        no behaviour follows another, or all are of one item.
        """
        found, self._losses = self._losses, []
        if not found:
            return None
        steps = torch.cat(found)
        return self.auxiliary * steps.sum() / max(len(steps), 1)


class AUGRU(nn.Module):
    """A GRU whose update gate is scaled by attention (equations 3 to 5 and 14 to 16)::

        u = a_t sigmoid(W_u x_t + U_u h + b_u)     r = sigmoid(W_r x_t + U_r h + b_r)
        n = tanh(W_n x_t + r * U_n h + b_n)        h' = (1 - u) h + u n

    Where no attention is paid nothing changes, so padding needs no mask.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * width)  # u, r, n
        self.state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, given: Tensor, weight: Tensor) -> Tensor:
        """The last state (G, N, D), from 0, with attention ``weight`` (G, N, T); given (G, T, 3 D)
        is what ``inputs`` makes of x. What is exported in its place is `training.recurrent`."""
        width = given.shape[2] // 3
        h = given.new_zeros(*weight.shape[:2], width)
        for x, a in zip(given[:, None].unbind(2), weight[..., None].unbind(2), strict=True):
            (of_x, xn), (of_h, hn) = (v.split([2 * width, width], -1) for v in (x, self.state(h)))
            u, r = torch.sigmoid(of_x + of_h).chunk(2, -1)
            h = torch.lerp(h, torch.tanh(xn + r * hn), a * u)
        return h


def auxiliary_losses(h: Tensor, row: Tensor, e: Tensor, item: Tensor) -> Tensor:
    """How badly states h (G, T, D) tell the next behaviour from another (section 4.2, equation 6).

    ``-log sigmoid(h_t . e_{t+1}) - log(1 - sigmoid(h_t . e'_{t+1}))`` of each step (S,). row (G, T)
    tells which of all behaviours e (B, D) each one is, B where there is none, and item (B,) what
    each is of; e' is one of all that are of another item, each as likely. A step without any is
    left out.
    """
    follows = row[:, 1:] < len(e)
    positive = row[:, 1:][follows]
    negative = _negatives(positive, item)
    found = item[negative] != item[positive]
    positive, negative, state = positive[found], negative[found], h[:, :-1][follows][found]
    right = (state * e.index_select(0, positive)).sum(-1)
    wrong = (state * e.index_select(0, negative)).sum(-1)
    return nn.functional.softplus(-right) + nn.functional.softplus(wrong)


def _negatives(positive: Tensor, item: Tensor) -> Tensor:
    """For each behaviour ``positive`` (S,) one of another item, of the same item if all are.

    It is drawn from all others; where that has the same item, from those that have not.
    """
    apart = torch.randint(1, max(len(item), 2), positive.shape)
    negative = (positive + apart) % max(len(item), 1)
    same = item[negative] == item[positive]
    if same.any():
        items, order = item.sort(stable=True)
        alike = item[positive[same]]
        first, end = (torch.searchsorted(items, alike, right=right) for right in (False, True))
        others = len(item) - (end - first)
        beyond = (torch.rand(len(alike), dtype=torch.float64) * others).long()
        negative[same] = order[(end + beyond) % len(item)]
    return negative
