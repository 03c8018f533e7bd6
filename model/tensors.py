"""The batch as torch tensors: what every network's forward takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

from model.contract.batch import Batch


class Dense(NamedTuple):
    """What the dense form adds; see `Batch.length` and `Batch.grid`."""

    length: Tensor  # (U,)
    grid: Tensor  # (U, N)
    place: Tensor  # (C,)

    def age(self, longest: int) -> Tensor:
        """How many behaviours came after each (U, L): 0 is the newest, below 0 is padding."""
        return self.length[:, None] - 1 - torch.arange(longest)


class Tensors(NamedTuple):
    """The arrays of `model.contract.batch.Batch`, int64, in one of two forms.

    The form that trains has start and stop, and attention runs over the real (candidate,
    behaviour) pairs only. The form that is exported has ``length``, ``grid`` and ``place`` of
    `Batch`: every candidate sees its user's whole history, on a dense [U, N, L] grid. Where both
    can hold a batch they give the same scores.
    """

    history: Tensor  # (U, L, F_item + F_behaviour)
    ts: Tensor  # (U, L)
    user: Tensor  # (U, F_user)
    item: Tensor  # (C, F_item)
    ad: Tensor  # (C, F_ad)
    context: Tensor  # (C, F_context)
    owner: Tensor  # (C,)
    start: Tensor  # (C,)
    stop: Tensor  # (C,)
    dense: Dense | None = None

    @classmethod
    def of(cls, batch: Batch, dense: bool = False) -> Tensors:
        """Tensors over the batch's own memory, in the form that trains or the dense one."""
        arrays = {each.name: torch.from_numpy(getattr(batch, each.name)) for each in fields(Batch)}
        grid = Dense(*map(torch.from_numpy, (batch.length(), *batch.grid()))) if dense else None
        return cls(**arrays, dense=grid)

    def spans(self) -> Tensor:
        """Behaviours of each user (U,) up to the last that is seen or not padding."""
        at = torch.arange(1, self.history.shape[1] + 1)
        last = ((self.history != 0).any(-1) * at).amax(-1) if len(at) else self.history.sum((1, 2))
        return last.scatter_reduce(0, self.owner, self.stop, "amax")

    def behaviours(self) -> Tensor:
        """The behaviours without padding, user by user (B, F_item + F_behaviour)."""
        return self.history[self._real()]

    def times(self) -> Tensor:
        """When those of `behaviours` happened (B,)."""
        return self.ts[self._real()]

    def _real(self) -> Tensor:
        at = torch.arange(self.history.shape[1])
        return at < self.spans()[:, None]


class Pairs(NamedTuple):
    """Every (candidate, behaviour) pair that is real, candidate by candidate, oldest first."""

    candidate: Tensor  # (P,) row of the candidate
    behaviour: Tensor  # (P,) row of the behaviour in history.flatten(0, 1)
    row: Tensor  # (P,) row of the behaviour in Tensors.behaviours(), which has no padding
    age: Tensor  # (P,) behaviours that came after it: 0 is the newest the candidate may see
    first: Tensor  # (C,) where each candidate's pairs begin

    @classmethod
    def of(cls, batch: Tensors) -> Pairs:
        lengths = batch.stop - batch.start
        first = lengths.cumsum(0) - lengths
        candidate = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        within = torch.arange(len(candidate)) - first[candidate]
        at = batch.start[candidate] + within
        owner, users = batch.owner[candidate], batch.spans()
        behaviour = owner * batch.history.shape[1] + at
        row = (users.cumsum(0) - users)[owner] + at
        return cls(candidate, behaviour, row, lengths[candidate] - 1 - within, first)

    def thinned(self, share: float) -> Pairs:
        """Without a random ``share`` of the pairs."""
        kept = torch.rand(len(self.candidate)) >= share
        candidate = self.candidate[kept]
        counts = torch.bincount(candidate, minlength=len(self.first))
        first = counts.cumsum(0) - counts
        behaviour, row, age = self.behaviour[kept], self.row[kept], self.age[kept]
        return Pairs(candidate, behaviour, row, age, first)


class Views(NamedTuple):
    """The distinct stretches of histories that candidates see, T behaviours at most, T >= 1.

    One for each owner and start, up to the last behaviour that any of its candidates sees; where
    ``whole``, one for each owner, start and stop.
    """

    row: Tensor  # (V, T) rows of Tensors.behaviours(); behind the last of them where there is none
    length: Tensor  # (V,)
    of: Tensor  # (C,) the view of each candidate

    @classmethod
    def of_batch(cls, batch: Tensors, whole: bool) -> Views:
        line = batch.history.shape[1] + 1
        key = batch.owner * line + batch.start
        key, of = (key * line + batch.stop if whole else key).unique(return_inverse=True)
        length = torch.zeros_like(key).scatter_reduce(0, of, batch.stop - batch.start, "amax")
        users = batch.spans()
        before = (users.cumsum(0) - users).index_select(0, batch.owner) + batch.start
        first = torch.zeros_like(key).scatter(0, of, before)  # the same for all of a view
        at = torch.arange(max(1, int(length.max())))
        row = torch.where(at < length[:, None], first[:, None] + at, users.sum())
        return cls(row, length, of)

    def alike(self) -> Iterator[tuple[Tensor, Views]]:
        """The views in groups, lengths within a power of two of each other, and their candidates.

        ``of`` of a group is of its candidates (rows of the batch), in their order.
        """
        digits = torch.frexp(self.length.float()).exponent
        for size in digits.unique():
            among = digits == size
            candidate = among.index_select(0, self.of).nonzero().squeeze(1)
            place = (among.cumsum(0) - 1).index_select(0, self.of.index_select(0, candidate))
            length = self.length[among]
            yield candidate, Views(self.row[among][:, : max(1, int(length.max()))], length, place)
