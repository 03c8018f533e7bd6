"""The network around an interest: embeddings, a pooling of the behaviours, crossings, a head.

A model is a `NetworkConfig`: its options, and the parts that it makes of them. `model.din` has the
interest of DIN, `model.base` that of the Embedding&MLP BaseModel. One forward signature for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.contract.schema import Group, Schema
from model.layers import Activation, Dropout, Embeddings, Head, History
from model.tensors import Tensors

OTHERS: tuple[Group, ...] = ("user", "context", "ad")


class SchemaLacks(ValueError):
    """What a model needs and a schema does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the schema has no {what}")


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """The options that all models have, and the parts that a model may make its own.

    ``dim`` is the width of each field's embedding; ``product`` gives the head the product of
    interest and candidate too. A model that fixes an option declares it with ``init=False``.
    """

    pretraining: ClassVar[float] = 0.0
    """The share of the steps, from the first, that train `Network.pretrain` in place of the
    network."""

    dim: int = 16
    product: bool = False
    head: tuple[int, ...] = (200, 80)
    head_activation: Activation = "prelu"
    dropout: float = 0.0
    embedding_dropout: float = 0.0

    @abstractmethod
    def interest(self, schema: Schema, width: int) -> nn.Module:
        """The pooling: a module with the ``width`` I of its interest (a multiple of ``dim``), whose
        forward takes the batch, its behaviours e and candidates q (C, D), D being ``width``, and
        gives an interest per candidate (C, I) and the behaviours' weights.

        When the batch is dense, e is (U, L, D) and the weights are (C, L); when it is not, e is
        (B, D) as of `Tensors.behaviours`, and the weights are (P,) as of `Pairs`.
        """

    def behaviours(self, schema: Schema, embeddings: Embeddings) -> History:
        """How behaviours become vectors (B, D) or (U, L, D)."""
        return History(schema, embeddings)

    def crossing(
        self, schema: Schema, sizes: Mapping[str, int], fields: int, inputs: int
    ) -> nn.Module | None:
        """How fields meet before the head, if they do: a module with the ``width`` X' of what the
        head then gets. Its forward takes the batch, all ``fields`` F side by side (C, F, dim), the
        interest's behind the others, and the head's usual ``inputs`` x (C, X); it gives x' (C, X')
        and logits (C, tasks) that are added to the head's, or None.
        """
        return None

    def top(self, schema: Schema, inputs: int) -> nn.Module:
        """The head: x (C, X) to logits (C, tasks)."""
        tasks = len(schema.tasks)
        return Head(inputs, self.head, self.head_activation, self.dropout, tasks)

    def build(self, schema: Schema, sizes: Mapping[str, int]) -> Network:
        """A fresh network over the tables of ``sizes`` (rows of each)."""
        return Network(schema, sizes, self)


class Network(nn.Module):
    """Logits of candidates. Nothing depends on padding or on who shares the batch."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], config: NetworkConfig) -> None:
        super().__init__()
        self.schema, self.dim, self.product = schema, config.dim, config.product
        self.pretraining = config.pretraining
        self.embeddings = Embeddings(schema, sizes, config.dim)
        self.history = config.behaviours(schema, self.embeddings)
        self.width = self.embeddings.width("item")  # D
        self.interest = config.interest(schema, self.width)
        interest = int(self.interest.width)  # type: ignore[arg-type]
        if config.product and interest != self.width:
            raise ValueError("product: the interest of this model is not as wide as a candidate")
        inputs = sum(map(self.embeddings.width, OTHERS)) + self.width + interest
        fields = inputs // config.dim
        inputs += self.width if config.product else 0
        self.crossing = config.crossing(schema, sizes, fields, inputs)
        if self.crossing is not None:
            inputs = int(self.crossing.width)  # type: ignore[arg-type]
        self.head = config.top(schema, inputs)
        self.embedding_dropout = Dropout(config.embedding_dropout)

    def forward(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Logits (C, tasks) and the behaviours' weights, as the interest gives them."""
        fields, x, weight = self.inputs(batch)
        if self.crossing is None:
            return self.head(x), weight
        x, logit = self.crossing(batch, fields, x)
        return self.head(x) if logit is None else self.head(x) + logit, weight

    def pretrain(self, batch: Tensors) -> Tensor:
        """Logits (C, tasks) of the stage that goes before, in a network that has one."""
        logit: Tensor = self.crossing.pretrain(batch, self.inputs(batch)[0])  # type: ignore
        return logit

    def inputs(self, batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """What a crossing gets, fields (C, F, dim) and x (C, X), and the behaviours' weights."""
        rows = batch.behaviours() if batch.dense is None else batch.history
        e = self.embedding_dropout(self.history(self.embeddings, rows))  # (B, D) or (U, L, D)
        q = self.embedding_dropout(self.embeddings("item", batch.item))  # (C, D)
        interest, weight = self.interest(batch, e, q)  # (C, I)
        parts = [
            nn.functional.embedding(batch.owner, self.embeddings("user", batch.user)),
            self.embeddings("context", batch.context),
            self.embeddings("ad", batch.ad),
            q,
            interest,
        ]
        product = [interest * q] if self.product else []
        fields = torch.cat(parts, -1).unflatten(-1, (-1, self.dim))
        return fields, torch.cat([*parts, *product], -1), weight

    def auxiliary(self) -> Tensor | float:
        """What the last training forward adds to the loss of the labels: that of an interest with
        a method ``loss``, else 0. It is handed over once."""
        loss = getattr(self.interest, "loss", None)
        found: Tensor | None = loss() if loss else None
        return 0.0 if found is None else found

    def sparse(self) -> dict[str, nn.Parameter]:
        """The weights by name of which a step touches only the rows that occur in it."""
        return {
            f"{name}.weight": module.weight
            for name, module in self.named_modules()
            if getattr(module, "sparse", False) is True
        }

    def settle_unknown(self, counts: Mapping[str, Tensor]) -> None:
        """`Embeddings.settle_unknown` of all tables."""
        for module in self.modules():
            if isinstance(module, Embeddings):
                module.settle_unknown(counts)
