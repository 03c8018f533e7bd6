"""Ids: keys that never change, rows that follow the vocabulary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.ids import FIRST, MISSING, OOV, PAD, Buckets, Vocabulary, key, keys

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
UINT64 = st.integers(0, 2**64 - 1)
VECTORS = {
    "": 0x2D06800538D394C2,  # the published xxh3-64 of no bytes
    "42": 0x1217CB28C0EF2191,
    "i1": 0x4E5C1B441FF8643E,
    "Animation": 0x235DC039CFAEA45B,
    "9007199254740993": 0xF28E589174572A41,
    "Zoë 漢字 🎬": 0xFE0DB65D01C0FE32,
    "with\0nul": 0xD57462ED2165BC0B,
    "x" * 256: 0xD1D05738849BAEC9,
}


@pytest.mark.parametrize(("text", "expected"), VECTORS.items())
def test_keys_never_change(text: str, expected: int) -> None:
    """Stored histories hold keys, so a key is the same for ever."""
    assert key(text) == expected


@given(st.lists(TEXT))
def test_keys_of_many_are_the_key_of_each(texts: list[str]) -> None:
    """A column of ids gives the keys that its ids give alone."""
    found = keys(texts)
    assert found.dtype == np.uint64
    assert found.tolist() == [key(text) for text in texts]
    assert np.array_equal(found, keys(iter(texts)))
    assert MISSING not in found


def test_a_digest_of_zero_is_not_taken_for_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id whose digest is 0 gets key 1, since 0 says missing."""
    monkeypatch.setattr("model.contract.ids.xxh3_64_intdigest", lambda data: len(data) - 1)
    assert key("a") == 1
    assert keys(["a", "aa", "aaaa"]).tolist() == [1, 1, 3]


def test_a_lone_surrogate_has_no_key() -> None:
    """Text that UTF-8 cannot hold is refused, alone and in a column."""
    with pytest.raises(UnicodeEncodeError):
        key("\ud800")
    with pytest.raises(UnicodeEncodeError):
        keys(["a", "\ud800"])


def test_keys_do_not_depend_on_the_process() -> None:
    """Another process with another hash seed gives the same keys."""
    script = "from model.contract.ids import keys; print(keys(['42', 'é', '']).tolist())"
    root = Path(sys.modules["model.contract.ids"].__file__ or "").parents[2]
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        out = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == str(keys(["42", "é", ""]).tolist())


@given(st.sets(UINT64.filter(bool), max_size=30), st.lists(UINT64, max_size=30))
def test_vocabulary_rows_are_those_of_a_dictionary(known: set[int], asked: list[int]) -> None:
    """Row i + 2 is the i-th key, 0 is missing, everything else is unknown."""
    vocabulary = Vocabulary(np.array(sorted(known), np.uint64))
    expected = {each: FIRST + at for at, each in enumerate(sorted(known))} | {MISSING: PAD}
    queries = [*asked, *known, MISSING]
    rows = vocabulary.rows(np.array(queries, np.uint64))
    assert rows.dtype == np.int64
    assert rows.tolist() == [expected.get(each, OOV) for each in queries]
    assert vocabulary.size == FIRST + len(known)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3)])
@pytest.mark.parametrize("table", [Vocabulary(np.array([5], np.uint64)), Buckets(3)])
def test_rows_keep_the_shape_of_the_keys(
    table: Vocabulary | Buckets, shape: tuple[int, ...]
) -> None:
    """Rows of an array of keys, of none too, have its shape."""
    rows = table.rows(np.zeros(shape, np.uint64))
    assert (rows.shape, rows.dtype, rows.any()) == (shape, np.int64, False)


def test_neighbours_that_a_float_would_merge_have_rows_of_their_own() -> None:
    """Keys above 2^53 that differ in the last bit are told apart."""
    near = np.array([2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)
    assert Vocabulary(near).rows(near).tolist() == [2, 3, 4]
    assert Vocabulary(near).rows(near - np.uint64(1)).tolist() == [OOV, 2, OOV]
    assert Buckets(2**31 - 3).rows(near).tolist() == [
        2 + each % (2**31 - 3) for each in near.tolist()
    ]


@given(st.dictionaries(TEXT, st.integers(1, 5)), st.integers(1, 6))
def test_learn_keeps_what_was_seen_often_enough(counts: dict[str, int], least: int) -> None:
    """An id seen min_count times has a row, a rarer one is unknown, the order does not matter."""
    texts = list(counts)
    seen = np.array([counts[text] for text in texts], np.int64)
    vocabulary = Vocabulary.learn(texts, seen, least)
    rows = vocabulary.rows(keys(texts))
    assert ((rows >= FIRST) == (seen >= least)).all()
    assert len(set(rows[rows >= FIRST].tolist())) == vocabulary.size - FIRST
    again = Vocabulary.learn(texts[::-1], seen[::-1], least)
    assert np.array_equal(again.sorted_keys, vocabulary.sorted_keys)


def test_learn_refuses_two_ids_of_one_key() -> None:
    """Ids that share a key would share an embedding without a word."""
    with pytest.raises(ValueError, match="the same 64-bit key"):
        Vocabulary.learn(["a", "b", "a"], np.ones(3, np.int64), 1)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_vocabulary_round_trip(tmp_path: Path, count: int) -> None:
    """A vocabulary, an empty one too, is read back as it was saved, without a copy in memory."""
    texts = [str(each) for each in range(count)]
    saved = Vocabulary.learn(texts, np.ones(count, np.int64), 1)
    saved.save(tmp_path / "t.npy")
    read = Vocabulary.load(tmp_path / "t.npy")
    assert np.array_equal(read.sorted_keys, saved.sorted_keys)
    assert not read.sorted_keys.flags.writeable
    assert read.rows(keys([*texts, "new"])).tolist() == saved.rows(keys([*texts, "new"])).tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 2], np.int64),
        np.array([1, 2], ">u8"),
        np.array([[1, 2]], np.uint64),
        np.array([2, 1], np.uint64),
        np.array([1, 1], np.uint64),
        np.array([1.0, 2.0]),
    ],
)
def test_an_array_that_is_no_vocabulary_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    """Another type, shape or order of keys never becomes a vocabulary."""
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(ValueError, match=r"t\.npy: expected"):
        Vocabulary.load(tmp_path / "t.npy")


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    """No file of ours is ever unpickled."""
    np.save(tmp_path / "t.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        Vocabulary.load(tmp_path / "t.npy")


@given(st.integers(1, 2**31 - 3), st.lists(UINT64, min_size=1))
def test_buckets_know_every_id(count: int, asked: list[int]) -> None:
    """A hash row lies in the table, is key mod count, and only a missing id is PAD."""
    table = Buckets(count)
    rows = table.rows(np.array(asked, np.uint64)).tolist()
    assert rows == [FIRST + each % count if each else PAD for each in asked]
    assert max(rows) < table.size
