"""The behaviour record: what is packed is what is unpacked."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.encode import Encoder
from model.contract.history import HistoryCodec, HistoryError, recent
from model.contract.schema import Schema

BARE = Schema.parse('name = "bare"\n[[item]]\nname = "item_id"\n')
RECORDS = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.integers(0, 2**64 - 1),
        st.floats(),
        st.integers(0, 2**64 - 1),
    )
)


@given(records=RECORDS, as_lists=st.booleans())
def test_round_trip(
    encoder: Encoder, records: list[tuple[int, int, float, int]], as_lists: bool
) -> None:
    """Records are read back bit by bit, and lie in the bytes as the layout says."""
    codec = encoder.codec
    columns = dict(zip(codec.dtype.names, zip(*records, strict=True), strict=False)) or {
        name: [] for name in codec.dtype.names
    }
    if not as_lists:
        columns = {name: np.array(each, codec.dtype[name]) for name, each in columns.items()}
    data = codec.pack(columns).tobytes()
    assert data == b"".join(struct.pack("<qQdQ", *record) for record in records)
    read = codec.unpack(data)
    assert read.tobytes() == data
    assert [row[1] for row in read.tolist()] == [record[1] for record in records]


def test_a_record_is_sixteen_bytes_and_eight_per_field(encoder: Encoder) -> None:
    """The width follows the schema's behaviour fields."""
    assert HistoryCodec(BARE).width == 16
    assert encoder.codec.width == 32


def test_unpack_copies_nothing_and_writes_nothing(encoder: Encoder) -> None:
    """A history is a read-only view of the stored bytes."""
    records = encoder.codec.unpack(bytes(64))
    assert not records.flags.owndata
    assert not records.flags.writeable


@pytest.mark.parametrize("length", [1, 16, 31, 33, 63])
def test_bytes_of_another_width_are_no_history(encoder: Encoder, length: int) -> None:
    """Bytes that do not hold whole records are refused."""
    with pytest.raises(HistoryError, match=f"{length} bytes are not a multiple of the record's 32"):
        encoder.codec.unpack(bytes(length))


def test_no_bytes_are_an_empty_history(encoder: Encoder) -> None:
    """A user without a history has one of no records."""
    codec = encoder.codec
    for empty in (codec.unpack(b""), codec.empty()):
        assert (empty.shape, empty.dtype) == ((0,), codec.dtype)


@pytest.mark.parametrize("name", ["ts", "item_id", "action"])
def test_ids_and_times_never_come_as_floats(encoder: Encoder, name: str) -> None:
    """A float column of ids or times is refused, since it has lost bits already."""
    columns = {each: np.ones(2, encoder.codec.dtype[each]) for each in encoder.codec.dtype.names}
    columns[name] = columns[name].astype(np.float64)
    with pytest.raises(ValueError, match=f"{name}: integers expected"):
        encoder.codec.pack(columns)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_columns_of_another_length_are_refused(encoder: Encoder, length: int) -> None:
    """A short column is not stretched over the records."""
    columns = {each: np.ones(2, encoder.codec.dtype[each]) for each in encoder.codec.dtype.names}
    columns["rating"] = np.ones(length)
    with pytest.raises(ValueError, match="rating"):
        encoder.codec.pack(columns)


@given(st.integers(0, 9), st.integers(0, 12))
def test_recent_is_the_tail(count: int, length: int) -> None:
    """The most recent behaviours are the last ones, as many as there are."""
    records = HistoryCodec(BARE).pack({"ts": range(count), "item_id": [1] * count})
    expected = list(range(count))[max(0, count - length) :]
    assert recent(records, length)["ts"].tolist() == expected
