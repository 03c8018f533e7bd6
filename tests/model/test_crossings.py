"""PNN, FNN, DeepFM and NFM, against their formulas by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.contract.batch import Batch
from model.crossings import bi_interaction
from model.tensors import Tensors
from tests.model import by_hand, nets
from tests.model.by_hand import Floats, Weights, linear

DIM = nets.SMALL["dim"]
both_forms = pytest.mark.parametrize("dense", [False, True])
TRIANGLE = [(i, j) for i in range(8) for j in range(i, 8)]


def inner(w: Weights, batch: Batch, c: int) -> Floats:
    """IPNN: all fields, then their inner products."""
    f = by_hand.fields(w, batch, c, DIM, mean=False)
    return by_hand.mlp(w, np.concatenate([*f, [f[i] @ f[j] for i, j in TRIANGLE]]))


def outer(w: Weights, batch: Batch, c: int) -> Floats:
    """OPNN: all fields, then the sum of the outer products of every two."""
    f = by_hand.fields(w, batch, c, DIM, mean=True)
    p = sum(np.outer(f[i], f[j]) for i in range(8) for j in range(8))
    return by_hand.mlp(w, np.concatenate([*f, p[np.triu_indices(DIM)]]))


def both(w: Weights, batch: Batch, c: int) -> Floats:
    """PNN*, with the product of interest and candidate among the fields."""
    f = by_hand.fields(w, batch, c, DIM, mean=False)
    product = [f[4] * f[6], f[5] * f[7]]
    p = sum(np.outer(f[i], f[j]) for i in range(8) for j in range(8))
    products = [f[i] @ f[j] for i, j in TRIANGLE]
    return by_hand.mlp(w, np.concatenate([*f, *product, products, p[np.triu_indices(DIM)]]))


def fm(w: Weights, batch: Batch, c: int, mean: bool) -> Floats:
    """Linear terms, and the inner products of every two fields."""
    f = by_hand.fields(w, batch, c, DIM, mean)
    pairs = sum(f[i] @ f[j] for i, j in TRIANGLE if i < j)
    return linear(w, "crossing.linear", batch, c, mean) + pairs


def deepfm(w: Weights, batch: Batch, c: int) -> Floats:
    x = np.concatenate(by_hand.fields(w, batch, c, DIM, mean=False))
    return fm(w, batch, c, mean=False) + by_hand.mlp(w, x)


def deepfm_product(w: Weights, batch: Batch, c: int) -> Floats:
    f = by_hand.fields(w, batch, c, DIM, mean=True)
    x = np.concatenate([*f, f[4] * f[6], f[5] * f[7]])
    return fm(w, batch, c, mean=True) + by_hand.mlp(w, x)


def fnn(w: Weights, batch: Batch, c: int) -> Floats:
    """The head over every vector, linear term and the bias of the FM."""
    f = by_hand.fields(w, batch, c, DIM, mean=False)
    terms = by_hand.linear_terms(w, "crossing.linear", batch, c, mean=False)
    return by_hand.mlp(w, np.concatenate([*f, *terms, w["crossing.linear.bias"]]))


def nfm(mean: bool) -> Callable[[Weights, Batch, int], Floats]:
    def logit(w: Weights, batch: Batch, c: int) -> Floats:
        f = by_hand.fields(w, batch, c, DIM, mean)
        met = sum(f[i] * f[j] for i, j in TRIANGLE if i < j)
        return linear(w, "crossing.linear", batch, c, mean) + by_hand.mlp(w, met)

    return logit


FORMULAS = {
    "pnn sum inner": inner,
    "pnn mean outer": outer,
    "pnn sum both True": both,
    "deepfm sum": deepfm,
    "deepfm mean True": deepfm_product,
    "fnn sum": fnn,
    "nfm sum": nfm(mean=False),
    "nfm mean": nfm(mean=True),
}


@both_forms
@pytest.mark.parametrize("variant", FORMULAS)
def test_a_crossing_is_its_formula(variant: str, dense: bool) -> None:
    """In numpy, a candidate, a behaviour and a pair of fields at a time."""
    network, batch = nets.network(variant), nets.batch(whole=dense)
    w = Weights.of(network)
    expected = [FORMULAS[variant](w, batch, c) for c in range(batch.candidates)]
    found = nets.logits(network, batch, dense)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-10)


def test_the_stage_before_fnn_is_a_factorisation_machine() -> None:
    """What `pretrain` gives has no head in it."""
    network, batch = nets.network("fnn sum"), nets.batch()
    w = Weights.of(network)
    expected = [fm(w, batch, c, mean=False) for c in range(batch.candidates)]
    with torch.inference_mode():
        found = network.pretrain(Tensors.of(batch))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-10)


def test_one_field_has_nothing_to_meet() -> None:
    """Its interaction is zero, and that of two is their product."""
    fields = torch.randn(4, 2, 3, dtype=torch.float64)
    zero = torch.zeros(4, 3, dtype=torch.float64)
    torch.testing.assert_close(bi_interaction(fields[:, :1]), zero, rtol=0, atol=1e-15)
    torch.testing.assert_close(bi_interaction(fields), fields[:, 0] * fields[:, 1])
