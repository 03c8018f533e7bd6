"""DIN: Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978).

The interest of a user is recomputed for each candidate by the local activation unit
(equation 3): ``v_U(A) = sum_j a(e_j, v_A) e_j``, weights not normalised unless asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from model.contract.schema import Schema
from model.layers import Activation, activation
from model.network import NetworkConfig
from model.tensors import Dense, Pairs, Tensors


@dataclass(frozen=True)
class DINConfig(NetworkConfig):
    """What can be chosen of DIN; the paper's plain form is recency and product off.

    ``recency`` adds a learnt term per age of the behaviour to its weight, ``product`` gives the
    head the product of interest and candidate, ``behaviour_dropout`` is the share of a
    candidate's behaviours left out while training (a raw sum is scaled up to make good for it).
    """

    product: bool = True
    head_activation: Activation = "dice"
    attention: tuple[int, ...] = (36,)
    attention_activation: Activation = "dice"
    weights: Literal["raw", "softmax"] = "raw"
    recency: bool = True
    behaviour_dropout: float = 0.0

    def interest(self, schema: Schema, width: int) -> Attention:
        return Attention(width, schema.history_length, self)


class LocalActivationUnit(nn.Module):
    """The weight of a behaviour for a candidate (paper section 4.3): an MLP on [q, k, q-k, q*k].

    The first layer is split exactly, ``W [q; k; q-k; q*k] = q (Wq + Wd) + k (Wk - Wd) + (q*k) Wp``,
    so that the q part is computed once per candidate, the k part once per behaviour, and no 4D
    input is ever built.
    """

    def __init__(self, width: int, hidden: tuple[int, ...], kind: Activation) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, hidden[0])
        self.first_activation = activation(kind, hidden[0])
        rest: list[nn.Module] = []
        for before, after in pairwise(hidden):
            rest += [nn.Linear(before, after), activation(kind, after)]
        self.rest = nn.Sequential(*rest, nn.Linear(hidden[-1], 1))

    def query_part(self, q: Tensor) -> Tensor:  # (..., D) -> (..., H)
        wq, _, wd, _ = self.first.weight.chunk(4, 1)
        return nn.functional.linear(q, wq + wd, self.first.bias)

    def behaviour_part(self, k: Tensor) -> Tensor:  # (..., D) -> (..., H)
        _, wk, wd, _ = self.first.weight.chunk(4, 1)
        return nn.functional.linear(k, wk - wd)

    def forward(self, product: Tensor, query_part: Tensor, behaviour_part: Tensor) -> Tensor:
        """Weights (...) of pairs: product q*k (..., D), parts broadcastable to (..., H)."""
        wp = self.first.weight.chunk(4, 1)[3]
        s = nn.functional.linear(product, wp) + query_part + behaviour_part
        weight: Tensor = self.rest(self.first_activation(s))
        return weight.squeeze(-1)

    def grid(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights (U, N, L) of each user's candidates q (U, N, D) and behaviours k (U, L, D).

        What is exported in its place, without a product per pair, is `training.unit`.
        """
        query, behaviour = self.query_part(q)[:, :, None], self.behaviour_part(k)[:, None]
        return self(q[:, :, None] * k[:, None], query, behaviour)


class Attention(nn.Module):
    """Behaviours weighed for each candidate: DIN's pooling."""

    def __init__(self, width: int, history_length: int, config: DINConfig) -> None:
        super().__init__()
        self.width = width
        self.unit = LocalActivationUnit(width, config.attention, config.attention_activation)
        self.recency = nn.Parameter(torch.zeros(history_length)) if config.recency else None
        self.softmax = config.weights == "softmax"
        self.dropout = config.behaviour_dropout

    def forward(self, batch: Tensors, e: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Interest (C, D) from behaviours e and candidates q (C, D), and the weights."""
        if batch.dense is not None:
            return self.dense(batch.dense, e, q)
        pairs = Pairs.of(batch)
        if not self.training or not self.dropout:
            return self.flat(pairs, e, q)
        interest, weight = self.flat(pairs.thinned(self.dropout), e, q)
        return interest if self.softmax else interest / (1 - self.dropout), weight

    def flat(self, pairs: Pairs, k: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Over the real pairs only: behaviours k (B, D), weights (P,)."""
        query = self.unit.query_part(q).index_select(0, pairs.candidate)
        behaviour = self.unit.behaviour_part(k).index_select(0, pairs.row)
        product = q.index_select(0, pairs.candidate) * k.index_select(0, pairs.row)
        weight = self.unit(product, query, behaviour)  # (P,)
        if self.recency is not None:
            weight = weight + self.recency.index_select(0, pairs.age)
        if self.softmax:
            top = q.new_full((len(q),), -torch.inf)
            top = top.scatter_reduce(0, pairs.candidate, weight.detach(), "amax")
            raised = torch.exp(weight - top.index_select(0, pairs.candidate))
            total = q.new_zeros(len(q)).index_add(0, pairs.candidate, raised)
            weight = raised / total.index_select(0, pairs.candidate)
        interest = nn.functional.embedding_bag(
            pairs.row, k, pairs.first, mode="sum", per_sample_weights=weight
        )
        return interest, weight

    def dense(self, on: Dense, e: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """On the grid of users, their candidates and behaviours e (U, L, D); weights (C, L)."""
        weight = self.unit.grid(nn.functional.embedding(on.grid, q), e)  # (U, N, L)
        age = on.age(e.shape[1])[:, None]  # (U, 1, L)
        real = age >= 0
        if self.recency is not None:
            ages = age.clamp(0, len(self.recency) - 1)
            weight = weight + nn.functional.embedding(ages, self.recency[:, None]).squeeze(-1)
        if self.softmax:
            weight = weight.masked_fill(~real, -1e9)
            raised = torch.exp(weight - weight.amax(-1, keepdim=True)) * real
            weight = raised / raised.sum(-1, keepdim=True).clamp(min=1e-30)
        else:
            weight = weight * real
        interest = nn.functional.embedding(on.place, (weight @ e).flatten(0, 1))  # (C, D)
        return interest, nn.functional.embedding(on.place, weight.flatten(0, 1))
