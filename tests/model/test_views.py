"""Views of histories: what networks that go through behaviours in their order encode."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tensors import Pairs, Tensors, Views
from tests.model import nets


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 20), st.booleans())
def test_groups_of_views_show_each_candidate_its_behaviours_and_are_half_full(
    seed: int, length: int, candidates: int, whole: bool
) -> None:
    """All candidates once; what they see in a view is what `Pairs` has; padding below half."""
    drawn = nets.batch(seed, users=4, length=length, candidates=candidates)
    batch = Tensors.of(drawn)
    pairs = Pairs.of(batch)
    expected = [pairs.row[pairs.candidate == c].tolist() for c in range(candidates)]
    found: dict[int, list[int]] = {}
    for candidate, views in Views.of_batch(batch, whole).alike():
        width = views.row.shape[1]
        assert bool((views.length * 2 > width).all()) or width == 1
        for c, view in zip(candidate.tolist(), views.of.tolist(), strict=True):
            assert c not in found
            seen = int(batch.stop[c] - batch.start[c])
            assert seen <= int(views.length[view])
            found[c] = views.row[view, :seen].tolist()
        real = torch.arange(width) < views.length[:, None]
        assert bool((views.row[~real] == len(batch.behaviours())).all())
    assert [found[c] for c in range(candidates)] == expected
