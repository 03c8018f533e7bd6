"""The network around an interest: embeddings, a pooling of the behaviours, a head.

Every model is this network with its own pooling: `model.din.Attention` makes it DIN,
`model.base.Pooling` the Embedding&MLP BaseModel. One forward signature for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from model.contract.schema import Schema
from model.layers import Activation, Embeddings, Head, History
from model.tensors import Tensors


class Network(nn.Module):
    """Logits of candidates. Nothing depends on padding or on who shares the batch.

    ``interest(width)`` makes the pooling: a module that takes the batch, its behaviours e and
    candidates q (C, D) and gives an interest per candidate (C, D) and the behaviours' weights.
    When the batch is dense, e is (U, L, D) and the weights are (C, L); when it is not, e is
    (B, D) as of `Tensors.behaviours`, and the weights are (P,) as of `Pairs`.
    """

    def __init__(
        self,
        schema: Schema,
        sizes: Mapping[str, int],
        interest: Callable[[int], nn.Module],
        *,
        dim: int,
        head: tuple[int, ...],
        head_activation: Activation,
        dropout: float,
        embedding_dropout: float,
        product: bool,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.product = product
        self.embeddings = Embeddings(schema, sizes, dim)
        self.history = History(schema, self.embeddings)
        self.width = self.embeddings.width("item")  # D
        others = sum(self.embeddings.width(group) for group in ("user", "context", "ad"))
        inputs = others + (3 if product else 2) * self.width
        self.head = Head(inputs, head, head_activation, dropout, len(schema.tasks))
        self.interest = interest(self.width)
        self.embedding_dropout = nn.Dropout(embedding_dropout)

    def forward(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Logits (C, tasks) and the behaviours' weights, as the pooling gives them."""
        rows = batch.behaviours() if batch.dense is None else batch.history
        e = self.embedding_dropout(self.history(self.embeddings, rows))  # (B, D) or (U, L, D)
        q = self.embedding_dropout(self.embeddings("item", batch.item))  # (C, D)
        interest, weight = self.interest(batch, e, q)  # (C, D)
        parts = [
            nn.functional.embedding(batch.owner, self.embeddings("user", batch.user)),
            self.embeddings("context", batch.context),
            self.embeddings("ad", batch.ad),
            q,
            interest,
        ]
        if self.product:
            parts.append(interest * q)
        return self.head(torch.cat(parts, -1)), weight
