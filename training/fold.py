"""Layers as an exported graph computes them: every Dice folded into its neighbours, in float64.

With ``scale = 1 / sqrt(Var[s] + eps)`` and ``z = scale (s - E[s])`` Dice is
``(1 - alpha) / scale * (z + c) (sigmoid(z) + g)``: the linear layer before gives z at once, the
gain ``(1 - alpha) / scale`` goes into the one after, and four passes over the activations remain
of seven.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.layers import Dice, Dropout


class FoldedDice(nn.Module):
    """What is left of a Dice between its neighbours: ``(z + c) (sigmoid(z) + g)``."""

    c: Tensor
    g: Tensor

    def __init__(self, c: Tensor, g: Tensor) -> None:
        super().__init__()
        self.register_buffer("c", c)
        self.register_buffer("g", g)

    def forward(self, z: Tensor) -> Tensor:  # (..., width)
        return (z + self.c) * (torch.sigmoid(z) + self.g)


class Gain(nn.Module):
    """A factor for each neuron."""

    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain)

    def forward(self, s: Tensor) -> Tensor:  # (..., width)
        return s * self.gain


def fold(layers: Iterable[nn.Module]) -> nn.Sequential:
    """The same function, in inference, of linear layers with activations between, in float64.

    Dropout is left out. The gain of a last Dice, which no linear layer takes in, stays a factor.
    """
    kept = [each for each in layers if not isinstance(each, Dropout)]
    gain = torch.ones((), dtype=torch.float64)
    folded: list[nn.Module] = []
    for each in kept:
        if isinstance(each, nn.Linear):
            w, b = each.weight.detach().double() * gain, each.bias.detach().double()
            gain = torch.ones_like(b)
            folded.append(_linear(w, b))
        elif isinstance(each, Dice):
            norm, alpha = each.norm, each.alpha.detach().double()
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps) ** -0.5
            share = torch.where((1 - alpha).abs() < 1e-6, 1e-6, 1 - alpha)  # never 0
            gain = share / scale
            folded[-1] = _linear(w * scale[:, None], (b - mean) * scale)
            folded.append(FoldedDice(mean * scale, alpha / share))
        else:
            folded.append(copy.deepcopy(each).double())
    if isinstance(kept[-1], Dice):
        folded.append(Gain(gain))
    return nn.Sequential(*folded)


def _linear(w: Tensor, b: Tensor) -> nn.Linear:
    linear = nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(w)
        linear.bias.copy_(b)
    return linear
