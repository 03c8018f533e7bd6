"""Heads for several tasks: each against its paper's formula, candidate by candidate in numpy."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, getcontext
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.contract.schema import Schema
from model.tasks import TaskHead, product
from model.zoo import configure
from tests.model import by_hand

Array = np.ndarray[Any, Any]
X = 5
TASKS = ("click", "cart", "buy")
SCHEMA = Schema.parse(
    'name = "s"\n[[item]]\nname = "item_id"\n' + "".join(f'[[task]]\nname = "{t}"\n' for t in TASKS)
)


def made(model: str, **options: Any) -> TaskHead:
    """A head in float64 whose every weight matters."""
    config = configure(model, {"head": [4], "head_activation": "prelu", **options})
    head = config.top(SCHEMA, X).double().eval()
    generator = torch.Generator().manual_seed(3)
    for weight in head.parameters():
        nn.init.normal_(weight, generator=generator)
    assert isinstance(head, TaskHead)
    return head


class Weights:
    """The weights of a head by name, copied out, and its number of tasks."""

    def __init__(self, head: TaskHead, kind: str = "prelu") -> None:
        self.all = {name: value.numpy().copy() for name, value in head.state_dict().items()}
        self.kind, self.tasks = kind, range(len(head.towers))

    def mlp(self, name: str, x: Array, last: bool = True) -> Array:
        return by_hand.mlp(self.all, x, name, self.kind, last)

    def tower(self, task: int, x: Array) -> float:
        return float(self.mlp(f"towers.{task}", x, last=False)[0])

    def gate(self, name: str, x: Array) -> Array:
        raised = np.exp(self.all[f"{name}.weight"] @ x)
        return raised / raised.sum()


def shared_bottom(w: Weights, x: Array) -> list[float]:
    """y_k = h_k(f(x))."""
    return [w.tower(task, w.mlp("extraction.mlp", x)) for task in w.tasks]


def mmoe(w: Weights, x: Array) -> list[float]:
    """y_k = h_k(sum_i g_k(x)_i f_i(x)), g_k(x) = softmax(W_k x)."""
    found = []
    for task in w.tasks:
        gate = w.gate(f"extraction.layers.0.gates.{task}", x)
        mixed = sum(gate[i] * w.mlp(f"extraction.layers.0.shared.{i}", x) for i in range(len(gate)))
        found.append(w.tower(task, mixed))
    return found


def ple(w: Weights, x: Array, layers: int, shared: int, own: int) -> list[float]:
    """Each layer from its inputs of each task and the shared one; the last has no shared gate."""
    of_task, of_all = [x for _ in w.tasks], x
    for at in range(layers):
        name = f"extraction.layers.{at}"
        everyone = [w.mlp(f"{name}.shared.{i}", of_all) for i in range(shared)]
        mine = [
            [w.mlp(f"{name}.own.{task}.{i}", of_task[task]) for i in range(own)] for task in w.tasks
        ]
        mixed = []
        for task in w.tasks:
            gate = w.gate(f"{name}.gates.{task}", of_task[task])
            selected = [*mine[task], *everyone]
            assert len(gate) == len(selected)
            mixed.append(sum(g * e for g, e in zip(gate, selected, strict=True)))
        if at < layers - 1:
            gate = w.gate(f"{name}.shared_gate", of_all)
            selected = [*chain(*mine), *everyone]
            assert len(gate) == len(selected)
            of_all = sum(g * e for g, e in zip(gate, selected, strict=True))
        of_task = mixed
    return [w.tower(task, of_task[task]) for task in w.tasks]


def within(logits: list[float]) -> list[float]:
    """The probability of each task is that of the one before it times its own."""
    chance, found = 1.0, []
    for logit in logits:
        chance /= 1 + np.exp(-logit)
        found.append(float(np.log(chance / (1 - chance))))
    return found


def esmm(w: Weights, x: Array) -> list[float]:
    """Each task happens within the one before it."""
    return within([w.tower(task, x) for task in w.tasks])


@pytest.mark.parametrize(
    ("model", "options", "formula"),
    [
        ("shared_bottom", {"bottom": [6, 3]}, shared_bottom),
        ("mmoe", {"experts": 3, "expert": [6, 3]}, mmoe),
        ("ple", {"layers": 1, "expert": [3]}, lambda w, x: ple(w, x, 1, 2, 2)),
        (
            "ple",
            {"layers": 3, "shared_experts": 1, "task_experts": 2, "expert": [6, 3]},
            lambda w, x: ple(w, x, 3, 1, 2),
        ),
        ("esmm", {"head": [4, 3]}, esmm),
    ],
)
def test_a_head_is_its_formula(
    model: str, options: dict[str, Any], formula: Callable[[Weights, Array], list[float]]
) -> None:
    """Logits of each candidate and task, in float64."""
    head = made(model, **options)
    x = np.random.default_rng(0).normal(size=(6, X))
    found = head(torch.from_numpy(x)).detach().numpy()
    expected = np.asarray([formula(Weights(head), row) for row in x])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (found.std(0) > 0.05).all()


def test_every_weight_of_the_layers_is_used() -> None:
    """No gate or expert is left without a gradient, the shared gate of the last layer not made."""
    head = made("ple", layers=2)
    head(torch.randn(40, X, dtype=torch.float64)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in head.parameters())
    gates = [name for name, _ in head.named_parameters() if "shared_gate" in name]
    assert gates == ["extraction.layers.0.shared_gate.weight"]


@pytest.mark.parametrize("model", ["shared_bottom", "mmoe", "ple", "esmm"])
def test_any_task_may_be_the_product_of_an_earlier_one(model: str) -> None:
    """cart and buy within click, but not within each other: the other logits stay as they are."""
    both = made(model, product_of=["click", "click"])
    none = made(model, product_of=["", ""])
    x = torch.randn(5, X, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    click, cart, buy = torch.sigmoid(none(x)).T
    expected = torch.stack([click, click * cart, click * buy], 1)
    torch.testing.assert_close(torch.sigmoid(both(x)), expected, rtol=0, atol=1e-12)


def test_without_a_word_only_esmm_has_products() -> None:
    """Each of its tasks happens within the one before it."""
    assert made("esmm").within == [-1, 0, 1]
    assert made("esmm", product_of=["", "click"]).within == [-1, -1, 0]
    assert made("mmoe").within == [-1, -1, -1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["click"], "product_of: expected a name for each task but the first of click, cart, buy"),
        (["click", "cart", "buy"], "product_of: expected a name for each task but the first"),
        (["cart", ""], "product_of: expected for cart one of click, not 'cart'"),
        (["", "sale"], "product_of: expected for buy one of click, cart, not 'sale'"),
    ],
)
def test_a_product_that_cannot_be_is_refused(names: list[str], expected: str) -> None:
    """Only earlier tasks, by their names, one for each task but the first."""
    with pytest.raises(ValueError, match=expected):
        made("mmoe", product_of=names)


FINITE = st.floats(-80, 80)


@given(FINITE, FINITE)
def test_the_logit_of_a_product_is_exact_wherever_probabilities_are_not(a: float, b: float) -> None:
    """Against 60 digits: within a relative 1e-14 of the odds, in float64, in both tails."""
    getcontext().prec = 60
    p = 1 / (1 + (-Decimal(a)).exp()) / (1 + (-Decimal(b)).exp())
    expected = float((p / (1 - p)).ln())
    found = product(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert float(found) == pytest.approx(expected, rel=1e-14, abs=1e-13)


def test_the_logit_of_a_product_has_finite_gradients_at_the_ends() -> None:
    """In float32, where the probabilities themselves are 0 and 1."""
    a = torch.tensor([-200.0, -200.0, 200.0, 200.0, 0.0], requires_grad=True)
    b = torch.tensor([-200.0, 200.0, -200.0, 200.0, 0.0], requires_grad=True)
    found = product(a, b)
    found.sum().backward()
    torch.testing.assert_close(
        found.detach(), torch.tensor([-400, -200, -200, 200 - np.log(2), -np.log(3)]).float()
    )
    for each in (a, b):
        assert each.grad is not None
        assert each.grad.isfinite().all()
