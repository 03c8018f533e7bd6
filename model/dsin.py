"""DSIN: Deep Session Interest Network (Feng et al., IJCAI 2019, arXiv 1905.06482).

A history is a sequence of sessions; a pause longer than the schema's ``session_gap`` ends one (the
paper's are 30 minutes). Self-attention inside each gives the session's interest, a Bi-LSTM goes
through these, and the candidate weighs both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.block import Block
from model.contract.schema import Schema
from model.layers import Activation
from model.network import NetworkConfig, SchemaLacks
from model.sequence import Bilinear, Ordered


@dataclass(frozen=True)
class DSINConfig(NetworkConfig):
    """What can be chosen of DSIN: ``heads`` of the self-attention."""

    head_activation: Activation = "dice"
    heads: int = 2

    def interest(self, schema: Schema, width: int) -> Sessions:
        """Raises `SchemaLacks` where the schema does not say what ends a session."""
        if schema.session_gap is None:
            raise SchemaLacks("session_gap, the pause that ends a session")
        return Sessions(width, schema.history_length, schema.session_gap, self.heads)


class Sessions(Ordered):
    """The interest, 2 D wide: the sessions' weighed for the candidate, alone and in context.

    K is the most sessions of a history. Sessions, and behaviours in one, are counted back from the
    newest, so that a term is not another where a view begins elsewhere.
    """

    causal = False

    def __init__(self, width: int, longest: int, gap: int, heads: int) -> None:
        super().__init__()
        self.width, self.gap = 2 * width, gap
        # Bias encoding (equation 2): of the session, of the place in it, of the unit of the vector.
        self.of_session = nn.Parameter(torch.zeros(longest, 1))
        self.of_place = nn.Parameter(torch.zeros(longest, 1))
        self.of_unit = nn.Parameter(torch.zeros(width))
        self.block = Block(width, heads)
        self.forwards = nn.LSTM(width, width, batch_first=True)
        self.backwards = nn.LSTM(width, width, batch_first=True)
        self.alone, self.in_context = Bilinear(width), Bilinear(width)

    def encode(self, x: Tensor, ts: Tensor, length: Tensor) -> Tensor:
        """Interests of K sessions alone and in context, and which behaviours are theirs, side by
        side (G, K, 2 D + T)."""
        at = torch.arange(x.shape[1])
        real = at < length[:, None]  # (G, T)
        session = sessions(ts, self.gap)
        newest = (session * real).amax(1, keepdim=True)  # (G, 1)
        mates = (session[:, :, None] == session[:, None]) & real[:, None]  # (G, T, T)
        place = (mates & (at > at[:, None])).sum(-1)
        x = x + term(self.of_session, newest - session) + term(self.of_place, place) + self.of_unit
        y = self.block(x, mates)
        order = torch.arange(newest.max().item() + 1)  # (K,)
        inside = ((session[:, None] == order[:, None]) & real[:, None]).to(y.dtype)  # (G, K, T)
        alone = inside @ y / inside.sum(-1, keepdim=True).clamp(min=1)  # equation 5
        # Each direction goes through the real sessions only: the last real one first, backwards.
        turned = (newest - order).clamp(min=0)[:, :, None].expand(-1, -1, alone.shape[2])
        back = self.backwards(alone.gather(1, turned))[0].gather(1, turned)
        return torch.cat([alone, self.forwards(alone)[0] + back, inside], -1)

    def attend(self, code: Tensor, q: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """A behaviour's weight is its part of its session's, the mean of the two that it has."""
        width = self.width // 2
        alone, context, inside = code.split([width, width, age.shape[1]], -1)
        count = inside.sum(-1)  # (G, K) behaviours of each session
        a = self.alone(alone, q, count > 0)  # (G, N, K), equations 8 and 9
        b = self.in_context(context, q, count > 0)
        share = (a + b) / (2 * count.clamp(min=1))[:, None]
        return torch.cat([a @ alone, b @ context], -1), share @ inside


def sessions(ts: Tensor, gap: int) -> Tensor:
    """The number (G, T), from 0, of the session of each behaviour by its time: one more where the
    pause before it is longer than ``gap``."""
    pause = (ts[:, 1:] - ts[:, :-1]) > gap
    return nn.functional.pad(pause.long(), (1, 0)).cumsum(1)


def term(table: Tensor, at: Tensor) -> Tensor:
    """Rows (..., 1) of a table; what is beyond its ends has that of the end."""
    return nn.functional.embedding(at.clamp(0, len(table) - 1), table)
