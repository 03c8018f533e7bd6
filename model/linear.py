"""Linear terms over ids, and what is made of them: LR, and the wide half of Wide&Deep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from model.base import BaseConfig, Pooling
from model.contract.ids import FIRST
from model.contract.schema import Schema
from model.layers import Activation, Embeddings
from model.network import OTHERS, Network
from model.tensors import Pairs, Tensors


@dataclass(frozen=True)
class LRConfig(BaseConfig):
    """Logistic regression over ids, the weakest baseline of the paper (section 6.2); no embeddings
    and no head, so ``pooling`` is all there is to choose."""

    pooling: Literal["sum", "mean"] = "mean"
    dim: int = field(default=1, init=False)
    product: bool = field(default=False, init=False)
    head: tuple[int, ...] = field(default=(), init=False)
    head_activation: Activation = field(default="prelu", init=False)
    dropout: float = field(default=0.0, init=False)
    embedding_dropout: float = field(default=0.0, init=False)

    def build(self, schema: Schema, sizes: Mapping[str, int]) -> Network:
        return LR(schema, sizes, self)


@dataclass(frozen=True)
class WideDeepConfig(BaseConfig):
    """Wide&Deep (Cheng et al. 2016, arXiv 1606.07792): the BaseModel with `Wide` beside it, trained
    jointly, here by the same optimiser (section 3.3 has FTRL for the wide half)."""

    def crossing(
        self, schema: Schema, sizes: Mapping[str, int], fields: int, inputs: int
    ) -> nn.Module:
        return Wide(schema, sizes, self.pooling == "mean", inputs)


class Linear(nn.Module):
    """A weight per id and task: ``w_0 + sum_i w_i x_i`` (Rendle 2010, equation 1 without pairs).

    The behaviours are multi-hot fields with weights of their own, pooled over what a candidate may
    see: an item in the history means something else than the same item as candidate. Tags are
    averaged, as everywhere. All weights start at zero.
    """

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool) -> None:
        super().__init__()
        tasks = len(schema.tasks)
        self.columns = schema.width("item")
        self.bias = nn.Parameter(torch.zeros(tasks))  # w_0
        self.candidate = Embeddings(schema, sizes, tasks)
        self.behaviour = Embeddings(schema, sizes, tasks, ("item", "behaviour"))
        for weight in (*self.candidate.parameters(), *self.behaviour.parameters()):
            nn.init.zeros_(weight)
        seen = self.behaviour.width("item") + self.behaviour.width("behaviour")
        self.pooling = Pooling(seen, mean)
        shown = sum(map(self.candidate.width, (*OTHERS, "item")))
        self.width = shown + seen  # fields * tasks

    def terms(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """``w_i x_i`` of each field (C, fields, tasks), and the behaviours' weights."""
        rows = batch.behaviours() if batch.dense is None else batch.history
        of_item, of_fields = rows[..., : self.columns], rows[..., self.columns :]
        seen = [self.behaviour("item", of_item), self.behaviour("behaviour", of_fields)]
        shown = self.candidate("item", batch.item)
        pooled, weight = self.pooling(batch, torch.cat(seen, -1), shown)
        parts = [
            nn.functional.embedding(batch.owner, self.candidate("user", batch.user)),
            self.candidate("context", batch.context),
            self.candidate("ad", batch.ad),
            shown,
            pooled,
        ]
        return torch.cat(parts, -1).unflatten(-1, (-1, len(self.bias))), weight

    def forward(self, batch: Tensors) -> Tensor:
        """Logits (C, tasks)."""
        logit: Tensor = self.bias + self.terms(batch)[0].sum(1)
        return logit


class LR(Network):
    """`Linear` alone. Of the parts of a network it has none."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], config: LRConfig) -> None:
        nn.Module.__init__(self)  # not Network's: there are no embeddings, no interest and no head
        self.schema, self.pretraining = schema, config.pretraining
        self.linear = Linear(schema, sizes, config.pooling == "mean")

    @property
    def embeddings(self) -> Embeddings:  # type: ignore[override]
        """The weights of what a candidate has: what is trained as embeddings are."""
        return self.linear.candidate

    @property
    def interest(self) -> Pooling:  # type: ignore[override]
        return self.linear.pooling

    def forward(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        terms, weight = self.linear.terms(batch)
        return self.linear.bias + terms.sum(1), weight


class SameId(nn.Module):
    """Cross products of candidate and behaviours (Cheng et al. 2016, equation 1), those of equal
    ids: ``sum_i w_i [candidate has i] sum_j [behaviour j has i]``.

    i runs over the known ids of all item fields, so the same item, the same category and each
    shared tag count. What is left out are crosses of different ids, which need a weight for every
    two, or hashing that no warm start could follow. All weights start at zero.
    """

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool) -> None:
        super().__init__()
        columns = schema.columns("item")
        self.fields = [(each.table, columns[each.name]) for each in schema.item]
        self.columns, self.mean = schema.width("item"), mean
        self.weights = Embeddings(schema, sizes, len(schema.tasks), ("item",))
        for weight in self.weights.parameters():
            nn.init.zeros_(weight)

    def forward(self, batch: Tensors) -> Tensor:
        """Logits (C, tasks)."""
        count = self.flat(batch) if batch.dense is None else self.dense(batch)
        if self.mean:
            count = count / (batch.stop - batch.start).clamp(min=1)[:, None]
        terms = [
            self.weights.tables[table](batch.item[:, at]) * count[:, at, None]
            for table, at in self.fields
        ]
        return torch.cat(terms, 1).sum(1)

    def flat(self, batch: Tensors) -> Tensor:
        """How many behaviours have each id of each candidate (C, F_item), pair by pair."""
        pairs = Pairs.of(batch)
        seen = batch.behaviours()[:, : self.columns].index_select(0, pairs.row)
        same = self.same(batch.item.index_select(0, pairs.candidate), seen)  # (P, F_item)
        count = same.new_zeros(batch.item.shape)
        return count.index_add(0, pairs.candidate, same)

    def dense(self, batch: Tensors) -> Tensor:
        """Likewise on the grid of users, their candidates and behaviours."""
        assert batch.dense is not None
        on, seen = batch.dense, batch.history[..., : self.columns]
        shown = nn.functional.embedding(on.grid, batch.item)  # (U, N, F_item)
        real = on.age(seen.shape[1])[:, None, :, None] >= 0  # (U, 1, L, 1)
        same = self.same(shown[:, :, None], seen[:, None]) * real  # (U, N, L, F_item)
        return nn.functional.embedding(on.place, same.sum(2).flatten(0, 1))

    def same(self, shown: Tensor, seen: Tensor) -> Tensor:
        """1 where a known id of ``shown`` is among those of the same field of ``seen``, else 0."""
        found = [
            (shown[..., at, None] == seen[..., None, at]).any(-1) & (shown[..., at] >= FIRST)
            for _, at in self.fields
        ]
        return torch.cat(found, -1).to(next(self.weights.parameters()).dtype)


class Wide(nn.Module):
    """The wide half: linear over ids and over their crosses (Cheng et al. 2016, section 3.1)."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], mean: bool, inputs: int) -> None:
        super().__init__()
        self.width = inputs
        self.linear = Linear(schema, sizes, mean)
        self.crosses = SameId(schema, sizes, mean)

    def forward(self, batch: Tensors, fields: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.linear(batch) + self.crosses(batch)
