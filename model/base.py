"""The Embedding&MLP BaseModel (paper section 4.2): behaviours pooled alike for every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from model.contract.schema import Schema
from model.layers import Activation
from model.network import Network
from model.tensors import Pairs, Tensors


@dataclass(frozen=True)
class BaseConfig:
    """What can be chosen of the BaseModel; the paper's form is sum pooling without product."""

    dim: int = 16
    pooling: Literal["sum", "mean"] = "sum"
    product: bool = False
    head: tuple[int, ...] = (200, 80)
    head_activation: Activation = "prelu"
    dropout: float = 0.0
    embedding_dropout: float = 0.0


def base(schema: Schema, sizes: Mapping[str, int], config: BaseConfig) -> Network:
    """The BaseModel over the tables of ``sizes`` (rows of each)."""
    return Network(
        schema,
        sizes,
        lambda _: Pooling(config.pooling == "mean"),
        dim=config.dim,
        head=config.head,
        head_activation=config.head_activation,
        dropout=config.dropout,
        embedding_dropout=config.embedding_dropout,
        product=config.product,
    )


class Pooling(nn.Module):
    """Masked sum (or mean) of the behaviours a candidate may see; their order does not matter."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, batch: Tensors, e: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Interest (C, D) and weights: 1 (or 1 / count) for each behaviour seen."""
        if batch.dense is None:
            pairs = Pairs.of(batch)
            weight = e.new_ones(len(pairs.candidate))
            if self.mean:
                weight = weight / (batch.stop - batch.start)[pairs.candidate]
            interest = nn.functional.embedding_bag(
                pairs.row, e, pairs.first, mode="sum", per_sample_weights=weight
            )
            return interest, weight
        real = batch.dense.age(e.shape[1]) >= 0  # (U, L)
        weight = real[:, None].to(e.dtype).expand(-1, batch.dense.grid.shape[1], -1)  # (U, N, L)
        if self.mean:
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        interest = nn.functional.embedding(batch.dense.place, (weight @ e).flatten(0, 1))
        return interest, nn.functional.embedding(batch.dense.place, weight.flatten(0, 1))
