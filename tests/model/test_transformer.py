"""Target attention of several heads, against its formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from model.transformer import TransformerConfig
from tests.model import interest_by_hand, nets
from tests.model.interest_by_hand import Array, Formula, Weights, softmax
from tests.model.test_dsin import block


def interest(config: TransformerConfig) -> Formula:
    """Causal blocks, then the candidate as query with ages added to the keys."""
    size = 6 // config.heads

    def formula(of: Weights, e: Array, ts: Array, q: Array) -> Array:
        for at in range(config.blocks):
            e = block(of, f"blocks.{at}", e, config.heads, reach=6)
        asked = of["query.weight"] @ q
        keys, values = np.split(e @ of["keys.weight"].T, 2, 1)
        joined = []
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            score = []
            for j, k in enumerate(keys):
                age = of["age"][len(e) - 1 - j] if config.position else np.zeros(6)
                score.append(asked[part] @ (k + age)[part] / np.sqrt(size))
            joined.append(softmax(np.array(score)) @ values[:, part])
        return of["mix.weight"] @ np.concatenate(joined)

    return formula


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("variant", [n for n in nets.SEQUENCES if n.startswith("transformer")])
def test_the_interest_is_the_attention_of_all_heads(variant: str, whole: bool) -> None:
    """A candidate at a time."""
    config = nets.config(variant)
    assert isinstance(config, TransformerConfig)
    interest_by_hand.holds(nets.network(variant), nets.batch(whole=whole), interest(config))
