"""Heads for several tasks at once: shared bottom, MMoE, PLE, and the products of ESMM.

All of them take what DIN's head takes, x (C, X), and give a logit per task. Between x and the tower
of each task there is nothing (ESMM), one MLP for all (shared bottom), or experts that a gate of
each task mixes (MMoE; PLE, in layers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from model.contract.schema import Schema
from model.din import DINConfig
from model.layers import MLP, Activation, Head
from model.network import SchemaLacks


@dataclass(frozen=True)
class TasksConfig(DINConfig, ABC):
    """What can be chosen with several tasks; ``head`` is the tower that each task has.

    ``product_of`` names, for each task of the schema but the first, the earlier task within which
    it happens, or "" for none: the probability of such a task is that of the earlier one times its
    own. When it is empty no task is a product.
    """

    head: tuple[int, ...] = (80,)
    product_of: tuple[str, ...] = ()

    @abstractmethod
    def extraction(self, tasks: int, inputs: int) -> nn.Module:
        """x (C, ``inputs``) to a list of the input of each task's tower, (C, ``width``) each."""

    def products(self, tasks: Sequence[str]) -> Sequence[str]:
        """``product_of`` in full."""
        return self.product_of or [""] * (len(tasks) - 1)

    def top(self, schema: Schema, inputs: int) -> TaskHead:
        """Raises ValueError where ``product_of`` does not fit the schema's tasks."""
        within = _within(schema.tasks, self.products(schema.tasks))
        extraction = self.extraction(len(schema.tasks), inputs)
        width = int(extraction.width)  # type: ignore[arg-type]
        towers = [
            Head(width, self.head, self.head_activation, self.dropout, 1) for _ in schema.tasks
        ]
        return TaskHead(extraction, towers, within)


@dataclass(frozen=True)
class SharedBottomConfig(TasksConfig):
    """Towers on one MLP ``bottom`` for all tasks (as of Ma et al., KDD 2018, section 3.1)."""

    bottom: tuple[int, ...] = (200,)

    def extraction(self, tasks: int, inputs: int) -> nn.Module:
        mlp = MLP(inputs, self.bottom, self.head_activation, self.dropout)
        return Alike(mlp, self.bottom[-1], tasks)


@dataclass(frozen=True)
class MMoEConfig(TasksConfig):
    """Towers on ``experts`` MLPs of the sizes ``expert``, mixed by a gate of each task.

    Multi-gate Mixture-of-Experts (Ma et al., KDD 2018, section 4.2).
    """

    experts: int = 4
    expert: tuple[int, ...] = (128,)

    def extraction(self, tasks: int, inputs: int) -> nn.Module:
        form = Form(tasks, self.experts, 0, self.expert, self.head_activation, self.dropout)
        return Progressive(inputs, 1, form)


@dataclass(frozen=True)
class PLEConfig(TasksConfig):
    """Towers on ``layers`` of ``shared_experts`` MLPs of all tasks and ``task_experts`` of each.

    Progressive Layered Extraction (Tang et al., RecSys 2020, section 4); with one layer it is
    Customized Gate Control (section 4.1). ``expert`` are the sizes of an expert's MLP.
    """

    layers: int = 2
    shared_experts: int = 2
    task_experts: int = 2
    expert: tuple[int, ...] = (128,)

    def extraction(self, tasks: int, inputs: int) -> nn.Module:
        form = Form(
            tasks,
            self.shared_experts,
            self.task_experts,
            self.expert,
            self.head_activation,
            self.dropout,
        )
        return Progressive(inputs, self.layers, form)


@dataclass(frozen=True)
class ESMMConfig(TasksConfig):
    """Towers on x itself, whose embeddings they share; tasks are products of earlier ones.

    Entire Space Multi-task Model (Ma et al., SIGIR 2018, section 2): pCTCVR = pCTR * pCVR, both
    trained on all impressions. When ``product_of`` is empty each task happens within the one before
    it.
    """

    head: tuple[int, ...] = (200, 80)

    def extraction(self, tasks: int, inputs: int) -> nn.Module:
        return Alike(nn.Identity(), inputs, tasks)

    def products(self, tasks: Sequence[str]) -> Sequence[str]:
        """Raises `SchemaLacks` where there is one task, and so no product."""
        if len(tasks) == 1:
            raise SchemaLacks("second task, and esmm no product without one")
        return self.product_of or tasks[:-1]


class TaskHead(nn.Module):
    """A tower per task on what an extraction gives it: x (C, X) to logits (C, tasks).

    ``within`` holds for each task the index of the earlier one that it happens within, or -1; its
    logit is then that of the product of both probabilities.
    """

    def __init__(
        self, extraction: nn.Module, towers: Sequence[Head], within: Sequence[int]
    ) -> None:
        super().__init__()
        self.extraction, self.towers = extraction, nn.ModuleList(towers)
        self.within = list(within)

    def forward(self, x: Tensor) -> Tensor:
        logits: list[Tensor] = []
        for tower, own, before in zip(self.towers, self.extraction(x), self.within, strict=True):
            logit = tower(own)
            logits.append(logit if before < 0 else product(logits[before], logit))
        return torch.cat(logits, -1)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The logit of sigmoid(a) * sigmoid(b), whatever their size.

    ``(1 - p) / p = (1 + e^-a) (1 + e^-b) - 1 = e^-a + e^-b + e^-(a + b)``.
    """
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), 0)


class Alike(nn.Module):
    """The same for every task: what ``mlp`` makes of x, (C, width)."""

    def __init__(self, mlp: nn.Module, width: int, tasks: int) -> None:
        super().__init__()
        self.mlp, self.width, self.tasks = mlp, width, tasks

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.mlp(x)] * self.tasks


@dataclass(frozen=True)
class Form:
    """Of a layer of experts: how many are shared, how many each task has, and their MLP."""

    tasks: int
    shared: int
    own: int
    expert: tuple[int, ...]
    kind: Activation
    dropout: float

    def experts(self, number: int, width: int) -> nn.ModuleList:
        mlps = [MLP(width, self.expert, self.kind, self.dropout) for _ in range(number)]
        return nn.ModuleList(mlps)


class Layer(nn.Module):
    """Experts and gates (PLE, section 4.1; without experts of its own for each task: MMoE's).

    The gate of task k mixes its own experts, on its own input, and the shared ones, on the shared
    input: ``g_k = softmax(W_k x_k) [E_k1 .. E_km, E_s1 .. E_sn]``. The shared gate mixes the
    experts of all tasks and the shared ones; the last layer has none.
    """

    def __init__(self, width: int, form: Form, last: bool) -> None:
        super().__init__()
        self.shared = form.experts(form.shared, width)
        self.own = nn.ModuleList([form.experts(form.own, width) for _ in range(form.tasks)])
        mixed = form.own + form.shared
        self.gates = nn.ModuleList([nn.Linear(width, mixed, False) for _ in range(form.tasks)])
        every = form.tasks * form.own + form.shared
        self.shared_gate = None if last else nn.Linear(width, every, False)

    def forward(self, inputs: Sequence[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        """From (C, X) of each task and of all to (C, H) of each task and of all."""
        shared = [expert(x) for expert in self.shared]
        own = [
            [expert(each) for expert in experts]
            for each, experts in zip(inputs, self.own, strict=True)
        ]
        mixed = [
            _mixed(gate(each), [*mine, *shared])
            for gate, each, mine in zip(self.gates, inputs, own, strict=True)
        ]
        if self.shared_gate is None:
            return mixed, x
        return mixed, _mixed(self.shared_gate(x), [*chain(*own), *shared])


class Progressive(nn.Module):
    """Layers of experts, one on the other (PLE, section 4.2): x (C, X) to (C, width) per task."""

    def __init__(self, inputs: int, layers: int, form: Form) -> None:
        super().__init__()
        self.width, self.tasks = form.expert[-1], form.tasks
        widths = [inputs, *[self.width] * (layers - 1)]
        made = [Layer(width, form, at == layers) for at, width in enumerate(widths, 1)]
        self.layers = nn.ModuleList(made)

    def forward(self, x: Tensor) -> list[Tensor]:
        mixed = [x] * self.tasks
        for layer in self.layers:
            mixed, x = layer(mixed, x)
        return mixed


def _mixed(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Experts (C, H) by the softmax of their gate (C, experts)."""
    first, *shares = torch.softmax(gate, -1).split(1, -1)
    found = first * experts[0]
    for share, expert in zip(shares, experts[1:], strict=True):
        found = found + share * expert
    return found


def _within(tasks: Sequence[str], product_of: Sequence[str]) -> list[int]:
    """The index of the task that each is a product of, -1 for none. Raises ValueError."""
    if len(product_of) != len(tasks) - 1:
        every = ", ".join(tasks)
        raise ValueError(f"product_of: expected a name for each task but the first of {every}")
    found = [-1]
    for at, name in enumerate(product_of, 1):
        if name and name not in tasks[:at]:
            earlier = ", ".join(tasks[:at])
            raise ValueError(f"product_of: expected for {tasks[at]} one of {earlier}, not {name!r}")
        found.append(tasks.index(name) if name else -1)
    return found
