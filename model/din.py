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
from model.layers import (
    Activation,
    BehaviourFields,
    Embeddings,
    History,
    activation,
    softmax,
)
from model.network import NetworkConfig
from model.tensors import Dense, Pairs, Tensors

Interaction = Literal["difference", "product", "outer"]


@dataclass(frozen=True)
class DINConfig(NetworkConfig):
    """What can be chosen of DIN; the paper's plain form is recency and product off.

    ``interaction`` is what the unit sees of candidate and behaviour together. ``recency`` adds a
    learnt term per age of the behaviour to its weight, ``product`` gives the head the product of
    interest and candidate, ``behaviour_fields`` is what a behaviour's own fields do to its item
    (`History`), ``behaviour_dropout`` is the share of a candidate's behaviours left out while
    training (a raw sum is scaled up to make good for it).
    """

    product: bool = True
    head_activation: Activation = "dice"
    attention: tuple[int, ...] = (36,)
    attention_activation: Activation = "dice"
    interaction: Interaction = "difference"
    weights: Literal["raw", "softmax"] = "raw"
    recency: bool = True
    behaviour_fields: BehaviourFields = "gate"
    behaviour_dropout: float = 0.0

    def interest(self, schema: Schema, width: int) -> Attention:
        return Attention(width, schema.history_length, self)

    def behaviours(self, schema: Schema, embeddings: Embeddings) -> History:
        return History(schema, embeddings, self.behaviour_fields)


class LocalActivationUnit(nn.Module):
    """The weight of a behaviour for a candidate (paper section 4.3): an MLP on q, k and how the two
    meet.

    ``difference`` is [q, k, q-k, q*k], the authors' code; ``product`` is [q, k, q*k]; ``outer`` is
    [q, k, q x k], the outer product of figure 2, D^2 wide. The first layer is split exactly, e.g.
    ``W [q; k; q-k; q*k] = q (Wq + Wd) + k (Wk - Wd) + (q*k) Wp``, so that the q part is computed
    once per candidate, the k part once per behaviour, and no input of a pair is ever built.
    """

    def __init__(
        self, width: int, hidden: tuple[int, ...], kind: Activation, interaction: Interaction
    ) -> None:
        super().__init__()
        self.interaction = interaction
        inputs = {"difference": 4, "product": 3, "outer": 2 + width}[interaction]
        self.first = nn.Linear(inputs * width, hidden[0])
        self.first_activation = activation(kind, hidden[0])
        rest: list[nn.Module] = []
        for before, after in pairwise(hidden):
            rest += [nn.Linear(before, after), activation(kind, after)]
        self.rest = nn.Sequential(*rest, nn.Linear(hidden[-1], 1))

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first layer's ``weight`` as what multiplies q (H, D), k (H, D), and q and k together:
        (H, D), or (H, D, D) by place in q and in k for the outer product."""
        if self.interaction == "difference":
            wq, wk, wd, wp = weight.chunk(4, 1)
            return wq + wd, wk - wd, wp
        if self.interaction == "product":
            wq, wk, wp = weight.chunk(3, 1)
            return wq, wk, wp
        width = round((1 + weight.shape[1]) ** 0.5) - 1  # (1 + D)^2 = 1 + 2 D + D^2
        wq, wk, wp = weight.split([width, width, width * width], 1)
        return wq, wk, wp.unflatten(1, (width, width))

    def pairs(self, q: Tensor, k: Tensor, of: Pairs) -> Tensor:
        """Weights (P,) of pairs of candidates q (C, D) and behaviours k (B, D)."""
        wq, wk, wp = self.split(self.first.weight)
        query = nn.functional.linear(q, wq, self.first.bias).index_select(0, of.candidate)
        behaviour = nn.functional.linear(k, wk).index_select(0, of.row)
        if wp.dim() == 2:
            product = q.index_select(0, of.candidate) * k.index_select(0, of.row)
            return self._rest(nn.functional.linear(product, wp) + query + behaviour)
        # A matrix per candidate, by which its behaviours are multiplied side by side: (C, T, D).
        within = torch.arange(len(of.candidate)) - of.first.index_select(0, of.candidate)
        longest = int(within.max()) + 1 if len(within) else 0
        place = of.candidate * longest + within
        side = k.new_zeros(len(q) * longest, k.shape[1])
        side = side.index_copy(0, place, k.index_select(0, of.row)).unflatten(0, (len(q), longest))
        both = side @ torch.einsum("cd,hde->ceh", q, wp)  # (C, T, H)
        return self._rest(both.flatten(0, 1).index_select(0, place) + query + behaviour)

    def grid(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights (U, N, L) of each user's candidates q (U, N, D) and behaviours k (U, L, D).

        What is exported in its place, without a product per pair, is `training.unit`.
        """
        wq, wk, wp = self.split(self.first.weight)
        query = nn.functional.linear(q, wq, self.first.bias)[:, :, None]
        behaviour = nn.functional.linear(k, wk)[:, None]
        form = "und,hd,uld->unlh" if wp.dim() == 2 else "und,hde,ule->unlh"
        return self._rest(torch.einsum(form, q, wp, k) + query + behaviour)

    def _rest(self, s: Tensor) -> Tensor:  # what the first layer gives (..., H) -> (...)
        weight: Tensor = self.rest(self.first_activation(s))
        return weight.squeeze(-1)


class Attention(nn.Module):
    """Behaviours weighed for each candidate: DIN's pooling."""

    def __init__(self, width: int, history_length: int, config: DINConfig) -> None:
        super().__init__()
        self.width = width
        self.unit = LocalActivationUnit(
            width, config.attention, config.attention_activation, config.interaction
        )
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
        weight = self.unit.pairs(q, k, pairs)
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
        weight = softmax(weight, real) if self.softmax else weight * real
        interest = nn.functional.embedding(on.place, (weight @ e).flatten(0, 1))  # (C, D)
        return interest, nn.functional.embedding(on.place, weight.flatten(0, 1))
