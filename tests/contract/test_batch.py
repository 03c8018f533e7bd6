"""The batch: merging loses and mixes nothing, the grid holds every candidate once."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.batch import Batch, merge

NDIM = (3, 2, 2, 2, 2, 2, 1, 1, 1)  # of each array
WIDTHS = {"history": 3, "user": 2, "item": 2, "ad": 0, "context": 1}


@st.composite
def batches(draw: st.DrawFn, whole: bool = False) -> Batch:
    """Up to 3 users (some without candidates), owners in any order, histories of 0 to 5."""
    users, candidates, length = draw(
        st.tuples(st.integers(1, 3), st.integers(0, 6), st.integers(0, 5))
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = {
        "history": (users, length, WIDTHS["history"]),
        "ts": (users, length),
        "user": (users, WIDTHS["user"]),
        **{name: (candidates, WIDTHS[name]) for name in ("item", "ad", "context")},
    }
    arrays = {name: random.integers(1, 99, shape) for name, shape in shapes.items()}
    owner = random.integers(0, users, candidates)
    ends = np.sort(random.integers(0, length + 1, (2, candidates)), axis=0)
    if whole:
        ends = np.stack([owner * 0, random.integers(0, length + 1, users)[owner]])
    return Batch(**arrays, owner=owner, start=ends[0], stop=ends[1])


@given(st.lists(batches(), min_size=1, max_size=5))
def test_merge_keeps_every_batch_whole(parts: list[Batch]) -> None:
    """Each part is found again in the merged batch, padded right with PAD."""
    merged = merge(parts)
    assert merged.users == sum(part.users for part in parts)
    assert merged.candidates == sum(part.candidates for part in parts)
    assert merged.pairs == sum(part.pairs for part in parts)
    assert all(getattr(merged, each.name).dtype == np.int64 for each in fields(Batch))
    user = candidate = 0
    for part in parts:
        users = slice(user, user + part.users)
        mine = slice(candidate, candidate + part.candidates)
        length = part.history.shape[1]
        for name in ("history", "ts"):
            array = getattr(merged, name)
            assert np.array_equal(array[users, :length], getattr(part, name))
            assert not array[users, length:].any()
        assert np.array_equal(merged.user[users], part.user)
        assert np.array_equal(merged.owner[mine], part.owner + user)
        for name in ("item", "ad", "context", "start", "stop"):
            assert np.array_equal(getattr(merged, name)[mine], getattr(part, name))
        user, candidate = users.stop, mine.stop


@given(batches(), batches(), batches())
def test_merge_in_two_steps_is_merge_in_one(one: Batch, two: Batch, three: Batch) -> None:
    """It does not matter which requests were merged first."""
    at_once, stepwise = merge([one, two, three]), merge([merge([one, two]), three])
    for each in fields(Batch):
        assert np.array_equal(getattr(at_once, each.name), getattr(stepwise, each.name))


@given(batches())
def test_merge_changes_no_part(part: Batch) -> None:
    """The arrays that were merged stay as they are."""
    before = {each.name: getattr(part, each.name).copy() for each in fields(Batch)}
    merge([part, part])
    assert all(np.array_equal(getattr(part, name), array) for name, array in before.items())


def test_merge_of_one_is_that_one_and_of_none_an_error() -> None:
    """A lone request is not copied; no request is no batch."""
    lone = Batch(*(np.zeros((1,) * ndim, np.int64) for ndim in NDIM))
    assert merge([lone]) is lone
    with pytest.raises((ValueError, IndexError)):
        merge([])


@given(batches())
def test_grid_holds_each_candidate_once_in_the_row_of_its_owner(batch: Batch) -> None:
    """place is injective, grid[place] counts the candidates, the row is the owner."""
    grid, place = batch.grid()
    assert (grid.dtype, place.dtype) == (np.int64, np.int64)
    assert len(set(place.tolist())) == batch.candidates
    assert np.array_equal(grid.reshape(-1)[place], np.arange(batch.candidates))
    slots = int(np.bincount(batch.owner, minlength=batch.users).max(initial=0))
    assert grid.shape == (batch.users, slots)
    if batch.candidates:
        assert np.array_equal(place // slots, batch.owner)
        empty = np.setdiff1d(np.arange(grid.size), place)
        assert not grid.reshape(-1)[empty].any()


def test_grid_keeps_the_order_of_a_users_candidates() -> None:
    """Owners may come in any order; a user's candidates stay in theirs."""
    lone = Batch(*(np.zeros((3,) * ndim, np.int64) for ndim in NDIM))
    owner = np.array([2, 0, 2, 0, 2])
    grid, place = replace(lone, owner=owner, item=np.zeros((5, 1), np.int64)).grid()
    assert grid.tolist() == [[1, 3, 0], [0, 0, 0], [0, 2, 4]]
    assert place.tolist() == [6, 0, 7, 1, 8]


def test_a_batch_of_no_users_has_an_empty_grid() -> None:
    """Nothing at all is still a batch."""
    none = Batch(*(np.zeros((0,) * ndim, np.int64) for ndim in NDIM))
    grid, place = none.grid()
    assert (grid.shape, place.shape) == ((0, 0), (0,))


@given(batches(), batches(whole=True))
def test_length_is_what_all_candidates_of_a_user_see(part: Batch, whole: Batch) -> None:
    """Given the length alone start and stop follow; where they can't, that is an error."""
    assert (whole.length()[whole.owner] == whole.stop).all()
    assert not np.delete(whole.length(), whole.owner).any()
    last = np.zeros(part.users, np.int64)
    np.maximum.at(last, part.owner, part.stop)
    if not part.start.any() and (last[part.owner] == part.stop).all():
        assert np.array_equal(part.length(), last)
    else:
        with pytest.raises(ValueError, match="whole history"):
            part.feeds()


@given(batches(whole=True))
def test_feeds_leave_out_what_is_no_column_wide(batch: Batch) -> None:
    """A graph has no input for a group without fields, but always a history of some length."""
    feeds = batch.feeds()
    wide = {"history", "ts", "user", "item", "context", "owner", "length", "grid", "place"}
    assert set(feeds) == wide
    if batch.history.shape[1]:
        assert feeds["history"] is batch.history
        assert feeds["ts"] is batch.ts
    else:
        assert feeds["history"].shape == (batch.users, 1, WIDTHS["history"])
        assert not feeds["history"].any()
        assert feeds["ts"].tolist() == [[0]] * batch.users
