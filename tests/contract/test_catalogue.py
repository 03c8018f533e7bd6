"""The catalogue: every item is found by its key, with its rows and its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.catalogue import Catalogue
from model.contract.ids import keys

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)


def catalogue_of(ids: list[str]) -> Catalogue:
    return Catalogue.build(ids, np.arange(2 * len(ids)).reshape(-1, 2))


@given(st.lists(TEXTS, unique=True, max_size=12), st.lists(TEXTS, max_size=5))
def test_items_are_found_by_key(ids: list[str], others: list[str]) -> None:
    """An item leads to its own rows and name; an id that is not there leads nowhere."""
    catalogue = catalogue_of(ids)
    assert len(catalogue) == len(ids)
    positions, known = catalogue.find(keys(ids))
    assert known.all()
    assert catalogue.rows[positions].tolist() == [[2 * at, 2 * at + 1] for at in range(len(ids))]
    _, known = catalogue.find(keys(others))
    assert known.tolist() == [text in ids for text in others]


@given(st.lists(TEXTS, unique=True, max_size=12), st.lists(TEXTS, max_size=5))
def test_keys_lead_to_names(ids: list[str], others: list[str]) -> None:
    """Of items in any order; a key that is not there has no name."""
    catalogue = catalogue_of(ids)
    asked = [*others, *reversed(ids)]
    assert catalogue.names_of(keys(asked)) == [text if text in ids else None for text in asked]


@pytest.mark.parametrize("ids", [[], ["only"], ["é", "漢", "a", ""]])
def test_round_trip(tmp_path: Path, ids: list[str]) -> None:
    """A catalogue, an empty one too, is read back as it was saved."""
    saved = catalogue_of(ids)
    saved.save(tmp_path / "catalogue")
    read = Catalogue.load(tmp_path / "catalogue")
    for name in ("keys", "rows", "ends", "names"):
        assert np.array_equal(getattr(read, name), getattr(saved, name))
    assert read.names_of(keys([*ids, "new"])) == [*ids, None]


def test_items_must_differ_and_have_a_row_each() -> None:
    """Two items of one key, and rows that are not one per item, are refused."""
    with pytest.raises(ValueError, match="the same 64-bit key"):
        catalogue_of(["a", "b", "a"])
    with pytest.raises(ValueError, match="2 items but 3 rows"):
        Catalogue.build(["a", "b"], np.zeros((3, 1), np.int64))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("keys", np.array([1, 2], np.int64)),
        ("keys", np.array([2, 1], np.uint64)),
        ("keys", np.array([1, 1], np.uint64)),
        ("keys", np.array([1], np.uint64)),
        ("rows", np.zeros((2, 2), np.int64)),
        ("rows", np.zeros(2, np.int32)),
        ("rows", np.zeros((3, 2), np.int32)),
        ("ends", np.array([1], np.int64)),
        ("ends", np.array([1, 3], np.int64)),
        ("ends", np.array([3, 2], np.int64)),
        ("ends", np.array([-1, 2], np.int64)),
        ("names", np.zeros(1, np.uint8)),
        ("names", np.array([{}, {}], object)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, array: np.ndarray
) -> None:
    """A type, shape, order or length that no saved catalogue has is refused."""
    catalogue_of(["a", "b"]).save(tmp_path / "catalogue")
    np.save(tmp_path / "catalogue" / f"{name}.npy", array)
    with pytest.raises(ValueError, match=r"catalogue|Python objects"):
        Catalogue.load(tmp_path / "catalogue")
