"""The batch: what a model scores, in training and in serving alike.

A user's history is held once and candidates point to it::

    history [U, L, F_item + F_behaviour]   each behaviour's id rows, oldest first, padded right
    ts      [U, L]           when each behaviour happened, in the unit of the logs
    user    [U, F_user]
    item    [C, F_item]      in the same tables as the behaviours' first F_item columns
    ad      [C, F_ad]
    context [C, F_context]
    owner   [C]              which row of history and user a candidate belongs to
    start, stop [C]          the behaviours a candidate may see: history[owner, start:stop]

All int64. U users, C candidates, L the longest history of the batch (0 is allowed).

In training each impression sees its own part of the history. In serving all candidates of a user
see the whole of it, and the graph takes ``length`` [U] in place of start and stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Arrays as drawn in the module's docstring."""

    history: Ints
    ts: Ints
    user: Ints
    item: Ints
    ad: Ints
    context: Ints
    owner: Ints
    start: Ints
    stop: Ints

    @property
    def users(self) -> int:
        return len(self.history)

    @property
    def candidates(self) -> int:
        return len(self.item)

    @property
    def pairs(self) -> int:
        """Candidate x behaviour pairs: what a call costs."""
        return int((self.stop - self.start).sum())

    def feeds(self) -> dict[str, Ints]:
        """Inputs of the scoring graph: the arrays, `length` and `grid`, without those 0 wide.

        Where all histories are empty one padding behaviour stands in, which nobody sees. Raises
        ValueError where `length` does.
        """
        grid, place = self.grid()
        names = ("history", "ts", "user", "item", "ad", "context", "owner")
        arrays: dict[str, Ints] = {name: getattr(self, name) for name in names}
        if not self.history.shape[1]:
            for name in ("history", "ts"):
                _, _, *width = arrays[name].shape
                arrays[name] = np.zeros((self.users, 1, *width), np.int64)
        feeds = {name: array for name, array in arrays.items() if 0 not in array.shape[1:]}
        return {**feeds, "length": self.length(), "grid": grid, "place": place}

    def length(self) -> Ints:
        """Behaviours of each user [U]; 0 where a user has no candidates.

        Raises ValueError when the candidates of a user do not all see history[:length].
        """
        if self.users == 1 and self.candidates:
            length = self.stop[:1]
            if self.start.any() or (self.stop != length).any():
                raise _not_whole()
            return length
        length = np.zeros(self.users, np.int64)
        length[self.owner] = self.stop
        if self.start.any() or (length[self.owner] != self.stop).any():
            raise _not_whole()
        return length

    def grid(self) -> tuple[Ints, Ints]:
        """Candidates side by side per user, so that attention needs no gather of histories.

        grid  [U, N]  the candidate in slot n of user u (0 where the slot is empty)
        place [C]     u * N + n of each candidate
        """
        if self.users == 1:
            place = np.arange(self.candidates)
            return place[None], place
        counts = np.bincount(self.owner, minlength=self.users)
        slots = int(counts.max(initial=0))
        order = np.argsort(self.owner, kind="stable")
        first = np.cumsum(counts) - counts
        by_owner = self.owner[order]
        place = np.empty(self.candidates, np.int64)
        place[order] = by_owner * slots + np.arange(self.candidates) - first[by_owner]
        grid = np.zeros(self.users * slots, np.int64)
        grid[place] = np.arange(self.candidates)
        return grid.reshape(self.users, slots), place


def _not_whole() -> ValueError:
    return ValueError("start, stop: a user's candidates must all see its whole history")


def merge(batches: Sequence[Batch]) -> Batch:
    """One batch of several: users and candidates in the order given. Needs at least one."""
    if len(batches) == 1:
        return batches[0]
    users = sum(batch.users for batch in batches)
    longest = max(batch.history.shape[1] for batch in batches)
    history = np.zeros((users, longest, batches[0].history.shape[2]), np.int64)  # PAD
    ts = np.zeros((users, longest), np.int64)
    owners, first = [], 0
    for batch in batches:
        at = slice(first, first + batch.users), slice(batch.history.shape[1])
        history[at], ts[at] = batch.history, batch.ts
        owners.append(batch.owner + first)
        first += batch.users
    return Batch(
        history=history,
        ts=ts,
        owner=np.concatenate(owners),
        **{
            name: np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("user", "item", "ad", "context", "start", "stop")
        },
    )
