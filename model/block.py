"""A block of self-attention, as in a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.layers import softmax


class Block(nn.Module):
    """Self-attention of several heads and a feed-forward layer (BST, section 2.2), each added to
    its input and normalised.

    With ``reach`` a head adds a learnt term per distance
    between two behaviours to its scores; those further apart than ``reach`` share the last.
    Raises ValueError where ``heads`` do not divide the ``width``.
    """

    def __init__(self, width: int, heads: int, reach: int = 0) -> None:
        super().__init__()
        self.heads = divided(width, heads)
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.attended = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.fed = nn.LayerNorm(width)
        self.distance = nn.Parameter(torch.zeros(reach, heads)) if reach else None

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x (G, T, D) to the same shape; ``visible`` (G or 1, T or 1, T): whom a row looks at."""
        q, k, v = (split(part, self.heads) for part in self.inputs(x).chunk(3, -1))
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (G, heads, T, T)
        if self.distance is not None:
            at = torch.arange(x.shape[1])
            apart = (at[:, None] - at).clamp(0, len(self.distance) - 1)
            score = score + nn.functional.embedding(apart, self.distance).permute(2, 0, 1)
        x = self.attended(x + self.mix(join(softmax(score, visible[:, None]) @ v)))
        fed: Tensor = self.fed(x + self.down(nn.functional.leaky_relu(self.up(x))))
        return fed


def divided(width: int, heads: int) -> int:
    """``heads``, which divide a ``width``. Raises ValueError where they do not."""
    if width % heads:
        raise ValueError(f"heads: expected a divisor of {width}, the width of an item")
    return heads


def split(x: Tensor, heads: int) -> Tensor:  # (G, T, D) -> (G, heads, T, D / heads)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x: Tensor) -> Tensor:  # (G, heads, T, D / heads) -> (G, T, D)
    return x.transpose(1, 2).flatten(2)
