"""Fields that meet by products: PNN, and the factorisation machine in FNN, DeepFM and NFM.

A field is the vector of one feature, ``v_i x_i``; tags are averaged and the behaviours pooled to
one field for each of their item's. What is crossed are different fields, never two ids of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from model.base import BaseConfig
from model.contract.schema import Schema
from model.linear import Linear
from model.tensors import Tensors


@dataclass(frozen=True)
class CrossedConfig(BaseConfig):
    """Where fields are multiplied behaviours are averaged unless asked, as Rendle 2010 (figure 1)
    has several items of one kind add up to 1: squares of long sums are large in float32."""

    pooling: Literal["sum", "mean"] = "mean"


@dataclass(frozen=True)
class PNNConfig(CrossedConfig):
    """Product-based network (Qu et al. 2016, arXiv 1611.00144): IPNN with the ``inner`` products of
    the fields, OPNN with the ``outer`` one, PNN* with both."""

    products: Literal["inner", "outer", "both"] = "inner"

    def crossing(
        self, schema: Schema, sizes: Mapping[str, int], fields: int, inputs: int
    ) -> nn.Module:
        inner, outer = self.products != "outer", self.products != "inner"
        return Products(fields if inner else 0, self.dim if outer else 0, inputs)


@dataclass(frozen=True)
class DeepFMConfig(CrossedConfig):
    """DeepFM (Guo et al. 2017, arXiv 1703.04247): an FM and a head over the same embeddings, added
    (equation 1)."""

    def crossing(
        self, schema: Schema, sizes: Mapping[str, int], fields: int, inputs: int
    ) -> nn.Module:
        return DeepFM(schema, sizes, self.pooling == "mean", inputs)


@dataclass(frozen=True)
class FNNConfig(CrossedConfig):
    """FNN (Zhang et al. 2016, arXiv 1601.02376): a head over what an FM has learnt.

    The first ``pretraining`` of the steps train the FM alone, and the others all of the network,
    the FM's weights among it (section 3.1).
    """

    pretraining: float = 0.3  # type: ignore[misc]

    def crossing(
        self, schema: Schema, sizes: Mapping[str, int], fields: int, inputs: int
    ) -> nn.Module:
        return FNN(schema, sizes, self.pooling == "mean", inputs)


@dataclass(frozen=True)
class NFMConfig(CrossedConfig):
    """Neural FM (He and Chua 2017, arXiv 1708.05027): a head over the `bi_interaction` alone, with
    an FM's linear terms added (section 3.1)."""

    product: bool = field(default=False, init=False)

    def crossing(
        self, schema: Schema, sizes: Mapping[str, int], fields: int, inputs: int
    ) -> nn.Module:
        return NFM(schema, sizes, self.pooling == "mean", self.dim)


class Products(nn.Module):
    """PNN's product layer: the head's first layer is ``W_z z + W_p p + b`` (Qu et al., section
    III-A), z all fields one after the other.

    Inner: p is all ``<f_i, f_j>`` (section III-B). Outer: p is the superposition
    ``sum_ij f_i f_j^T = s s^T`` with ``s = sum_i f_i`` (section III-C). Both are symmetric, so each
    product is taken once, those of i with i among them. A count of 0 leaves a kind out.
    """

    def __init__(self, inner: int, outer: int, inputs: int) -> None:
        super().__init__()
        sizes = [size for size in (inner, outer) if size]
        self.inner, self.outer = bool(inner), bool(outer)
        self.width = inputs + sum(size * (size + 1) // 2 for size in sizes)

    def forward(self, batch: Tensors, fields: Tensor, x: Tensor) -> tuple[Tensor, None]:
        parts = [x]
        if self.inner:
            parts.append(_triangle(fields @ fields.transpose(1, 2)))  # of (C, F, F)
        if self.outer:
            total = fields.sum(1)
            parts.append(_triangle(total[:, :, None] * total[:, None]))  # of (C, dim, dim)
        return torch.cat(parts, -1), None


class FM(nn.Module):
    """Factorisation machine (Rendle 2010, equation 1): ``w_0 + sum_i w_i x_i + sum_i<j <v_i, v_j>``
    over the fields; the pairs, which have no weights of their own, are the same for all tasks."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool) -> None:
        super().__init__()
        self.linear = Linear(schema, sizes, mean)

    def logit(self, batch: Tensors, fields: Tensor) -> Tensor:  # (C, tasks)
        pairs = bi_interaction(fields).sum(-1, keepdim=True)
        logit: Tensor = self.linear(batch) + pairs
        return logit


class DeepFM(FM):
    """The logits of the FM, beside what the head makes of the fields."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool, inputs: int) -> None:
        super().__init__(schema, sizes, mean)
        self.width = inputs

    def forward(self, batch: Tensors, fields: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.logit(batch, fields)


class FNN(FM):
    """All weights of the FM as the head's inputs: ``(w_0, z_1, ...)`` with ``z_i = (w_i, v_i)``
    (Zhang et al., section 3.1), in another order."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool, inputs: int) -> None:
        super().__init__(schema, sizes, mean)
        self.width = inputs + self.linear.width + len(schema.tasks)

    def forward(self, batch: Tensors, fields: Tensor, x: Tensor) -> tuple[Tensor, None]:
        bias = self.linear.bias.expand(len(x), -1)
        return torch.cat([x, self.linear.terms(batch)[0].flatten(1), bias], -1), None

    def pretrain(self, batch: Tensors, fields: Tensor) -> Tensor:
        return self.logit(batch, fields)


class NFM(nn.Module):
    """`bi_interaction` for the head, and an FM's linear terms beside it."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool, dim: int) -> None:
        super().__init__()
        self.width, self.linear = dim, Linear(schema, sizes, mean)

    def forward(self, batch: Tensors, fields: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return bi_interaction(fields), self.linear(batch)


def bi_interaction(fields: Tensor) -> Tensor:
    """``sum_i<j f_i * f_j`` (C, dim) of fields (C, F, dim), in linear time (Rendle 2010, lemma 3.1;
    He and Chua 2017, section 3.1)."""
    return (fields.sum(1).square() - fields.square().sum(1)) / 2


def _triangle(square: Tensor) -> Tensor:
    """The upper triangle of (C, n, n) with its diagonal, (C, n (n + 1) / 2)."""
    size = square.shape[-1]
    row, column = torch.triu_indices(size, size)
    return square.flatten(1).index_select(1, row * size + column)
