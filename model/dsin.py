"""DSIN: Deep Session Interest Network (Feng et al., IJCAI 2019, arXiv 1905.06482).

A history is a sequence of sessions. Self-attention inside each gives the session's interest, a
Bi-LSTM goes through these, and the candidate weighs both.

The paper splits a history where the user paused for 30 minutes. A batch holds no times, so here a
session is a stretch of ``session_length`` behaviours, from the oldest on that a candidate sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.block import Block
from model.contract.schema import Schema
from model.layers import Activation
from model.network import NetworkConfig
from model.sequence import Bilinear, Ordered


@dataclass(frozen=True)
class DSINConfig(NetworkConfig):
    """What can be chosen of DSIN: behaviours of a session, and heads of the self-attention."""

    head_activation: Activation = "dice"
    session_length: int = 10
    heads: int = 2

    def interest(self, schema: Schema, width: int) -> Sessions:
        return Sessions(width, schema.history_length, self)


class Sessions(Ordered):
    """The interest, 2 D wide: the sessions' weighed for the candidate, alone and in context."""

    causal = False

    def __init__(self, width: int, history_length: int, config: DSINConfig) -> None:
        super().__init__()
        self.width, self.size = 2 * width, config.session_length
        sessions = -(-history_length // self.size)
        # Bias encoding (equation 2): of the session, of the place in it, of the unit of the vector.
        self.of_session = nn.Parameter(torch.zeros(sessions, 1, 1))
        self.of_place = nn.Parameter(torch.zeros(self.size, 1))
        self.of_unit = nn.Parameter(torch.zeros(width))
        self.block = Block(width, config.heads)
        self.forwards = nn.LSTM(width, width, batch_first=True)
        self.backwards = nn.LSTM(width, width, batch_first=True)
        self.alone, self.in_context = Bilinear(width), Bilinear(width)

    def encode(self, x: Tensor, length: Tensor) -> Tensor:
        """Interests of K sessions alone and in context, side by side (G, K, 2 D)."""
        groups, longest, size = x.shape[0], x.shape[1], self.size
        sessions = (longest + size - 1) // size  # K
        at = torch.arange(sessions * size)
        x = x.index_select(1, at.clamp(max=longest - 1)).unflatten(1, (sessions, size))
        real = (at < length[:, None]).unflatten(1, (sessions, size))  # (G, K, S), x (G, K, S, D)
        which = torch.arange(sessions).clamp(max=len(self.of_session) - 1)
        bias = nn.functional.embedding(which, self.of_session[:, :, 0])[:, :, None]  # (K, 1, 1)
        x = x + bias + self.of_place + self.of_unit
        seen = real.flatten(0, 1)[:, None]  # (G K, 1, S)
        y = self.block(x.flatten(0, 1), seen).unflatten(0, (groups, sessions))
        count = real.sum(-1, keepdim=True)  # (G, K, 1)
        alone = (y * real[..., None]).sum(2) / count.clamp(min=1)  # equation 5
        # Each direction goes through the real sessions only: the last real one first, backwards.
        turned = ((length[:, None] - 1) // size - torch.arange(sessions)).clamp(min=0)
        turned = turned[:, :, None].expand(-1, -1, alone.shape[2])
        back = self.backwards(alone.gather(1, turned))[0].gather(1, turned)
        return torch.cat([alone, self.forwards(alone)[0] + back], -1)

    def attend(self, code: Tensor, q: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """A behaviour's weight is its part of its session's, the mean of the two that it has."""
        size, longest = self.size, age.shape[1]
        first = torch.arange(code.shape[1]) * size  # (K,)
        seen = age[:, :1] + 1  # (G, 1)
        count = (seen - first).clamp(0, size)  # (G, K) behaviours of each session
        alone, context = code.chunk(2, -1)
        a = self.alone(alone, q, count > 0)  # (G, N, K), equations 8 and 9
        b = self.in_context(context, q, count > 0)
        share = (a + b) / (2 * count.clamp(min=1))[:, None]
        session = torch.arange(longest) // size
        weight = share.index_select(2, session) * (age >= 0)[:, None]
        return torch.cat([a @ alone, b @ context], -1), weight
