"""The layers that DIN and its baselines share: embeddings, behaviours, activations, the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from model.contract.ids import OOV
from model.contract.schema import Group, Schema

Activation = Literal["sigmoid", "relu", "prelu", "dice"]
BehaviourFields = Literal["gate", "shift", "none"]


MOMENTUM = 0.01


class Dice(nn.Module):
    """Data-adaptive activation (paper section 5.2, equation 9), per neuron.

    ``f(s) = p(s) s + (1 - p(s)) alpha s`` with ``p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps))``;
    E and Var are those of the mini-batch in training, running ones in inference. While it trains
    it must be given real rows only: padding would enter the statistics. Where several processes
    share a mini-batch, ``total`` is the differentiable sum of a tensor over them.
    """

    total: Callable[[Tensor], Tensor] | None = None

    def __init__(self, width: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:  # (..., width)
        if self.training and self.total is not None:
            normal = self._over_all(s, self.total)
        elif self.training and len(s) > 1:  # one row has no variance
            self.norm.momentum = self._momentum()
            normal = self.norm(s)  # (rows, width)
        else:
            normal = self._running(s)
        p = torch.sigmoid(normal)
        return s * (self.alpha + p * (1 - self.alpha))

    def _running(self, s: Tensor) -> Tensor:
        """Normal by the running statistics, for any number of leading axes."""
        return (s - self.norm.running_mean) * torch.rsqrt(self.norm.running_var + self.norm.eps)

    def _momentum(self) -> float:
        """A plain mean of the first batches, then a moving one: never biased by the start."""
        return max(MOMENTUM, 1 / (int(self.norm.num_batches_tracked) + 1))

    def _over_all(self, s: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """What `norm` does with the rows of all processes; s (rows, width), rows may be 0.

        One sum over the processes: E and Var are taken around the running mean, which all of them
        share and which is near E, so that E[d^2] - E[d]^2 loses nothing.
        """
        norm = self.norm
        shift = norm.running_mean.clone()
        d = s - shift
        sums = total(torch.cat([d.sum(0), d.square().sum(0), d.new_tensor([len(d)])]))
        rows = sums[-1].detach()
        if rows < 2:
            return self._running(s) + 0 * sums.sum()  # a sum's backward is one too, on all of them
        mean, square = (sums[:-1] / rows).chunk(2)
        var = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            momentum = self._momentum()
            norm.running_mean.lerp_(shift + mean, momentum)
            norm.running_var.lerp_(var * rows / (rows - 1), momentum)
            norm.num_batches_tracked.add_(1)
        return (d - mean) * torch.rsqrt(var + norm.eps)


class PReLU(nn.Module):
    """max(s, 0) + alpha min(s, 0), alpha per neuron (the last axis, whatever the others are)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, s: Tensor) -> Tensor:
        return torch.relu(s) - self.alpha * torch.relu(-s)


def activation(name: Activation, width: int) -> nn.Module:
    """A fresh activation for ``width`` neurons. Raises ValueError for an unknown name."""
    match name:
        case "sigmoid":
            return nn.Sigmoid()
        case "relu":
            return nn.ReLU()
        case "prelu":
            return PReLU(width)
        case "dice":
            return Dice(width)
    raise ValueError(f"activation: expected sigmoid, relu, prelu or dice, not {name!r}")


class Dropout(nn.Module):
    """`torch.nn.Dropout` with 16 random bits for each element, drawn four at once: torch draws each
    by itself, which takes longer than a matrix product of it. ``share`` counts in 1 / 65,536."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.dropped = round(share * 2**16)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        size = x.numel()
        words = torch.empty((size + 3) // 4, dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None)  # type: ignore[call-overload] # all values, see its docs
        bits = words.view(torch.int16)[:size].view(x.shape)
        kept = (bits >= self.dropped - 2**15).to(x.dtype)
        return x * kept.mul_(2**16 / (2**16 - self.dropped))


def softmax(score: Tensor, real: Tensor) -> Tensor:
    """Softmax over the last axis where ``real``, 0 elsewhere: all 0 where nothing is real."""
    score = score.masked_fill(~real, -1e9)
    raised = torch.exp(score - score.amax(-1, keepdim=True)) * real
    return raised / raised.sum(-1, keepdim=True).clamp(min=1e-30)


class Embeddings(nn.Module):
    """One embedding table per id table of the groups: by default users, items, ads and contexts.

    PAD rows are zero and stay zero; OOV rows start at zero and learn where the logs hold ids below
    their minimum count, else see `settle_unknown`. Gradients are sparse: a step touches just the
    rows that occur in it.
    """

    def __init__(
        self,
        schema: Schema,
        sizes: Mapping[str, int],
        dim: int,
        groups: tuple[Group, ...] = ("user", "item", "ad", "context"),
    ) -> None:
        super().__init__()
        self.schema, self.sizes, self.dim = schema, sizes, dim
        used = {field.table: None for group in groups for field in schema.group(group)}
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(sizes[name], dim, padding_idx=0, sparse=True) for name in used}
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=dim**-0.5 * 0.1)
            with torch.no_grad():
                table.weight[: OOV + 1] = 0

    def weights(self) -> dict[str, nn.Parameter]:
        """The weight of each table (rows, dim)."""
        return {name: cast(nn.Embedding, table).weight for name, table in self.tables.items()}

    def settle_unknown(self, counts: Mapping[str, Tensor]) -> None:
        """Where no training sample held an unknown id, its row becomes the mean known id.

        counts (rows,) of each table as for mini-batch-aware regularisation; the mean is weighted
        by them. An untouched row would be a point the network never saw.
        """
        for name, weight in self.weights().items():
            if counts[name][OOV] == 0 and counts[name].sum() > 0:
                share = counts[name].to(weight.dtype) / counts[name].sum()
                with torch.no_grad():
                    weight[OOV] = share @ weight

    def width(self, group: Group) -> int:
        return self.dim * len(self.schema.group(group))

    def forward(self, group: Group, rows: Tensor) -> Tensor:
        """(..., F_group) rows to (..., fields * dim); tags give the mean of those present."""
        found = []
        columns = self.schema.columns(group)
        for field in self.schema.group(group):
            ids = rows[..., columns[field.name]]
            values = self.tables[field.table](ids)  # (..., width, dim)
            if field.width > 1:
                present = (ids != 0).sum(-1, keepdim=True).clamp(min=1)
                found.append(values.sum(-2) / present)
            else:
                found.append(values.squeeze(-2))
        if not found:
            return rows.new_zeros((*rows.shape[:-1], 0), dtype=torch.float32)
        return torch.cat(found, -1)


class History(nn.Module):
    """Behaviours to vectors: the item's embedding and the behaviour's own fields (a rating ...).

    ``gate``: ``e_j = item_j * (1 + scale[f_j]) + shift[f_j]``, summed over the fields f; ``shift``:
    ``item_j + shift[f_j]``, side information as it is usually added; ``none``: the item alone.
    """

    def __init__(
        self, schema: Schema, embeddings: Embeddings, fields: BehaviourFields = "gate"
    ) -> None:
        super().__init__()
        self.columns = schema.width("item")
        self.fields = schema.columns("behaviour")
        used = () if fields == "none" else schema.behaviour
        self.names = [(field.name, field.table) for field in used]
        self.scales = fields == "gate"
        width = (1 + self.scales) * embeddings.width("item")
        sizes = embeddings.sizes
        self.gates = nn.ModuleDict(
            {
                name: nn.Embedding(sizes[table], width, padding_idx=0, sparse=True)
                for name, table in self.names
            }
        )
        for gate in self.gates.values():
            nn.init.zeros_(gate.weight)

    def forward(self, embeddings: Embeddings, history: Tensor) -> Tensor:  # (U, L, D)
        item = embeddings("item", history[..., : self.columns])
        if not self.gates:
            return item
        extra = history[..., self.columns :]
        both = sum(
            self.gates[name](extra[..., self.fields[name]].squeeze(-1)) for name, _ in self.names
        )
        if not self.scales:
            return item + both
        scale, shift = both.chunk(2, -1)
        return item * (1 + scale) + shift


class MLP(nn.Module):
    """Layers with an activation after each: (C, width) to (C, hidden[-1])."""

    def __init__(
        self, width: int, hidden: tuple[int, ...], kind: Activation, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), activation(kind, size), Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Head(MLP):
    """The MLP on top: (C, width) to logits (C, tasks)."""

    def __init__(
        self, width: int, hidden: tuple[int, ...], kind: Activation, dropout: float, tasks: int
    ) -> None:
        super().__init__(width, hidden, kind, dropout)
        self.layers.append(nn.Linear(hidden[-1], tasks))
