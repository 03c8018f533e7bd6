"""The networks: what a score depends on, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.contract.batch import Batch, merge
from model.contract.ids import OOV
from model.network import Network
from model.regularisation import mini_batch_aware
from model.tensors import Pairs, Tensors
from tests.model import nets

CANDIDATE = ("item", "ad", "context", "owner", "start", "stop")
every_variant = pytest.mark.parametrize("variant", nets.VARIANTS)
both_forms = pytest.mark.parametrize("dense", [False, True])


def same(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def pick(batch: Batch, at: np.ndarray | list[int]) -> Batch:
    """Some of the candidates, in the order given."""
    return replace(batch, **{name: getattr(batch, name)[at] for name in CANDIDATE})


def seen_by(batch: Batch, user: int) -> Batch:
    """One user with its candidates."""
    alone = pick(batch, np.flatnonzero(batch.owner == user))
    return replace(
        alone,
        history=batch.history[[user]],
        ts=batch.ts[[user]],
        user=batch.user[[user]],
        owner=np.zeros(alone.candidates, np.int64),
    )


def interest_of(network: Network, batch: Batch, dense: bool = False) -> Tensor:
    """What the pooling gives, (C, D)."""
    found: list[Tensor] = []
    hook = network.interest.register_forward_hook(lambda *call: found.append(call[2][0]))
    nets.logits(network, batch, dense)
    hook.remove()
    return found[0]


@every_variant
def test_pairs_and_grid_give_the_same(variant: str) -> None:
    """The form that trains and the form that is exported agree in logits and weights."""
    network, batch = nets.network(variant), nets.batch(whole=True)
    with torch.inference_mode():
        flat, weight = network(Tensors.of(batch))
        dense, grid = network(Tensors.of(batch, dense=True))
        pairs = Pairs.of(Tensors.of(batch))
    same(dense, flat)
    assert flat.std() > 0.1
    column = pairs.behaviour - torch.from_numpy(batch.owner)[pairs.candidate] * grid.shape[1]
    same(grid[pairs.candidate, column], weight)
    assert grid.count_nonzero() == weight.count_nonzero()


@both_forms
@every_variant
def test_a_score_does_not_depend_on_padding(variant: str, dense: bool) -> None:
    """Longer padding, whatever it holds, changes nothing."""
    network, batch = nets.network(variant), nets.batch(whole=dense)
    more = np.pad(batch.history, ((0, 0), (0, 5), (0, 0)))
    lengths = np.zeros(3, np.int64)
    np.maximum.at(lengths, batch.owner, batch.stop)
    garbage = more.copy()
    garbage[np.arange(11) >= lengths[:, None]] = 7
    ts = np.pad(batch.ts, ((0, 0), (0, 5)))
    times = np.where(np.arange(11) >= lengths[:, None], [[50], [-50], [7]], ts)
    expected = nets.logits(network, batch, dense)
    same(nets.logits(network, replace(batch, history=more, ts=ts), dense), expected)
    same(nets.logits(network, replace(batch, history=garbage, ts=times), dense), expected)


@both_forms
@every_variant
def test_a_score_does_not_depend_on_the_other_candidates(variant: str, dense: bool) -> None:
    """Another order, duplicates and a candidate on its own give the same scores."""
    network, batch = nets.network(variant), nets.batch(whole=dense)
    expected = nets.logits(network, batch, dense)
    for at in ([5, 0, 7, 2, 1, 6, 4, 3], [2, 2, 2, 0, 5, 5], [3]):
        same(nets.logits(network, pick(batch, at), dense), expected[at])


@both_forms
@every_variant
def test_a_score_does_not_depend_on_who_shares_the_batch(variant: str, dense: bool) -> None:
    """Requests merged into one batch score as each alone."""
    network = nets.network(variant)
    batches = [nets.batch(seed, 2, length, 3, whole=dense) for seed, length in enumerate((6, 1, 0))]
    if dense:  # an exported graph always gets one column; see Batch.feeds
        column = {"history": np.zeros((2, 1, 6), np.int64), "ts": np.zeros((2, 1), np.int64)}
        batches[2] = replace(batches[2], **column)
    alone = torch.cat([nets.logits(network, each, dense) for each in batches])
    same(nets.logits(network, merge(batches), dense), alone)
    whole = nets.batch(whole=dense)
    for user in range(whole.users):
        mine = np.flatnonzero(whole.owner == user)
        if len(mine):
            expected = nets.logits(network, whole, dense)[mine]
            same(nets.logits(network, seen_by(whole, user), dense), expected)


@both_forms
@every_variant
def test_a_candidate_sees_its_part_of_the_history_only(variant: str, dense: bool) -> None:
    """Behaviours outside start:stop do not matter; each one inside makes the interest another."""
    network, batch = nets.network(variant), nets.batch(missing=0, whole=dense)
    candidate = int(np.argmax(batch.stop - batch.start))
    user, start, stop = (int(x[candidate]) for x in (batch.owner, batch.start, batch.stop))
    assert stop - start > 1
    batch = pick(batch, [candidate])
    score, interest = nets.logits(network, batch, dense), interest_of(network, batch, dense)
    for at in range(batch.history.shape[1]):
        history = batch.history.copy()
        history[user, at, 0] = history[user, at, 0] % 8 + 1
        other = replace(batch, history=history)
        moved = abs(interest_of(network, other, dense) - interest).max()
        if start <= at < stop:
            assert moved > 1e-6
        else:
            same(nets.logits(network, other, dense), score)


@pytest.mark.parametrize("variant", [each for each in nets.VARIANTS if each.split()[0] != "lr"])
def test_candidates_that_share_a_history_see_their_own_part_of_it(variant: str) -> None:
    """From the same beginning to different ends, with all in one pass: each scores as alone, and
    no gradient reaches a behaviour behind its end."""
    network, batch = nets.network(variant), nets.batch(candidates=12, missing=0)
    batch = replace(batch, start=batch.start * 0)
    expected = [nets.logits(network, pick(batch, [c])) for c in range(batch.candidates)]
    same(nets.logits(network, batch), torch.cat(expected))
    found: list[Tensor] = []
    network.history.register_forward_hook(lambda *call: found.append(call[2]))
    tensors = Tensors.of(batch)
    logits, _ = network(tensors)
    spans = tensors.spans()
    first, reached = (spans.cumsum(0) - spans).numpy()[batch.owner], 0
    for c in range(batch.candidates):
        (gradient,) = torch.autograd.grad(logits[c].sum(), found[0], retain_graph=True)
        seen = np.zeros(len(gradient), bool)
        seen[first[c] : first[c] + batch.stop[c]] = True
        assert not gradient[~seen].any()
        reached += int(gradient[seen].any())
    assert reached > 6
    assert len(set(batch.stop[batch.owner == 0])) > 1


@every_variant
def test_only_some_look_at_the_order_of_behaviours(variant: str) -> None:
    """Pooling is the same for any order, unless DIN has its recency term; sequences go by it."""
    network, batch = nets.network(variant), nets.batch()
    whole = replace(batch, start=batch.start * 0, stop=np.where(batch.owner == 0, 6, 0))
    shuffled = replace(whole, history=whole.history[:, [3, 0, 5, 1, 2, 4]])
    one, two = nets.logits(network, whole), nets.logits(network, shuffled)
    if variant in nets.ORDERED:
        assert abs(one - two).max() > 1e-3
    else:
        same(one, two)


@both_forms
@every_variant
def test_an_empty_history_is_no_interest(variant: str, dense: bool) -> None:
    """The interest is exactly zero and the score finite, alone or beside full histories."""
    network, batch = nets.network(variant), nets.batch(whole=dense)
    batch = replace(batch, stop=np.where(batch.owner % 2, batch.start, batch.stop))
    interest = interest_of(network, batch, dense)
    assert not interest[batch.start == batch.stop].any()
    assert interest[batch.start < batch.stop].any()
    column = {name: getattr(batch, name)[:, : int(dense)] * 0 for name in ("history", "ts")}
    nobody = replace(batch, **column)
    nobody = replace(nobody, start=batch.start * 0, stop=batch.stop * 0)
    assert not interest_of(network, nobody, dense).any()
    assert nets.logits(network, nobody, dense).isfinite().all()


@pytest.mark.parametrize("length", [0, 1, 6])
@every_variant
def test_one_candidate_of_unknown_ids_has_a_score(variant: str, length: int) -> None:
    """N = 1, T in {0, 1, max}, every id OOV: finite, the same in both forms."""
    network = nets.network(variant)
    batch = nets.batch(users=1, length=length, candidates=1)
    unknown = {n: np.full_like(getattr(batch, n), OOV) for n in ("user", "item", "ad", "context")}
    unknown["history"] = np.full((1, max(length, 1), 6), OOV)
    unknown["ts"] = np.arange(max(length, 1))[None] * 6
    batch = replace(batch, **unknown, start=np.zeros(1, np.int64), stop=np.array([length]))
    score = nets.logits(network, batch)
    assert score.shape == (1, 2)
    assert score.isfinite().all()
    same(nets.logits(network, batch, dense=True), score)


@pytest.mark.parametrize(
    "variant",
    [
        "din raw dice recency product",
        "base sum ",
        "lr mean",
        "wide_deep sum",
        "fnn sum",
        "ple dice",
    ],
)
def test_the_pad_row_stays_zero(variant: str) -> None:
    """Training with missing values everywhere moves the other rows, never the padding."""
    network = nets.network(variant).train()
    tables, rows = network.embeddings.weights(), network.sparse()
    rest = [p for p in network.parameters() if all(p is not each for each in rows.values())]
    sparse = torch.optim.SparseAdam(rows.values(), lr=0.1)
    dense = torch.optim.AdamW(rest, lr=0.1, weight_decay=0.1)
    before = tables["genre"].detach().clone()
    for seed in range(3):
        batch = Tensors.of(nets.batch(seed))
        sparse.zero_grad()
        dense.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            network(batch)[0], torch.ones(8, 2, dtype=torch.float64)
        )
        loss.backward()
        for weight in tables.values():
            mini_batch_aware(weight, torch.ones(9), 0.5)
        sparse.step()
        dense.step()
    assert (tables["genre"] != before)[1:].all()
    for weight in rows.values():
        assert weight.any()
        assert not weight[0].any()
