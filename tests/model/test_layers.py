"""The layers: what each computes, against its formula by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.contract.batch import Batch
from model.contract.ids import OOV
from model.contract.schema import Schema
from model.din import Interaction, LocalActivationUnit
from model.layers import Activation, Dice, Dropout, Embeddings, PReLU, activation
from model.tensors import Pairs, Tensors
from tests.model import nets

EPS = 1e-8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dice_by_hand(
    s: np.ndarray, mean: np.ndarray, variance: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    p = 1 / (1 + np.exp(-(s - mean) / np.sqrt(variance + EPS)))
    return p * s + (1 - p) * alpha * s


def test_dice_in_training_is_the_formula_with_the_statistics_of_the_batch() -> None:
    """Mean and (biased) variance are those of the rows given, per neuron."""
    dice, s = Dice(3, EPS).double(), random(50, 3) * 3 + torch.tensor([0.0, 5.0, -7.0])
    dice.alpha.data = random(3, seed=1)
    x, alpha = s.numpy(), dice.alpha.detach().numpy()
    expected = dice_by_hand(x, x.mean(0), x.var(0), alpha)
    np.testing.assert_allclose(dice.train()(s).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_dice_in_inference_is_the_formula_with_the_running_statistics() -> None:
    """The rows given do not matter to each other, whatever their number and leading axes."""
    dice, s = Dice(3, EPS).double().eval(), random(2, 4, 3)
    dice.alpha.data = random(3, seed=1)
    mean, variance = random(3, seed=2), random(3, seed=3).abs()
    dice.norm.running_mean.copy_(mean)
    dice.norm.running_var.copy_(variance)
    alpha = dice.alpha.detach().numpy()
    expected = dice_by_hand(s.numpy(), mean.numpy(), variance.numpy(), alpha)
    np.testing.assert_allclose(dice(s).detach().numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(dice(s[:1, :1]).detach(), dice(s).detach()[:1, :1])


def test_dice_keeps_running_statistics() -> None:
    """Each batch moves the running mean and (unbiased) variance by the momentum."""
    dice, s = Dice(2).double().train(), random(40, 2) + 3
    dice(s)
    momentum = dice.norm.momentum
    torch.testing.assert_close(dice.norm.running_mean, momentum * s.mean(0))
    torch.testing.assert_close(dice.norm.running_var, 1 - momentum + momentum * s.var(0))


@pytest.mark.parametrize("rows", [0, 1])
def test_dice_trains_on_batches_too_small_for_statistics(rows: int) -> None:
    """With no row or one the running statistics are used, and stay as they are."""
    dice, s = Dice(2).train(), random(rows, 2).float()
    torch.testing.assert_close(dice(s), dice.eval()(s))
    assert dice.norm.running_mean.tolist() == [0, 0]
    assert dice.norm.running_var.tolist() == [1, 1]


def uneven() -> Batch:
    """Users with 6, 1 and 0 behaviours, all of whose candidates see everything."""
    some = nets.batch(candidates=9)
    history = some.history.copy()
    history[1, 1:] = 0
    history[2] = 0
    stop = np.array([6, 1, 0])[some.owner]
    assert set(some.owner) == {0, 1, 2}
    return replace(some, history=history, start=np.zeros(9, np.int64), stop=stop)


def padded(batch: Batch, columns: int) -> Batch:
    """The same batch with more padding."""
    return replace(batch, history=np.pad(batch.history, ((0, 0), (0, columns), (0, 0))))


@pytest.mark.parametrize("columns", [0, 30])
def test_the_running_mean_of_dice_covers_real_pairs_only(columns: int) -> None:
    """Users of very different lengths: the statistics are those of their real pairs, one by one."""
    batch = uneven()
    network = nets.network("din raw dice recency product")
    unit = network.interest.unit
    inputs = []
    for c in range(batch.candidates):  # the naive first layer, pair by pair
        tensors = Tensors.of(batch)
        q = network.embeddings("item", tensors.item[c])
        for j in range(batch.start[c], batch.stop[c]):
            k = network.history(network.embeddings, tensors.history[batch.owner[c], j][None])[0]
            inputs.append(unit.first(torch.cat([q, k, q - k, q * k])))
    s = torch.stack(inputs).detach()
    norm = unit.first_activation.norm
    before_mean, before_var = norm.running_mean.clone(), norm.running_var.clone()
    network.train()(Tensors.of(padded(batch, columns)))
    keep, momentum = 1 - norm.momentum, norm.momentum
    expected = keep * before_mean + momentum * s.mean(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=0, atol=1e-12)
    expected = keep * before_var + momentum * s.var(0)
    torch.testing.assert_close(norm.running_var, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interaction", ["difference", "product", "outer"])
@pytest.mark.parametrize("kind", ["sigmoid", "dice", "prelu", "relu"])
def test_the_split_of_the_activation_unit_is_the_mlp_on_the_concatenation(
    kind: Activation, interaction: Interaction
) -> None:
    """What is computed once per candidate, behaviour and pair adds up to the first layer on the
    concatenation of q, k and how they meet, pair by pair and on the grid."""
    unit = LocalActivationUnit(4, (5, 3), kind, interaction).double().eval()
    q, k = random(7, 4), random(6, 4, seed=1)
    naive = torch.zeros(7, 6, dtype=torch.float64)
    for n, j in np.ndindex(7, 6):
        meet = {
            "difference": [q[n] - k[j], q[n] * k[j]],
            "product": [q[n] * k[j]],
            "outer": [torch.outer(q[n], k[j]).flatten()],
        }[interaction]
        s = unit.first(torch.cat([q[n], k[j], *meet]))
        naive[n, j] = unit.rest(unit.first_activation(s))
    torch.testing.assert_close(unit.grid(q[None], k[None])[0], naive, rtol=0, atol=1e-12)
    candidate, row = torch.tensor([0, 0, 2, 2, 2, 6]), torch.tensor([1, 5, 0, 4, 4, 3])
    of = Pairs(candidate, row, row, row, torch.tensor([0, 2, 2, 5, 5, 5, 5]))
    torch.testing.assert_close(unit.pairs(q, k, of), naive[candidate, row], rtol=0, atol=1e-12)


def test_prelu_is_its_formula() -> None:
    """Negative values are scaled by alpha, positive ones kept."""
    prelu, s = PReLU(3).double(), random(4, 5, 3)
    prelu.alpha.data = torch.tensor([0.25, -1.0, 2.0])
    expected = torch.where(s > 0, s, prelu.alpha * s)
    torch.testing.assert_close(prelu(s), expected, rtol=0, atol=1e-15)


def test_an_unknown_activation_is_refused() -> None:
    """The error lists what there is."""
    with pytest.raises(ValueError, match="sigmoid, relu, prelu or dice, not 'swish'"):
        activation("swish", 3)


def test_tags_are_the_mean_of_those_present() -> None:
    """Missing tags neither count nor add; an item without tags gets zeros."""
    embeddings = Embeddings(nets.SCHEMA, nets.SIZES, 3).double()
    rows = torch.tensor([[4, 2, 5, 0], [4, 0, 0, 0], [4, 7, 0, 0]])
    found = embeddings("item", rows)
    genre = embeddings.tables["genre"].weight
    torch.testing.assert_close(found[:, :3], embeddings.tables["item_id"].weight[[4, 4, 4]])
    expected = torch.stack([(genre[2] + genre[5]) / 2, torch.zeros(3).double(), genre[7]])
    torch.testing.assert_close(found[:, 3:], expected)


def test_a_behaviour_is_its_item_scaled_and_shifted_by_its_fields() -> None:
    """Both fields' scales and shifts add up; a missing field changes nothing."""
    network = nets.network("base sum ")
    rating, action = (network.history.gates[name].weight for name in ("rating", "action"))
    rows = torch.tensor([[4, 2, 5, 0, 3, 6], [4, 2, 5, 0, 0, 0]])
    item = network.embeddings("item", rows[:, :4])
    found = network.history(network.embeddings, rows)
    both = rating[3] + action[6]
    torch.testing.assert_close(found[0], item[0] * (1 + both[:6]) + both[6:])
    torch.testing.assert_close(found[1], item[1])


def test_the_row_of_unknown_ids_becomes_the_mean_known_one_unless_it_was_trained() -> None:
    """Where no sample held an unknown id its row is the mean of the others, weighted by use."""
    schema = Schema.parse('name = "s"\n[[item]]\nname = "item_id"\n')
    embeddings = Embeddings(schema, {"item_id": 4}, 2)
    weight = embeddings.weights()["item_id"].detach()
    expected = (weight[2] + 3 * weight[3]) / 4
    embeddings.settle_unknown({"item_id": torch.tensor([0.0, 0.0, 1.0, 3.0])})
    torch.testing.assert_close(weight[OOV], expected)
    before = weight.clone()
    embeddings.settle_unknown({"item_id": torch.tensor([0.0, 2.0, 1.0, 3.0])})
    torch.testing.assert_close(weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.9])
def test_dropout_leaves_out_a_share_and_scales_the_rest(share: float) -> None:
    """In training only; the gradient is left out where the value is; the mean stays."""
    torch.manual_seed(0)
    layer, x = Dropout(share), torch.ones(333, 301, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y == 0).double().mean().item() == pytest.approx(share, abs=0.01)
    kept = 2**16 / (2**16 - round(share * 2**16))
    assert set(y.detach().unique().tolist()) <= {0.0, torch.tensor(kept).item()}
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    rows = (y == 0).double().mean(1)
    assert rows.std().item() == pytest.approx((share * (1 - share) / 301) ** 0.5, rel=0.15)
    assert layer.eval()(x) is x


def test_dropout_is_drawn_from_torch_s_generator() -> None:
    """The same seed leaves out the same, and the next call something else."""
    layer, x = Dropout(0.5), torch.ones(1001)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
