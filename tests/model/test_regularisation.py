"""Mini-batch-aware regularisation, row by row against the paper's formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model.regularisation import mini_batch_aware
from model.tensors import Tensors
from tests.model import nets

STRENGTH, RATE = 0.3, 0.05
COUNTS = torch.tensor([5.0, 2.0, 7.0, 1.0, 4.0, 3.0])


def embedding() -> nn.Embedding:
    table = nn.Embedding(6, 3, padding_idx=0, sparse=True).double()
    generator = torch.Generator().manual_seed(0)
    table.weight.data = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return table


def test_one_step_moves_each_row_by_the_formula() -> None:
    """Row j that occurs: w - rate (g_j + lambda / n_j w_j), however often; the others: w."""
    table, ids = embedding(), [2, 4, 2, 0, 2, 5]
    pull = np.random.default_rng(0).normal(size=(6, 3))
    before = table.weight.detach().numpy().copy()
    optimiser = torch.optim.SGD(table.parameters(), lr=RATE)
    (table(torch.tensor(ids)) * torch.from_numpy(pull)).sum().backward()
    mini_batch_aware(table.weight, COUNTS, STRENGTH)
    optimiser.step()
    after = table.weight.detach().numpy()
    for row in range(6):
        occurs = row != 0 and row in ids
        gradient = sum((pull[at] for at, each in enumerate(ids) if each == row), np.zeros(3))
        penalty = STRENGTH * 1 / float(COUNTS[row]) * before[row]
        expected = before[row] - RATE * (gradient + penalty) if occurs else before[row]
        if occurs:
            np.testing.assert_allclose(after[row], expected, rtol=0, atol=1e-15)
        else:
            assert after[row].tobytes() == expected.tobytes()


def test_sparse_adam_leaves_rows_that_do_not_occur() -> None:
    """Also after a batch in which they did occur: no momentum moves them later."""
    table = embedding()
    optimiser = torch.optim.SparseAdam(list(table.parameters()), lr=RATE)
    for ids in ([1, 2, 3], [2, 2, 5]):
        before = table.weight.detach().clone()
        optimiser.zero_grad()
        table(torch.tensor(ids)).sum().backward()
        mini_batch_aware(table.weight, COUNTS, STRENGTH)
        optimiser.step()
        moved = (table.weight != before).any(1)
        assert set(moved.nonzero().flatten().tolist()) == set(ids)
    first_moment = optimiser.state[table.weight]["exp_avg"]
    assert first_moment.any(1).tolist() == [False, True, True, True, False, True]


@pytest.mark.parametrize("variant", ["din raw dice recency product", "base mean product"])
def test_a_network_pays_for_the_rows_of_its_batch_only(variant: str) -> None:
    """With the penalty each gradient differs by lambda / n_j w_j for all rows in the batch."""
    network, batch = nets.network(variant).train(), nets.batch()
    network(Tensors.of(batch))[0].square().sum().backward()
    columns = nets.SCHEMA.columns("item")
    groups = {
        "item_id": [batch.history[..., columns["item_id"]], batch.item[:, columns["item_id"]]],
        "campaign": [batch.ad],
        "hour": [batch.context],
    }
    for name, arrays in groups.items():
        weight = network.embeddings.weights()[name]
        plain = weight.grad.to_dense().clone()
        counts = torch.arange(1.0, 10.0, dtype=torch.float64)
        mini_batch_aware(weight, counts, STRENGTH)
        occurs = {int(row) for array in arrays for row in array.ravel()} - {0}
        expected = plain.clone()
        for row in occurs:
            expected[row] += STRENGTH / counts[row] * weight.detach()[row]
        torch.testing.assert_close(weight.grad.to_dense(), expected, rtol=0, atol=1e-15)
        assert set(weight.grad.coalesce().indices()[0].tolist()) == occurs


def test_a_table_that_no_row_was_taken_from_is_left_alone() -> None:
    """Without a gradient there is nothing to pay."""
    table = embedding()
    mini_batch_aware(table.weight, COUNTS, STRENGTH)
    assert table.weight.grad is None
