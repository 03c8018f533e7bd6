"""The batch as torch tensors: what every network's forward takes."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

from model.contract.batch import Batch


class Tensors(NamedTuple):
    """The arrays of `model.contract.batch.Batch`, int64.

    With ``grid`` [U, N] and ``place`` [C] (see `Batch.grid`) attention is computed on a dense
    [U, N, L] grid, the form that is exported; without them on the real (candidate, behaviour)
    pairs only, the form that trains. Both give the same scores.
    """

    history: Tensor  # (U, L, F_item + F_behaviour)
    user: Tensor  # (U, F_user)
    item: Tensor  # (C, F_item)
    ad: Tensor  # (C, F_ad)
    context: Tensor  # (C, F_context)
    owner: Tensor  # (C,)
    start: Tensor  # (C,)
    stop: Tensor  # (C,)
    grid: Tensor | None = None  # (U, N)
    place: Tensor | None = None  # (C,)

    @classmethod
    def of(cls, batch: Batch, dense: bool = False) -> Tensors:
        """Tensors over the batch's own memory; ``dense`` adds the grid."""
        arrays = [torch.from_numpy(getattr(batch, each.name)) for each in fields(Batch)]
        grid = [torch.from_numpy(array) for array in batch.grid()] if dense else []
        return cls(*arrays, *grid)


class Pairs(NamedTuple):
    """Every (candidate, behaviour) pair that is real, candidate by candidate, oldest first."""

    candidate: Tensor  # (P,) row of the candidate
    behaviour: Tensor  # (P,) row of the behaviour in history.flatten(0, 1)
    age: Tensor  # (P,) behaviours that came after it: 0 is the newest the candidate may see
    first: Tensor  # (C,) where each candidate's pairs begin

    @classmethod
    def of(cls, batch: Tensors) -> Pairs:
        lengths = batch.stop - batch.start
        first = lengths.cumsum(0) - lengths
        candidate = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        within = torch.arange(len(candidate)) - first[candidate]
        base = batch.owner * batch.history.shape[1] + batch.start
        return cls(candidate, base[candidate] + within, lengths[candidate] - 1 - within, first)

    def thinned(self, share: float) -> Pairs:
        """Without a random ``share`` of the pairs."""
        kept = torch.rand(len(self.candidate)) >= share
        candidate = self.candidate[kept]
        counts = torch.bincount(candidate, minlength=len(self.first))
        first = counts.cumsum(0) - counts
        return Pairs(candidate, self.behaviour[kept], self.age[kept], first)


def seen(batch: Tensors, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Which behaviours each cell of the grid sees, bool (U, N, L), and their age (U, N, L).

    The age counts the behaviours that came after: 0 is the newest the candidate may see.
    """
    at = torch.arange(batch.history.shape[1])
    start, stop = batch.start[grid][..., None], batch.stop[grid][..., None]
    return (at >= start) & (at < stop), stop - 1 - at
