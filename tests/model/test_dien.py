"""DIEN against its equations in numpy, and its auxiliary loss."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from model.dien import Evolution, auxiliary_losses
from model.tensors import Tensors
from tests.model import interest_by_hand, nets
from tests.model.interest_by_hand import Array, Weights, sigmoid, softmax


def states(of: Weights, e: Array) -> list[Array]:
    """Equations 2 to 5, with the gates as torch has them: its update gate keeps what ours takes."""
    wr, wz, wn = np.split(of["extractor.weight_ih_l0"], 3)
    ur, uz, un = np.split(of["extractor.weight_hh_l0"], 3)
    br, bz, bn = np.split(of["extractor.bias_ih_l0"], 3)
    cr, cz, cn = np.split(of["extractor.bias_hh_l0"], 3)
    h, found = np.zeros(6), []
    for x in e:
        r = sigmoid(wr @ x + br + ur @ h + cr)
        u = 1 - sigmoid(wz @ x + bz + uz @ h + cz)
        n = np.tanh(wn @ x + bn + r * (un @ h + cn))
        h = (1 - u) * h + u * n
        found.append(h)
    return found


def interest(of: Weights, e: Array, ts: Array, q: Array) -> Array:
    h = states(of, e)
    attention = softmax(np.array([s @ of["attention.weight.weight"] @ q for s in h]))  # eq. 12
    wu, wr, wn = np.split(of["evolution.inputs.weight"], 3)
    bu, br, bn = np.split(of["evolution.inputs.bias"], 3)
    uu, ur, un = np.split(of["evolution.state.weight"], 3)
    evolved = np.zeros(6)
    for a, x in zip(attention, h, strict=True):
        u = a * sigmoid(wu @ x + uu @ evolved + bu)  # equation 15
        r = sigmoid(wr @ x + ur @ evolved + br)
        n = np.tanh(wn @ x + r * (un @ evolved) + bn)
        evolved = (1 - u) * evolved + u * n  # equation 16
    return evolved


@pytest.mark.parametrize("whole", [False, True])
def test_the_interest_is_the_last_state_of_the_augru(whole: bool) -> None:
    """GRU, attention and AUGRU, step by step."""
    interest_by_hand.holds(nets.network("dien"), nets.batch(whole=whole), interest)


def test_the_auxiliary_loss_is_equation_6() -> None:
    """Of two behaviours the other one is the only negative there can be."""
    generator = torch.Generator().manual_seed(0)
    h, x = (torch.randn(1, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    found = auxiliary_losses(h, torch.tensor([[0, 1, 2, 2]]), x[0, :2], torch.tensor([5, 4]))
    state, (other, following) = h.numpy()[0, 0], x.numpy()[0, :2]
    expected = -np.log(sigmoid(state @ following)) - np.log(1 - sigmoid(state @ other))
    assert found.tolist() == [pytest.approx(expected, abs=1e-12)]


def test_negatives_are_other_real_behaviours() -> None:
    """Each other real behaviour is drawn about as often, the next one and padding never."""
    size, draws = 6, 3000
    e = torch.eye(size) * 20  # a state that is one of them tells which was drawn
    h = torch.arange(1.0, size + 1).expand(draws, 3, size)
    torch.manual_seed(0)
    row = torch.tensor([[0, 1, size]]).expand(draws, 3)
    # softplus of 20 n is 20 n, of -40 about 0: what is left is the place of the negative
    drawn = np.round(auxiliary_losses(h, row, e, torch.arange(size)).numpy() / 20).astype(int)
    places, counts = np.unique(drawn, return_counts=True)
    assert places.tolist() == [1, 3, 4, 5, 6]
    assert (abs(counts / draws - 1 / 5) < 0.03).all()


def test_the_auxiliary_loss_is_the_mean_over_the_steps_of_all_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Views of 0 to 5 behaviours, encoded in several groups; each negative is 3 places behind the
    behaviour that follows, in the round of all, or the first one of the next
    item, where that is of the same."""
    network, batch = nets.network("dien").train(), nets.batch(candidates=20)
    network.interest.auxiliary = 0.5
    of = interest_by_hand.weights(network)
    histories = [[interest_by_hand.behaviour(of, r) for r in h if r.any()] for h in batch.history]
    every = list(chain(*histories))
    item = [int(each[0]) for each in batch.history.reshape(-1, 6) if each.any()]
    first = np.cumsum([0, *map(len, histories)])
    ends: dict[tuple[int, int], int] = {}
    for owner, start, stop in zip(batch.owner, batch.start, batch.stop, strict=True):
        ends[owner, start] = max(stop, ends.get((owner, start), 0))
    expected, redrawn = [], 0
    for (owner, start), stop in ends.items():
        h = states(of, histories[owner][start:stop])
        for at, state in zip(range(start + 1, stop), h, strict=False):
            follows = first[owner] + at
            other = (follows + 3) % len(every)
            if item[other] == item[follows]:
                redrawn += 1
                beyond = [each for each in item if each > item[follows]]
                other = item.index(min(beyond or item))
            right, wrong = sigmoid(state @ every[follows]), sigmoid(state @ every[other])
            expected.append(-np.log(right) - np.log(1 - wrong))
    assert {stop - start for (_, start), stop in ends.items()} == {0, 1, 2, 3, 5}
    assert redrawn
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.full(size, 3))
    monkeypatch.setattr(torch, "rand", lambda size, dtype: torch.zeros(size, dtype=dtype))
    network(Tensors.of(batch))
    assert network.auxiliary().item() == pytest.approx(0.5 * np.mean(expected), abs=1e-12)


def test_negatives_are_of_another_item_than_the_behaviour_that_follows() -> None:
    """Repeats of that item are never drawn; all behaviours of others are, each about as often."""
    item, draws = torch.tensor([7, 8, 7, 9, 7, 7, 8]), 4000
    e = torch.eye(len(item)) * 20
    h = torch.arange(1.0, len(item) + 1).expand(draws, 2, len(item))
    torch.manual_seed(0)
    row = torch.tensor([[0, 2]]).expand(draws, 2)
    drawn = np.round(auxiliary_losses(h, row, e, item).numpy() / 20).astype(int)
    places, counts = np.unique(drawn, return_counts=True)
    assert places.tolist() == [2, 4, 7]
    assert (abs(counts / draws - 1 / 3) < 0.03).all()


def test_repeats_of_other_items_leave_the_draws_what_they_are() -> None:
    """The generator is asked again only for those that drew the item that follows."""
    h, e = torch.randn(1, 2, 6), torch.randn(50, 6)
    row, repeated = torch.tensor([[0, 1]]), torch.arange(50)
    repeated[10:] = 10
    losses, states = [], []
    for item in (torch.arange(50), repeated):
        torch.manual_seed(0)
        losses.append(auxiliary_losses(h, row, e, item).tolist())
        states.append(torch.get_rng_state())
    assert losses[0] == losses[1]
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        ([[2, 2], [0, 2], [1, 2]], [3, 4]),
        ([[0], [0], [1]], [3, 4]),
        ([[0]], [3, 4]),
        ([[0, 1], [0, 2]], [3, 3]),
    ],
)
def test_where_no_behaviour_follows_one_of_another_item_there_is_no_auxiliary_loss(
    rows: list[list[int]], items: list[int]
) -> None:
    """Histories of one behaviour or none, or all of one item: 0, with a gradient of 0."""
    e = torch.randn(2, 6, requires_grad=True)
    interest = Evolution(6, 1.0)
    x = torch.cat([e, e.new_zeros(1, 6)])[torch.tensor(rows)]
    code = interest.encode(x, torch.tensor([]), torch.tensor([]))
    interest.learn(code, torch.tensor(rows), e, torch.tensor(items))
    loss = interest.loss()
    assert loss is not None
    loss.backward()
    assert loss.item() == 0
    assert e.grad is not None
    assert not e.grad.any()


def test_the_auxiliary_loss_is_handed_over_once_and_only_while_training() -> None:
    """It is that of the views, times its weight; the same for the same state of the generator."""
    network, batch = nets.network("dien"), Tensors.of(nets.batch())
    network(batch)
    assert network.auxiliary() == 0
    losses = []
    for weight in (1.0, 1.0, 0.25):
        network.train()
        network.interest.auxiliary = weight
        torch.manual_seed(0)
        network(batch)
        losses.append(network.auxiliary().item())
        assert network.auxiliary() == 0
    assert losses[0] == losses[1] > 0
    assert losses[2] == pytest.approx(losses[0] / 4)
    network.interest.auxiliary = 0.0
    network(batch)
    assert network.auxiliary() == 0
    assert nets.network("base sum ").auxiliary() == 0


def test_the_auxiliary_loss_trains_the_extractor_and_the_embeddings_only() -> None:
    """What comes after the states has no part in it."""
    network = nets.network("dien").train()
    network(Tensors.of(nets.batch()))
    network.auxiliary().backward()  # type: ignore[union-attr]
    moved = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and parameter.grad.to_dense().any()
    }
    assert all(n.startswith(("interest.extractor.", "embeddings.", "history.")) for n in moved)
    assert {"interest.extractor.weight_hh_l0", "embeddings.tables.item_id.weight"} <= moved
