"""The encoder: a column is its values, offline is online, errors name the field and no value."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.batch import Batch, merge
from model.contract.catalogue import Catalogue
from model.contract.encode import (
    MAX_ID_CHARACTERS,
    Cuts,
    Encoder,
    FieldError,
    Request,
    id_text,
    number,
    stored,
    table_of,
    timestamp,
)
from model.contract.ids import FIRST, MISSING, OOV, PAD, Buckets, Vocabulary, key, keys
from model.contract.schema import Field, Schema

IDS = st.one_of(
    st.sampled_from(["i0", "i1", "Drama", "Noir", "f", "23", "9007199254740993"]),
    st.sampled_from([23, 0, -1, 2**53 + 1, 2**64 - 1, -(2**63)]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAX_ID_CHARACTERS),
)
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([18, 30.5, 65, 0.0, -0.0, 5e-324, math.nextafter(30.5, 0)]),
)
RAW = {
    "category": st.none() | IDS,
    "tags": st.none() | st.lists(IDS, max_size=5) | st.lists(IDS, max_size=5).map(tuple),
    "number": st.none() | NUMBERS,
}


def field_of(encoder: Encoder, name: str) -> Field:
    return next(field for field in encoder.schema.fields if field.name == name)


@given(st.data())
def test_a_column_at_once_is_its_values_one_by_one(encoder: Encoder, data: st.DataObject) -> None:
    """No value's rows depend on the values beside it, and all rows lie in the table."""
    field = data.draw(st.sampled_from(encoder.schema.fields))
    values = data.draw(st.lists(RAW[field.kind], max_size=8))
    rows = encoder.column(field, values)
    assert (rows.shape, rows.dtype) == ((len(values), field.width), np.int64)
    assert [row.tolist() for row in rows] == [
        encoder.column(field, [value])[0].tolist() for value in values
    ]
    assert ((rows >= PAD) & (rows < encoder.tables[field.table].size)).all()


@given(st.integers(-(2**63), 2**64 - 1))
def test_an_integer_is_its_decimal_text(encoder: Encoder, value: int) -> None:
    """42 and "42" are one id, and so are integers that a float cannot hold."""
    assert id_text(value, "item_id") == str(value)
    for name, both in {
        "item_id": [value, str(value)],
        "campaign": [value, str(value)],
        "genre": [[value], [str(value)]],
    }.items():
        one, two = encoder.column(field_of(encoder, name), both).tolist()
        assert one == two


def test_ids_that_a_float_would_merge_stay_apart(encoder: Encoder) -> None:
    """2^53 and 2^53 + 1 have rows of their own, as numbers and as text."""
    field = field_of(encoder, "item_id")
    rows = encoder.column(field, [2**53, 2**53 + 1, str(2**53), str(2**53 + 1)])[:, 0].tolist()
    assert rows[:2] == rows[2:]
    assert rows[0] != rows[1]
    assert OOV not in rows


def test_missing_unknown_and_known_ids(encoder: Encoder) -> None:
    """None is PAD; an id that is not in a vocabulary is OOV; a hash bucket knows every id."""
    gender, campaign = field_of(encoder, "gender"), field_of(encoder, "campaign")
    assert encoder.column(gender, [None, "x", "f"])[:, 0].tolist()[:2] == [PAD, OOV]
    assert encoder.column(gender, ["f"])[0, 0] >= FIRST
    assert encoder.column(campaign, [None])[0, 0] == PAD
    assert encoder.column(campaign, ["x"])[0, 0] == FIRST + key("x") % 7


def test_an_empty_vocabulary_knows_nothing() -> None:
    """A table that learnt no id gives OOV, or PAD for a missing one."""
    schema = Schema.parse('name = "s"\n[[item]]\nname = "item_id"\n')
    nothing = Vocabulary.learn([], np.zeros(0, np.int64), 1)
    encoder = Encoder(schema, {"item_id": nothing}, Catalogue.build([], np.zeros((0, 1), np.int64)))
    assert encoder.column(schema.item[0], ["a", None])[:, 0].tolist() == [OOV, PAD]
    batch, known = encoder.encode(Request(["a", "b"], encoder.records([{"item_id": "a", "ts": 1}])))
    assert batch.item.tolist() == [[OOV], [OOV]]
    assert batch.history.tolist() == [[[OOV]]]
    assert not known.any()


def test_tags_beyond_max_values_are_dropped(encoder: Encoder) -> None:
    """The first max_values tags count, the rest of the columns are PAD."""
    field = field_of(encoder, "genre")
    names = ["Animation", "Comedy", "Drama", "Noir"]
    every = encoder.column(field, [names])[0].tolist()
    assert every == [encoder.column(field, [[name]])[0, 0] for name in names[:3]]
    assert encoder.column(field, [["Noir"], [], None])[:, 1:].any() == 0
    assert encoder.column(field, [[], None]).any() == 0


def test_fields_of_one_table_share_its_rows(encoder: Encoder) -> None:
    """A user's liked genre has the row of an item's genre."""
    likes, genre = (field_of(encoder, name) for name in ("likes", "genre"))
    assert encoder.column(likes, [["Noir"]])[0, 0] == encoder.column(genre, [["Noir"]])[0, 0]


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.none() | NUMBERS, max_size=9),
)
def test_a_number_falls_into_the_interval_that_begins_at_its_boundary(
    cuts: list[float], values: list[float | None]
) -> None:
    """Row i + 2 is [b_i-1, b_i): a number on a boundary belongs to the interval above it."""
    table = Cuts(tuple(cuts))
    asked = [*values, *cuts, *(math.nextafter(cut, -math.inf) for cut in cuts)]
    rows = table.rows_of_numbers(
        np.array([math.nan if each is None else each for each in asked], np.float64)
    )
    assert rows.tolist() == [
        PAD if each is None else FIRST + bisect.bisect_right(cuts, float(each)) for each in asked
    ]
    assert rows.max() < table.size == len(cuts) + 3


def test_stored_numbers_have_the_rows_of_raw_ones(encoder: Encoder) -> None:
    """A number read back from a history, NaN for a missing one, gives the row it gave raw."""
    field = field_of(encoder, "rating")
    values = [None, 3, 2.9, 4, 4.5]
    kept = stored(field, values)
    assert kept.dtype == np.float64
    rows = encoder.tables["rating"].rows(kept.view(np.uint64))
    assert rows.tolist() == encoder.column(field, values)[:, 0].tolist() == [0, 3, 2, 4, 4]
    infinite = np.array([-np.inf, np.inf]).view(np.uint64)
    assert encoder.tables["rating"].rows(infinite).tolist() == [2, 4]


BAD_IDS = [
    "",
    "x" * (MAX_ID_CHARACTERS + 1),
    1.0,
    True,
    2**64,
    -(2**63) - 1,
    b"a",
    [],
    {},
    "\ud800",
]
BAD_NUMBERS = [math.nan, math.inf, -math.inf, "1", True, 2**64, -(2**63) - 1, []]
BAD_TAGS = ["Noir", 1, {"Noir"}, {"Noir": 1}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("gender", value) for value in BAD_IDS),
        *(("campaign", value) for value in BAD_IDS),
        *(("genre", value) for value in BAD_TAGS),
        *(("genre", [value]) for value in [*BAD_IDS, None]),
        *(("price", value) for value in BAD_NUMBERS),
    ],
)
def test_a_bad_value_is_named_by_field_and_place(encoder: Encoder, name: str, value: Any) -> None:
    """A value that is no id, tag or number is refused with its field and place, not echoed."""
    field = field_of(encoder, name)
    good = {"category": "f", "tags": ["Noir"], "number": 1}[field.kind]
    with pytest.raises(FieldError) as caught:
        encoder.column(field, [good, None, value, good, value])
    assert (caught.value.field, caught.value.index) == (name, 2)
    assert str(caught.value) == f"{name}: expected {caught.value.expected}"
    if type(value) is str and value:
        assert value not in str(caught.value)


def test_the_longest_id_is_accepted(encoder: Encoder) -> None:
    """An id of 256 characters, ASCII or not, is an id."""
    for text in ("x" * MAX_ID_CHARACTERS, "é" * MAX_ID_CHARACTERS):
        assert encoder.column(field_of(encoder, "gender"), [text])[0, 0] == OOV


@pytest.mark.parametrize("value", [1.0, True, "1", None, 2**63, -(2**63) - 1])
def test_a_time_is_a_64_bit_integer(value: Any) -> None:
    """Anything but a 64-bit integer is no time."""
    with pytest.raises(FieldError, match="ts: expected a 64-bit integer"):
        timestamp(value, "ts")
    assert timestamp(-(2**63), "ts") == -(2**63)


def test_numbers_are_floats(encoder: Encoder) -> None:
    """An integer becomes the nearest float."""
    assert number(2**53 + 1, "price") == 2.0**53


BEHAVIOURS = st.lists(
    st.fixed_dictionaries(
        {"item_id": IDS, "ts": st.integers(0, 5)},
        optional={"rating": RAW["number"], "action": RAW["category"]},
    ),
    max_size=7,
)
CANDIDATES = st.lists(
    st.tuples(
        IDS.map(str),
        st.fixed_dictionaries(
            {},
            optional={
                "genre": RAW["tags"],
                "brand": RAW["category"],
                "price": RAW["number"],
                "campaign": RAW["category"],
                "bid": RAW["number"],
            },
        ),
    ),
    min_size=1,
    max_size=5,
)
USERS = st.fixed_dictionaries(
    {}, optional={"gender": RAW["category"], "age": RAW["number"], "likes": RAW["tags"]}
)


@st.composite
def requests(draw: st.DrawFn, encoder: Encoder) -> Request:
    candidates = draw(CANDIDATES)
    return Request(
        candidates=[item for item, _ in candidates],
        history=encoder.records(draw(BEHAVIOURS)),
        user=draw(USERS),
        context=draw(st.fixed_dictionaries({}, optional={"hour": RAW["category"]})),
        given=[given for _, given in candidates],
    )


def assert_same(one: Batch, two: Batch) -> None:
    for each in fields(Batch):
        assert np.array_equal(getattr(one, each.name), getattr(two, each.name)), each.name


@given(st.data())
def test_candidates_are_encoded_alone_as_together(encoder: Encoder, data: st.DataObject) -> None:
    """A candidate's arrays do not depend on the other candidates of the request."""
    request = data.draw(requests(encoder))
    batch, known = encoder.encode(request)
    for at, (candidate, given_fields) in enumerate(
        zip(request.candidates, request.given, strict=True)
    ):
        alone, alone_known = encoder.encode(
            Request([candidate], request.history, request.user, request.context, [given_fields])
        )
        assert np.array_equal(alone.history, batch.history)
        assert np.array_equal(alone.user, batch.user)
        for name in ("item", "ad", "context", "start", "stop"):
            assert np.array_equal(getattr(alone, name)[0], getattr(batch, name)[at]), name
        assert alone_known[0] == known[at]


@given(st.lists(st.sampled_from(["i1", "i2", "nobody", "7", 7, "i40", "é"]), max_size=9))
def test_candidates_are_the_items_of_their_keys(encoder: Encoder, ids: list[str | int]) -> None:
    """Text, integers and both together give the rows of their keys."""
    rows, known = encoder.candidates(ids)
    expected, expected_known = encoder.items(keys([str(each) for each in ids]))
    assert np.array_equal(rows, expected)
    assert np.array_equal(known, expected_known)


@pytest.mark.parametrize("bad", [None, True, 1.0, ["i1"], "", "x" * 257, "\ud800"])
def test_what_is_no_id_is_refused_among_ids(encoder: Encoder, bad: Any) -> None:
    """An id is text of 1 to 256 characters or an integer; the error knows which one is not."""
    with pytest.raises(FieldError) as refused:
        encoder.candidates(["i1", bad, "i2"])
    assert refused.value.index == 1


def offline(encoder: Encoder, rows: Sequence[dict[str, Any]], group: str) -> np.ndarray:
    """A group's columns of many raw rows, each column encoded at once as training does."""
    columns = [
        encoder.column(field, [row.get(field.name) for row in rows])
        for field in encoder.schema.group(group)  # type: ignore[arg-type]
    ]
    return np.concatenate(columns, axis=1)


@given(st.data())
def test_offline_columns_are_the_online_arrays(encoder: Encoder, data: st.DataObject) -> None:
    """What training encodes by columns over many users is what one request gives."""
    several = data.draw(st.lists(requests(encoder), min_size=1, max_size=4))
    batch = merge([encoder.encode(request)[0] for request in several])
    assert np.array_equal(offline(encoder, [r.user for r in several], "user"), batch.user)
    contexts = [r.context for r in several for _ in r.candidates]
    assert np.array_equal(offline(encoder, contexts, "context"), batch.context)
    given_fields = [each for request in several for each in request.given]
    assert np.array_equal(offline(encoder, given_fields, "ad"), batch.ad)
    item, _ = encoder.items(keys([each for r in several for each in r.candidates]))
    for field, columns in encoder._placed["item"][1:]:
        at = [index for index, each in enumerate(given_fields) if field.name in each]
        item[at, columns] = encoder.column(field, [given_fields[i][field.name] for i in at])
    assert np.array_equal(item, batch.item)
    length = encoder.schema.history_length
    for row, request in enumerate(several):
        kept = encoder.behaviours(encoder.codec.unpack(request.history.tobytes()))[-length:]
        assert np.array_equal(batch.history[row, : len(kept)], kept)


def test_records_are_sorted_by_time_and_ties_keep_their_order(encoder: Encoder) -> None:
    """A raw history may come in any order; the record of a tie stays behind what came first."""
    raw = [(str(at), (-at) % 3) for at in range(100)]
    records = encoder.records([{"item_id": item, "ts": ts} for item, ts in raw])
    expected = [item for item, _ in sorted(raw, key=lambda each: each[1])]
    assert records["item_id"].tolist() == [key(item) for item in expected]
    assert np.isnan(records["rating"]).all()
    assert (records["action"] == MISSING).all()


def test_only_the_most_recent_behaviours_are_encoded(encoder: Encoder) -> None:
    """A history longer than history_length loses its oldest behaviours."""
    items = ["i0", "i1", "i2", "i0", "i1", "i2"]
    records = encoder.records([{"item_id": item, "ts": at} for at, item in enumerate(items)])
    batch, _ = encoder.encode(Request(["i0"], records))
    last, _ = encoder.encode(Request(["i0"], records[-4:]))
    assert_same(batch, last)
    assert batch.stop.tolist() == [4]


def test_a_batch_has_the_times_of_its_behaviours(encoder: Encoder) -> None:
    """As they came, of all 64 bits, oldest first; only those of the most recent behaviours."""
    times = [2**63 - 1, -(2**63), 2**53 + 1, 5, 5]
    records = encoder.records([{"item_id": "i1", "ts": ts} for ts in times])
    batch, _ = encoder.encode(Request(["i0"], records))
    assert batch.ts.tolist() == [[5, 5, 2**53 + 1, 2**63 - 1]]
    assert batch.ts.dtype == np.int64
    assert batch.ts.flags.c_contiguous


def test_an_empty_history_and_no_candidates_are_a_batch(encoder: Encoder) -> None:
    """L = 0 and C = 0 keep every array's other sizes."""
    batch, known = encoder.encode(Request([], encoder.codec.empty()))
    assert batch.history.shape == (1, 0, 8)
    assert (batch.item.shape, batch.ad.shape, batch.context.shape) == ((0, 6), (0, 2), (0, 1))
    assert known.shape == (0,)
    assert not batch.user.any()


def test_an_unknown_item_keeps_what_its_id_gives(encoder: Encoder) -> None:
    """An item outside the catalogue is OOV, or its hash row, with all other fields missing."""
    batch, known = encoder.encode(Request(["new", "i0"], encoder.codec.empty()))
    assert known.tolist() == [False, True]
    assert batch.item[0].tolist() == [OOV, 0, 0, 0, 0, 0]
    schema = Schema.parse('name = "s"\n[[item]]\nname = "item_id"\nbuckets = 5\n')
    tables = {"item_id": table_of(schema.item[0], None)}
    hashed = Encoder(schema, tables, Catalogue.build([], np.zeros((0, 1), np.int64)))
    batch, known = hashed.encode(Request(["new"], hashed.codec.empty()))
    assert batch.item.tolist() == [[FIRST + key("new") % 5]]
    assert not known.any()


def test_given_item_fields_replace_the_catalogue_s(encoder: Encoder) -> None:
    """What a candidate brings wins, None says missing, and what it does not bring stays."""
    given_fields = [{"genre": ["Noir"], "price": -1}, {"genre": None}, {}]
    batch, _ = encoder.encode(Request(["i1"] * 3, encoder.codec.empty(), given=given_fields))
    plain, _ = encoder.encode(Request(["i1"], encoder.codec.empty()))
    columns = encoder.schema.columns("item")
    noir = encoder.column(field_of(encoder, "genre"), [["Noir"]])[0]
    assert np.array_equal(batch.item[0, columns["genre"]], noir)
    assert batch.item[0, columns["price"]] == [FIRST]
    assert batch.item[0, columns["brand"]] == plain.item[0, columns["brand"]]
    assert not batch.item[1, columns["genre"]].any()
    assert np.array_equal(batch.item[2], plain.item[0])
    assert (batch.item[:, 0] == plain.item[0, 0]).all()


def test_an_override_never_reaches_the_catalogue(encoder: Encoder) -> None:
    """What one request gives is forgotten by the next."""
    before = encoder.catalogue.rows.copy()
    encoder.encode(Request(["i1"], encoder.codec.empty(), given=[{"genre": ["Drama"]}]))
    assert np.array_equal(encoder.catalogue.rows, before)


def test_ad_fields_belong_to_their_candidate(encoder: Encoder) -> None:
    """Each candidate has its own ad fields; a candidate without any has them missing."""
    given_fields = [{"campaign": "c1", "bid": 2}, {}, {"campaign": None, "bid": 0.5}]
    batch, _ = encoder.encode(Request(["i0"] * 3, encoder.codec.empty(), given=given_fields))
    assert batch.ad.tolist() == [[FIRST + key("c1") % 7, 3], [0, 0], [0, 2]]


HISTORY = [{"item_id": "i0", "ts": 1}]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"user": {"gender": 1.5}}, "user.gender"),
        ({"user": {"likes": "Noir"}}, "user.likes"),
        ({"context": {"hour": ""}}, "context.hour"),
        ({"candidates": ["i0", ""]}, "candidates[1].item_id"),
        ({"candidates": ["i0", None]}, "candidates[1].item_id"),
        ({"candidates": ["i0", "\udfff"]}, "candidates[1].item_id"),
        ({"candidates": ["i0", "x" * 257]}, "candidates[1].item_id"),
        ({"given": [{}, {"genre": [1.0]}]}, "candidates[1].genre"),
        ({"given": [{}, {"price": math.nan}]}, "candidates[1].price"),
        ({"given": [{}, {"bid": True}]}, "candidates[1].bid"),
        ({"given": [{}]}, "given"),
        ({"given": [{}, {}, {}]}, "given"),
        ({"history": [*HISTORY, {"ts": 1}]}, "history[1].item_id"),
        ({"history": [*HISTORY, {"item_id": "", "ts": 1}]}, "history[1].item_id"),
        ({"history": [*HISTORY, {"item_id": "a"}]}, "history[1].ts"),
        ({"history": [*HISTORY, {"item_id": "a", "ts": 1.0}]}, "history[1].ts"),
        ({"history": [*HISTORY, {"item_id": "a", "ts": 1, "rating": "5"}]}, "history[1].rating"),
        ({"history": [*HISTORY, {"item_id": "a", "ts": 1, "action": 0.5}]}, "history[1].action"),
    ],
)
def test_a_bad_request_is_named_by_path(
    encoder: Encoder, request_: dict[str, Any], field: str
) -> None:
    """The error of a request says in which part, at which place and in which field it lies."""
    raw = {"candidates": ["i0", "i1"], **request_}
    with pytest.raises(FieldError) as caught:
        encoder.encode(Request(**{**raw, "history": encoder.records(raw.get("history", []))}))
    assert caught.value.field == field


def test_table_of_gives_each_kind_its_table() -> None:
    """A number is cut, buckets hash, everything else needs its vocabulary."""
    assert table_of(Field("a", "number", "a", boundaries=(1.0,)), None) == Cuts((1.0,))
    assert table_of(Field("a", "tags", "a", buckets=3, max_values=2), None) == Buckets(3)
    with pytest.raises(ValueError, match="table a has no vocabulary"):
        table_of(Field("a", "category", "a"), None)
