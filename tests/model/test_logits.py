"""Whole logits, from raw ids to every task, against the models' formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from model.base import BaseConfig
from model.dien import DIENConfig
from model.din import DINConfig
from model.dsin import DSINConfig
from model.network import Network, NetworkConfig
from model.tasks import TaskHead
from model.transformer import TransformerConfig
from tests.model import by_hand, nets, test_tasks
from tests.model.by_hand import Floats
from tests.model.interest_by_hand import Formula, interests
from tests.model.test_dien import interest as evolved
from tests.model.test_din import interest as activated
from tests.model.test_dsin import interest as of_sessions
from tests.model.test_transformer import interest as attended

TASKS: dict[str, Callable[[test_tasks.Weights, Floats], list[float]]] = {
    "shared_bottom relu": test_tasks.shared_bottom,
    "mmoe dice": test_tasks.mmoe,
    "mmoe prelu within": lambda w, x: test_tasks.within(test_tasks.mmoe(w, x)),
    "ple dice": lambda w, x: test_tasks.ple(w, x, layers=3, shared=1, own=2),
    "ple prelu one layer": lambda w, x: test_tasks.ple(w, x, layers=1, shared=2, own=1),
    "esmm dice recency": test_tasks.esmm,
}
VARIANTS = [*nets.BASE, *nets.DIN, *nets.UNITS, *nets.SEQUENCES, *TASKS]


def interest(config: NetworkConfig) -> Formula:
    match config:
        case BaseConfig():
            mean = config.pooling == "mean"
            return lambda of, e, ts, q: sum(e) / (len(e) if mean else 1)
        case DINConfig():
            return activated(config)
        case DIENConfig():
            return evolved
        case DSINConfig():
            return of_sessions(config)
        case TransformerConfig():
            return attended(config)
    raise AssertionError(config)


def head(variant: str, network: Network, x: Floats) -> Floats | list[float]:
    kind = nets.config(variant).head_activation
    if isinstance(network.head, TaskHead):
        return TASKS[variant](test_tasks.Weights(network.head, kind), x)
    return by_hand.mlp(by_hand.Weights.of(network), x, kind=kind)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_logit_is_its_formula(variant: str, dense: bool) -> None:
    """The head over user, context, ad, candidate, interest and, where asked, the product of the
    last two; activations have lively statistics, and somebody has no behaviours."""
    network, batch, config = (
        nets.network(variant),
        nets.batch(11, whole=dense),
        nets.config(variant),
    )
    w, expected = by_hand.Weights.of(network), []
    for c, v in enumerate(interests(network, batch, interest(config))):
        *others, item, genre = by_hand.shown(w, "embeddings", batch, c)
        q = np.concatenate([item, genre])
        x = np.concatenate([*others, q, v, *([v * q] if config.product else [])])
        expected.append(head(variant, network, x))
    assert (np.std(expected, 0) > 1e-3).all()  # far above the tolerance
    seen = batch.stop - batch.start
    assert seen.min() == 0
    assert seen.max() > 3
    found = nets.logits(network, batch, dense)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
