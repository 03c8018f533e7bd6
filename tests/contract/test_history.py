"""The behaviour record: what is packed is what is unpacked."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.encode import Encoder
from model.contract.history import HistoryCodec, HistoryError, in_order, recent
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
    assert HistoryCodec.of(BARE).width == 16
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
    records = HistoryCodec.of(BARE).pack({"ts": range(count), "item_id": [1] * count})
    expected = list(range(count))[max(0, count - length) :]
    assert recent(records, length)["ts"].tolist() == expected


def test_a_layout_is_known_again_from_its_description() -> None:
    """Names and kinds are all that it needs."""
    codec = HistoryCodec([("rating", "category"), ("price", "number")])
    again = HistoryCodec.parse(codec.described)
    assert (again.fields, again.dtype, again.layout) == (codec.fields, codec.dtype, codec.layout)


def test_a_codec_has_the_layout_of_its_schema(encoder: Encoder) -> None:
    """The digest that names a stored history is one, wherever it is made."""
    assert HistoryCodec.of(encoder.schema).layout == encoder.schema.layout


@pytest.mark.parametrize("text", ["", "1", "[1]", '[["a"]]', '[["a", 1]]', '[["a", "b", "c"]]'])
def test_what_describes_no_layout_is_refused(text: str) -> None:
    """A damaged description is a HistoryError."""
    with pytest.raises(HistoryError):
        HistoryCodec.parse(text)


def test_records_of_another_layout_keep_what_both_have() -> None:
    """What is new, or has become another kind, is missing; what is gone is dropped."""
    old = HistoryCodec([("rating", "category"), ("price", "category"), ("gone", "number")])
    new = HistoryCodec([("price", "number"), ("rating", "category"), ("fresh", "category")])
    records = old.pack(
        {"ts": [1, 2], "item_id": [3, 4], "rating": [5, 6], "price": [7, 8], "gone": [0.5, 1.5]}
    )
    found = new.convert(records, old)
    assert found.dtype == new.dtype
    assert found[["ts", "item_id", "rating"]].tolist() == [(1, 3, 5), (2, 4, 6)]
    assert np.isnan(found["price"]).all()
    assert not found["fresh"].any()
    assert old.convert(records, old) is records


def test_records_in_another_unit_of_time_are_converted(encoder: Encoder) -> None:
    """A schema that goes over to ms has another layout, and reads what was written in s."""
    other = HistoryCodec.of(replace(encoder.schema, ts_unit="ms"))
    assert other.layout == replace(encoder.schema, ts_unit="ms").layout != encoder.codec.layout
    assert HistoryCodec.parse(other.described).record == other.record
    names = [name for name, _ in encoder.codec.fields]
    columns = {name: [3, 0, 5] for name in ["item_id", *names]}
    in_s = encoder.codec.pack({"ts": [0, 1_700_000_001, 1_700_000_002], **columns})
    in_ms = other.convert(in_s, encoder.codec)
    assert in_ms["ts"].tolist() == [0, 1_700_000_001_000, 1_700_000_002_000]
    later = other.pack({"ts": [1_700_000_001_999, 5, -1], **columns})
    assert encoder.codec.convert(later, other)["ts"].tolist() == [1_700_000_001, 0, -1]
    assert (encoder.codec.convert(in_ms, other) == in_s).all()


def test_histories_of_several_layouts_become_one_in_time() -> None:
    """Of one moment those of the first part come first."""
    codec = HistoryCodec.of(BARE)
    first = codec.pack({"ts": [1, 5], "item_id": [1, 2]})
    second = codec.pack({"ts": [0, 5, 6], "item_id": [3, 4, 5]})
    assert in_order([first, second])["item_id"].tolist() == [3, 1, 2, 4, 5]
