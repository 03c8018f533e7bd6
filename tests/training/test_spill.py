"""Rows on disk: all of them come back, in groups of whole users and in their order."""

from __future__ import annotations

import weakref
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.spilled import in_groups
from training import spill
from training.logs import LogsError
from training.spill import Distinct, Spill, groups

FULL = Path("/dev/full")
ROWS = st.lists(st.integers(0, 1200), max_size=60)


def rows_of(users: list[int], begin: int = 0) -> pl.DataFrame:
    at = pl.int_range(begin, begin + len(users), eager=True)
    return pl.DataFrame({"user": pl.Series(users, dtype=pl.Int32), "at": at})


@settings(deadline=None, max_examples=30)
@given(ROWS, ROWS, st.integers(1, 20), st.integers(1, 400), st.integers(1, 400), st.integers(1, 4))
def test_groups_are_the_rows_in_the_order_of_ids_as_text(
    tmp_path_factory: pytest.TempPathFactory,
    one: list[int],
    other: list[int],
    part: int,
    run: int,
    group: int,
    length: int,
) -> None:
    """However many runs and groups there are: a user is in one group, beside the rows that it has
    in the other spill, and those of a user keep their order."""
    folder = tmp_path_factory.mktemp("spill")
    with pytest.MonkeyPatch.context() as patch:
        in_groups(patch, run, group)
        both = Spill(folder, "one", "user", length), Spill(folder, "other", "user", length)
        for each, users in zip(both, (one, other), strict=True):
            for begin in range(0, max(len(users), 1), part):
                each.add(rows_of(users[begin : begin + part], begin))
        found = list(map(by_text, groups(*both)))
    for at, users in enumerate((one, other)):
        text = [(str(user), number) for number, user in enumerate(users)]
        assert [row for frames in found for row in frames[at]] == sorted(text)
    seen = [{user for rows in frames for user, _ in rows} for frames in found]
    assert sum(map(len, seen)) == len(set(one) | set(other))
    assert all(seen)


def heights(group: tuple[pl.DataFrame, ...]) -> list[int]:
    return [rows.height for rows in group]


def by_text(group: tuple[pl.DataFrame, ...]) -> list[list[tuple[str, int]]]:
    """As a reader sorts a group: by user, ties in the order of the group."""
    user = pl.col("user").cast(pl.String)
    return [rows.with_columns(user).sort("user", maintain_order=True).rows() for rows in group]


def test_a_group_has_no_more_bytes_than_it_may_unless_one_beginning_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has 12 bytes here: 4 users of two rows in 100 bytes, and 30 rows of one user."""
    in_groups(monkeypatch, 1000, 100)
    kept = Spill(tmp_path, "rows", "user", 2)
    kept.add(rows_of([user for user in range(10, 30) for _ in range(30 if user == 20 else 2)]))
    sizes = map(heights, groups(kept))
    assert [rows for (rows,) in sizes] == [8, 8, 4, 30, 8, 8, 2]


def test_no_group_is_in_memory_when_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no row that waits when groups begin."""
    found = in_groups(monkeypatch, 1 << 20, 100)
    kept = Spill(tmp_path, "rows", "user", 2)
    waiting = rows_of(list(range(100)))
    kept.add(waiting)
    alive = weakref.ref(waiting)
    del waiting
    for rows in map(heights, groups(kept)):
        assert (sum(rows) > 0, alive()) == (True, None)
    assert len(found) > 5
    with pytest.raises(AssertionError):
        list(groups(kept))  # keeps them


def test_the_rows_whose_group_was_done_with_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From none to all of both."""
    in_groups(monkeypatch, 100, 100)
    kept = [Spill(tmp_path, name, "user", 2) for name in ("a", "b")]
    for each in kept:
        each.add(rows_of(list(range(10, 20))))
    told: list[tuple[int, int]] = []
    list(map(heights, groups(*kept, update=lambda _, done, total, __: told.append((done, total)))))
    assert told[0] == (0, 20)
    assert told[-1] == (20, 20)
    assert sorted(told) == told
    assert len(told) > 3


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """What could not be written is told as what was expected."""
    (tmp_path / "rows-00000.parquet").symlink_to(FULL)
    kept = Spill(tmp_path, "rows", "user", 2)
    kept.add(rows_of([1]))
    expected = r"rows-00000\.parquet: file: expected a file that can be written \(.*No space left"
    with pytest.raises(LogsError, match=expected):
        list(groups(kept))


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), min_size=1), st.integers(0, 20))
def test_distinct_rows_are_the_first_of_each_value(frames: list[list[int]], at_once: int) -> None:
    """In the order they came in, however often what is repeated was thrown away."""
    wanted, number = dict[int, int](), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "DISTINCT", at_once)
        found = Distinct("user")
        for users in frames:
            rows = rows_of(users, number)
            number += len(users)
            for user, at in rows.iter_rows():
                wanted.setdefault(user, at)
            found.add(rows)
        for _ in range(2):
            assert found.rows().rows() == list(wanted.items())
