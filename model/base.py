"""The Embedding&MLP BaseModel (paper section 4.2): behaviours pooled alike for every candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from model.contract.schema import Schema
from model.network import NetworkConfig
from model.tensors import Pairs, Tensors


@dataclass(frozen=True)
class BaseConfig(NetworkConfig):
    """What can be chosen of the BaseModel; the paper's form is sum pooling without product."""

    pooling: Literal["sum", "mean"] = "sum"

    def interest(self, schema: Schema, width: int) -> Pooling:
        return Pooling(width, self.pooling == "mean")


class Pooling(nn.Module):
    """Masked sum (or mean) of the behaviours a candidate may see; their order does not matter."""

    def __init__(self, width: int, mean: bool) -> None:
        super().__init__()
        self.width, self.mean = width, mean

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
        weight = (batch.dense.age(e.shape[1]) >= 0).to(e.dtype)  # (U, L)
        if self.mean:
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        interest = (weight[:, None] @ e).squeeze(1)  # (U, D): once for all candidates of a user
        embedding = nn.functional.embedding
        return embedding(batch.owner, interest), embedding(batch.owner, weight)
