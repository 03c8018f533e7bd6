"""Folding: the same function in fewer passes."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

from model.layers import MLP, Activation, Dice, Dropout, Head
from training.fold import fold


@pytest.mark.parametrize("kind", ["dice", "prelu", "relu", "sigmoid"])
@pytest.mark.parametrize("ends_linear", [False, True])
def test_folded_layers_compute_the_same(kind: Activation, ends_linear: bool) -> None:
    """Whether a linear layer or an activation is the last; no Dice is left."""
    made = Head(4, (6, 5), kind, 0.5, 3) if ends_linear else MLP(4, (6, 5), kind, 0.5)
    made = made.double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in made.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.5, generator=generator)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    folded = fold(cast(nn.Sequential, made.layers))
    torch.testing.assert_close(folded(x), made(x), rtol=0, atol=1e-12)
    assert not any(isinstance(each, (Dice, Dropout)) for each in folded)
