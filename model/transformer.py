"""Target attention of several heads over behaviours that have looked at each other.

The candidate is the query and the behaviours are keys and values (Vaswani et al., 2017, section
3.2.2); before that, ``blocks`` of causal self-attention, as in BST (Chen et al., 2019, arXiv
1905.06874). BST, like TransAct (Xia et al., KDD 2023), puts the candidate into the sequence, so
that all of it is computed anew for each candidate. Here it stays outside: the blocks run once per
user. Positions are ages, counted back from the candidate, and distances between two behaviours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.block import Block, divided, join, split
from model.contract.schema import Schema
from model.layers import Activation, softmax
from model.network import NetworkConfig
from model.sequence import Ordered


@dataclass(frozen=True)
class TransformerConfig(NetworkConfig):
    """What can be chosen: ``blocks`` before the target attention, ``heads`` of each, and whether
    the ``position`` of a behaviour counts."""

    head_activation: Activation = "dice"
    blocks: Literal[0, 1, 2] = 1
    heads: int = 2
    position: bool = True

    def interest(self, schema: Schema, width: int) -> TargetAttention:
        return TargetAttention(width, schema.history_length, self)


class TargetAttention(Ordered):
    """``[softmax(q_h (k_h + p_age)^T / sqrt(d)) v_h] W``, side by side over the heads h."""

    causal = True

    def __init__(self, width: int, history_length: int, config: TransformerConfig) -> None:
        super().__init__()
        self.width, self.heads = width, divided(width, config.heads)
        reach = history_length if config.position else 0
        self.blocks = nn.ModuleList(Block(width, config.heads, reach) for _ in range(config.blocks))
        self.age = nn.Parameter(torch.zeros(reach, width)) if reach else None
        self.query = nn.Linear(width, width, bias=False)
        self.keys = nn.Linear(width, 2 * width, bias=False)  # and values
        self.mix = nn.Linear(width, width, bias=False)

    def encode(self, x: Tensor, ts: Tensor, length: Tensor) -> Tensor:
        """Keys and values side by side (G, T, 2 D)."""
        at = torch.arange(x.shape[1])
        earlier = (at[:, None] >= at)[None]  # (1, T, T)
        for block in self.blocks:
            x = block(x, earlier)
        keys: Tensor = self.keys(x)
        return keys

    def attend(self, code: Tensor, q: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """The weights are the mean of the heads'."""
        k, v = code.chunk(2, -1)
        if self.age is not None:
            k = k + nn.functional.embedding(age.clamp(0, len(self.age) - 1), self.age)
        q, k, v = (split(each, self.heads) for each in (self.query(q), k, v))
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (G, heads, N, T)
        weight = softmax(score, (age >= 0)[:, None, None])
        return self.mix(join(weight @ v)), weight.mean(1)
