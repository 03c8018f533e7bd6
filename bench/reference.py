"""REF, the frozen reference: DIN as it is usually written, with the weights of a network of ours.

The history is replicated for each candidate to [C, T, D], the attention MLP reads the concatenated
[q, k, q-k, q*k], everything is padded to the longest history, gradients of embedding tables are
dense and Adam passes over every parameter. It computes what `model.network.Network` computes, so
that only speed differs. It is the yardstick: written plainly, never tuned, never changed.
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.contract.batch import Batch
from model.din import Attention
from model.layers import Dice, Dropout
from model.network import Network
from model.tensors import Tensors
from training.dataset import Dataset
from training.trainer import FitConfig

Ints = npt.NDArray[np.int64]


class MaskedDice(nn.Module):
    """Dice on a padded tensor: batch statistics of the real positions only."""

    mean: Tensor
    var: Tensor

    def __init__(self, dice: Dice) -> None:
        super().__init__()
        self.alpha = nn.Parameter(dice.alpha.detach().clone())
        self.eps, self.momentum = dice.norm.eps, 0.01
        self.register_buffer("mean", cast(Tensor, dice.norm.running_mean).clone())
        self.register_buffer("var", cast(Tensor, dice.norm.running_var).clone())

    def forward(self, s: Tensor, share: Tensor | None) -> Tensor:
        """s (..., H); share (...): 1 / count on real positions, 0 on padding, in training only."""
        if share is None:
            mean, var = self.mean, self.var
        else:
            flat = s.flatten(0, -2)
            mean = share.flatten() @ flat
            var = share.flatten() @ (flat - mean).square()
            count = (share != 0).sum()
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.var.lerp_(var * count / (count - 1), self.momentum)
        p = torch.sigmoid((s - mean) * torch.rsqrt(var + self.eps))
        return p * s + (1 - p) * self.alpha * s


class Reference(nn.Module):
    """The network's function, written the usual way; takes and gives what the network does.

    With ``own`` every candidate has a history of its own, ``batch.history`` (C, T, F), as in
    training; without, histories (U, T, F) are embedded once and copied to their candidates.
    """

    def __init__(self, network: Network, own: bool) -> None:
        super().__init__()
        attention = network.interest
        if not isinstance(attention, Attention):
            raise TypeError("expected a DIN network")
        self.own, self.softmax, self.product = own, attention.softmax, network.product
        self.behaviour_dropout = attention.dropout
        self.embeddings = copy.deepcopy(network.embeddings)
        for table in self.embeddings.tables.values():
            cast(nn.Embedding, table).sparse = False
        self.history = copy.deepcopy(network.history)
        for gate in self.history.gates.values():
            cast(nn.Embedding, gate).sparse = False
        unit = copy.deepcopy(attention.unit)
        self.unit = _layers([unit.first, unit.first_activation, *unit.rest])
        self.recency = copy.deepcopy(attention.recency)
        self.head = _layers(list(copy.deepcopy(network.head.layers)))
        self.embedding_dropout = nn.Dropout(network.embedding_dropout.share)

    def forward(self, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Logits (C, tasks) and the behaviours' weights (C, T)."""
        k = self.embedding_dropout(self.history(self.embeddings, batch.history))
        user = self.embeddings("user", batch.user)
        if not self.own:
            k, user = k[batch.owner], user[batch.owner]  # (C, T, D), (C, D_user)
        q = self.embedding_dropout(self.embeddings("item", batch.item))  # (C, D)
        at = torch.arange(k.shape[1])
        real = (at >= batch.start[:, None]) & (at < batch.stop[:, None])  # (C, T)
        thin = self.behaviour_dropout if self.training else 0.0
        if thin:
            real = real & (torch.rand(real.shape) >= thin)
        each = q[:, None].expand_as(k)
        pairs = torch.cat([each, k, each - k, each * k], -1)  # (C, T, 4 D)
        weight = self._through(self.unit, pairs, real).squeeze(-1)  # (C, T)
        if self.recency is not None:
            age = (batch.stop[:, None] - 1 - at).clamp(0, len(self.recency) - 1)
            weight = weight + self.recency[age]
        if self.softmax:
            raised = torch.softmax(weight.masked_fill(~real, -1e9), -1)
            weight = raised * real
        else:
            weight = weight * real / (1 - thin)
        interest = (weight[:, None] @ k).squeeze(1)  # (C, D)
        context, ad = self.embeddings("context", batch.context), self.embeddings("ad", batch.ad)
        parts = [user, context, ad, q, interest]
        if self.product:
            parts.append(interest * q)
        x = torch.cat(parts, -1)
        return self._through(self.head, x, torch.ones(len(x), dtype=torch.bool)), weight

    def _through(self, layers: nn.ModuleList, x: Tensor, real: Tensor) -> Tensor:
        share = real / real.sum() if self.training else None
        for layer in layers:
            x = layer(x, share) if isinstance(layer, MaskedDice) else layer(x)
        return x


def _usual(layer: nn.Module) -> nn.Module:
    """A layer of ours as it is usually had."""
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.share)
    return MaskedDice(layer) if isinstance(layer, Dice) else layer


def _layers(layers: list[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(map(_usual, layers))


def padded(data: Dataset, at: Ints) -> Batch:
    """The batch of impressions ``at``, each with its own history padded to the longest allowed."""
    slab = data.start[at][:, None] + np.arange(data.schema.history_length)
    real = slab < data.stop[at][:, None]
    history = np.zeros((*slab.shape, data.behaviours.shape[1]), np.int64)
    history[real] = data.behaviours[slab[real]]
    ts = np.zeros(slab.shape, np.int64)
    ts[real] = data.ts[slab[real]]
    return Batch(
        history=history,
        ts=ts,
        user=data.users[data.user[at]].astype(np.int64),
        item=data.item[at].astype(np.int64),
        ad=data.ad[at].astype(np.int64),
        context=data.context[at].astype(np.int64),
        owner=np.arange(len(at)),
        start=np.zeros(len(at), np.int64),
        stop=data.stop[at] - data.start[at],
    )


class ReferenceTraining:
    """Steps on shuffled impressions: padded, dense gradients, dense Adam over all parameters."""

    def __init__(self, network: Network, data: Dataset, config: FitConfig, seed: int) -> None:
        self.network, self.data, self.size = Reference(network, own=True), data, config.size
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.rate)
        self.generator = np.random.default_rng(seed)

    def step(self) -> int:
        """Assemble a batch and train on it; the number of its impressions."""
        at = self.generator.integers(0, len(self.data), self.size)
        batch, label = Tensors.of(padded(self.data, at)), torch.from_numpy(self.data.label[at])
        self.network.train()
        self.optimiser.zero_grad()
        logit, _ = self.network(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label)
        loss.backward()
        self.optimiser.step()
        return len(at)
