"""The schema: what it accepts, what it says when it does not, what its digests notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.schema import GROUPS, MAX_NAME, Schema, SchemaError

ITEM = '[[item]]\nname = "item_id"\n'
HEAD = f'name = "shop"\n{ITEM}'


def in_user(text: str) -> str:
    return f"{HEAD}[[user]]\n{text}"


def in_ad(text: str) -> str:
    return f"{HEAD}[[ad]]\n{text}"


def test_defaults_are_a_hundred_behaviours_and_one_task() -> None:
    """The smallest schema has an item id, 100 behaviours and the task ctr."""
    schema = Schema.parse(HEAD)
    assert (schema.history_length, schema.tasks) == (100, ("ctr",))
    assert Schema.parse(f'{HEAD}[[task]]\nname = "ctr"').tasks == ("ctr",)
    assert [field.name for field in schema.fields] == ["item_id"]
    assert [schema.width(group) for group in GROUPS] == [0, 1, 0, 0, 0]


def test_columns_lie_side_by_side_in_the_order_of_the_file() -> None:
    """A tags field takes max_values columns, every other field one."""
    schema = Schema.parse(
        f'{HEAD}[[item]]\nname = "genre"\nkind = "tags"\nmax_values = 3\n'
        '[[item]]\nname = "price"\nkind = "number"\nboundaries = [1]\n'
    )
    expected = {"item_id": slice(0, 1), "genre": slice(1, 4), "price": slice(4, 5)}
    assert schema.columns("item") == expected
    assert schema.width("item") == 5


def test_fields_that_share_a_table_have_one_entry() -> None:
    """A table belongs to the first field that uses it."""
    schema = Schema.parse(in_user('name = "last"\ntable = "item_id"\n'))
    assert list(schema.tables) == ["item_id"]


def test_boundaries_may_mix_integers_and_floats() -> None:
    """Boundaries become floats, so [1, 2.5] and [1.0, 2.5] are the same schema."""
    one, two = (
        Schema.parse(in_user(f'name = "age"\nkind = "number"\nboundaries = {cuts}'))
        for cuts in ("[1, 2.5]", "[1.0, 2.5]")
    )
    assert one.user[0].boundaries == (1.0, 2.5)
    assert one.fingerprint == two.fingerprint


NUMBER = 'name = "age"\nkind = "number"\n'
ERRORS = [
    # file
    ("name = ", "file", "valid TOML"),
    (f"name = {'1' * 5000}", "file", "valid TOML"),
    (f"name = {'[' * 20_000}", "file", "valid TOML"),
    # top level
    (f"colour = 1\n{HEAD}", "colour", "one of ad, behaviour, context"),
    (ITEM, "name", "a string of letters"),
    (f'name = "a b"\n{ITEM}', "name", "a string of letters"),
    (f'name = "é"\n{ITEM}', "name", "a string of letters"),
    (f'name = "../up"\n{ITEM}', "name", "a string of letters"),
    (f'name = "{"n" * (MAX_NAME + 1)}"\n{ITEM}', "name", "a string of letters"),
    (f"name = 7\n{ITEM}", "name", "a string of letters"),
    (f"history_length = 0\n{HEAD}", "history_length", "an integer from 1 to 10000"),
    (f"history_length = 10001\n{HEAD}", "history_length", "an integer from 1 to 10000"),
    (f"history_length = true\n{HEAD}", "history_length", "an integer from 1 to 10000"),
    (f"history_length = 1.0\n{HEAD}", "history_length", "an integer from 1 to 10000"),
    # tasks
    (f"task = []\n{HEAD}", "task", "one or more [[task]] tables"),
    (f"task = 1\n{HEAD}", "task", "one or more [[task]] tables"),
    (f'task = ["ctr"]\n{HEAD}', "task[0]", "a table with a name and maybe an action"),
    (
        f'{HEAD}[[task]]\nname = "ctr"\nweight = 1',
        "task[0]",
        "a table with a name and maybe an action",
    ),
    (f'{HEAD}[[task]]\nname = "a-b"', "task[0].name", "an identifier"),
    (f'{HEAD}[[task]]\nname = "ts"', "task[0].name", "a name other than ts (reserved)"),
    *(
        (
            f'{HEAD}[[task]]\nname = "a"\n[[task]]\nname = "{name}"',
            "task[1].name",
            f"a name other than {name} (a field of every score)",
        )
        for name in ("item_id", "status", "because", "ctr")
    ),
    (f'{HEAD}[[task]]\nname = "status"', "task[0].name", "a name other than status (a field of"),
    (f'{HEAD}[[task]]\nname = "a"\n[[task]]\nname = "a"', "task", "task names that differ"),
    *(
        (f'{HEAD}[[task]]\nname = "a"\naction = {action}', "task[0].action", "an identifier of at")
        for action in ("1", '"impression"', '"a b"', f'"{"x" * 33}"')
    ),
    # events
    (f'ts_unit = "us"\n{HEAD}', "ts_unit", '"s" or "ms"'),
    *(
        (f"history_actions = {actions}\n{HEAD}", "history_actions", "a list of actions")
        for actions in ("[]", "1", "[1]", '["a", "a"]', '["impression"]', '["a b"]')
    ),
    *(
        (f"session_gap = {gap}\n{HEAD}", "session_gap", "an integer from 0 to 1000000000000")
        for gap in ("-1", "1.5", '"30 min"', "true", "1000000000001")
    ),
    # groups
    ('name = "shop"', "item", "a first item field named item_id"),
    ('name = "shop"\n[[item]]\nname = "sku"', "item", "a first item field named item_id"),
    (
        'name = "shop"\n[[item]]\nname = "item_id"\nkind = "tags"\nmax_values = 2',
        "item_id.kind",
        "category",
    ),
    (f"user = 1\n{HEAD}", "user", "[[user]] tables"),
    (f"user = [1]\n{HEAD}", "user", "[[user]] tables"),
    (f'{HEAD}[user]\nname = "age"', "user", "[[user]] tables"),
    (
        f'{HEAD}[[behaviour]]\nname = "b"\nkind = "tags"\nmax_values = 2',
        "b.kind",
        "category or number",
    ),
    # fields
    (in_user('kind = "number"'), "user[0].name", "an identifier"),
    (in_user('name = "1st"'), "user[0].name", "an identifier"),
    (in_user('name = "né"'), "user[0].name", "an identifier"),
    (in_user(f'name = "{"n" * (MAX_NAME + 1)}"'), "user[0].name", "an identifier"),
    (in_user("name = 1"), "user[0].name", "an identifier"),
    (in_user('name = "user_id"'), "user[0].name", "a name other than user_id (reserved)"),
    (in_user('name = "item_id"'), "item_id", "a name that no other field or task has"),
    (in_user('name = "ctr"'), "ctr", "a name that no other field or task has"),
    (in_user('name = "a"\nkind = "real"'), "a.kind", "category, tags or number"),
    (in_user('name = "a"\nkind = []'), "a.kind", "category, tags or number"),
    (in_user('name = "a"\nkind = {}'), "a.kind", "category, tags or number"),
    (in_user('name = "a"\nsize = 1'), "a.size", "one of buckets, kind, min_count, name, table"),
    (in_user('name = "a"\nmax_values = 2'), "a.max_values", "one of buckets"),
    (in_user(f"{NUMBER}boundaries = [1]\nmin_count = 2"), "age.min_count", "one of boundaries"),
    (in_user('name = "a"\ntable = "a/b"'), "a.table", "a string of letters"),
    (in_user('name = "a"\ntable = ""'), "a.table", "a string of letters"),
    (in_user('name = "a"\ntable = 1'), "a.table", "a string of letters"),
    (in_user('name = "a"\nkind = "tags"'), "a.max_values", "an integer from 1 to 256"),
    (
        in_user('name = "a"\nkind = "tags"\nmax_values = 257'),
        "a.max_values",
        "an integer from 1 to 256",
    ),
    (in_user('name = "a"\nmin_count = 0'), "a.min_count", "an integer from 1 to 2147483648"),
    (in_user('name = "a"\nmin_count = "2"'), "a.min_count", "an integer from 1 to 2147483648"),
    (in_user('name = "a"\nbuckets = 0'), "a.buckets", "an integer from 1 to 2147483645"),
    (in_user('name = "a"\nbuckets = 2147483646'), "a.buckets", "an integer from 1 to 2147483645"),
    (in_user('name = "a"\nbuckets = 9\nmin_count = 2'), "a.min_count", "no min_count beside"),
    # boundaries
    *(
        (in_user(f"{NUMBER}boundaries = {cuts}"), "age.boundaries", "finite numbers, strictly")
        for cuts in (
            "[]",
            "1",
            '["1"]',
            "[true]",
            "[nan]",
            "[0, inf]",
            "[1, 1]",
            "[2, 1]",
            "[9007199254740992, 9007199254740993]",
            f"[1{'0' * 400}]",
        )
    ),
    (in_user(NUMBER), "age.boundaries", "finite numbers, strictly rising"),
    # shared tables
    (
        in_ad('name = "a"\ntable = "item_id"\nmin_count = 2'),
        "a.min_count",
        "the same min_count as item_id, which shares its table",
    ),
    (in_ad('name = "a"\ntable = "item_id"\nbuckets = 2'), "a.buckets", "the same buckets as"),
    (
        in_ad(f'{NUMBER}table = "item_id"\nboundaries = [1]'),
        "age.boundaries",
        "the same boundaries as item_id",
    ),
]


@pytest.mark.parametrize(("text", "field", "expected"), ERRORS)
def test_an_error_names_file_field_and_what_was_expected(
    text: str, field: str, expected: str
) -> None:
    """Every mistake in a schema is told with its place and what belongs there."""
    with pytest.raises(SchemaError) as caught:
        Schema.parse(text, "shop.toml")
    assert caught.value.file == "shop.toml"
    assert caught.value.field == field
    assert expected in caught.value.expected
    assert str(caught.value).startswith(f"shop.toml: {field}: expected ")


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "a readable file"), (b'name = "\xff"', "UTF-8 text")]
)
def test_a_file_that_cannot_be_read_is_a_schema_error(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    """A missing file and a file of another encoding are told like any other mistake."""
    path = tmp_path / "shop.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SchemaError) as caught:
        Schema.load(path)
    assert (caught.value.file, caught.value.field) == (str(path), "file")
    assert expected in caught.value.expected


def test_load_reads_what_parse_reads(tmp_path: Path) -> None:
    """A schema is the same from a file and from its text, whatever the line ends."""
    path = tmp_path / "shop.toml"
    path.write_bytes(HEAD.replace("\n", "\r\n").encode())
    assert Schema.load(path) == Schema.parse(HEAD)


FULL = """
name = "shop"
history_length = 50
[[task]]
name = "click"
[[user]]
name = "age"
kind = "number"
boundaries = [18, 30]
[[item]]
name = "item_id"
min_count = 2
[[item]]
name = "genre"
kind = "tags"
max_values = 3
[[behaviour]]
name = "action"
buckets = 5
[[ad]]
name = "campaign"
table = "campaigns"
[[context]]
name = "hour"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shop"', '"shop2"'),
        ("history_length = 50", "history_length = 51"),
        ('"click"', '"buy"'),
        ('name = "click"', 'name = "click"\n[[task]]\nname = "buy"'),
        ('"age"', '"years"'),
        ("[18, 30]", "[18, 30.5]"),
        ("[18, 30]", "[18, 30, 31]"),
        ("min_count = 2", "min_count = 3"),
        ("min_count = 2", "buckets = 2"),
        ("max_values = 3", "max_values = 4"),
        ("buckets = 5", "buckets = 6"),
        ('"campaigns"', '"adverts"'),
        ("[[context]]", "[[ad]]"),
        ('name = "hour"', 'name = "hour"\n[[context]]\nname = "day"'),
        ('[[context]]\nname = "hour"', ""),
    ],
)
def test_fingerprint_changes_with_any_option(old: str, new: str) -> None:
    """Two schemas whose arrays mean different things never share a fingerprint."""
    assert FULL.count(old) == 1
    assert Schema.parse(FULL).fingerprint != Schema.parse(FULL.replace(old, new)).fingerprint


def test_fingerprint_changes_with_the_order_of_fields() -> None:
    """The order of fields is the order of columns, so it counts."""
    fields = ['[[user]]\nname = "a"\n', '[[user]]\nname = "b"\n']
    one, two = (HEAD + "".join(order) for order in (fields, fields[::-1]))
    assert Schema.parse(one).fingerprint != Schema.parse(two).fingerprint


def test_fingerprint_ignores_comments_spaces_and_spelt_out_defaults() -> None:
    """What a reader of the file alone sees does not count."""
    restyled = "# a comment\n" + FULL.replace(" = ", "   =\t").replace("\n", "  # here\n\n")
    explicit = FULL.replace('name = "hour"', 'kind = "category"\nmin_count = 1\nname = "hour"')
    assert len({Schema.parse(text).fingerprint for text in (FULL, restyled, explicit)}) == 1


def test_what_events_mean_has_defaults_and_is_no_part_of_the_fingerprint() -> None:
    """Clicks and conversions enter histories, a click is ctr's label, times are in seconds, and
    there are no sessions."""
    plain = Schema.parse(HEAD + '[[task]]\nname = "ctr"\n[[task]]\nname = "sale"\n')
    assert (plain.ts_unit, plain.history_actions) == ("s", ("click", "conversion"))
    assert plain.session_gap is None
    assert plain.actions == ("click", "sale")
    text = 'ts_unit = "ms"\nsession_gap = 0\nhistory_actions = ["view"]\n' + HEAD
    text += '[[task]]\nname = "ctr"\naction = "view"\n[[task]]\nname = "sale"\n'
    other = Schema.parse(text)
    assert (other.ts_unit, other.session_gap, other.history_actions) == ("ms", 0, ("view",))
    assert other.actions == ("view", "sale")
    assert plain.fingerprint == other.fingerprint


def test_digests_stay_what_they_are() -> None:
    """Fingerprint and layout are stored in bundles and Redis keys, so they never drift."""
    schema = Schema.parse(FULL)
    assert (schema.fingerprint, schema.layout) == ("95fc94c22862456f", "f65e0fae")


def test_layout_follows_only_what_a_record_holds() -> None:
    """Histories outlive a change of buckets, not one of a behaviour's name or kind."""
    layout = Schema.parse(FULL).layout
    for old, new, same in [
        ("buckets = 5", "buckets = 6", True),
        ("history_length = 50", "history_length = 9", True),
        ('"hour"', '"day"', True),
        ('"action"', '"deed"', False),
        ("buckets = 5", 'kind = "number"\nboundaries = [1]', False),
    ]:
        assert (Schema.parse(FULL.replace(old, new)).layout == layout) is same


# A document of TOML values that often looks like a schema.
NAMES = st.sampled_from(["item_id", "age", "genre", "ctr", "ts", "", "a b", "é"])
SCALARS = st.one_of(
    NAMES,
    st.sampled_from(["category", "tags", "number"]),
    st.integers(-5, 5),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=5),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | VALUES,
        "kind": st.sampled_from(["category", "tags", "number"]) | VALUES,
        "table": NAMES | VALUES,
        "min_count": st.integers(1, 3) | VALUES,
        "buckets": st.integers(1, 9) | VALUES,
        "max_values": st.integers(1, 4) | VALUES,
        "boundaries": st.lists(st.floats(-9, 9), max_size=4).map(sorted) | VALUES,
        "other": VALUES,
    },
)
TABLES = st.lists(OPTIONS, max_size=3) | VALUES
ITEMS = st.lists(OPTIONS, max_size=2).map(lambda rest: [{"name": "item_id"}, *rest])
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("shop") | VALUES,
        "history_length": st.integers(1, 50) | VALUES,
        "item": ITEMS | TABLES,
        "task": st.just([{"name": "click"}]) | TABLES,
        **{group: TABLES for group in GROUPS if group != "item"},
        "other": VALUES,
    },
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {toml(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@settings(deadline=None, max_examples=400)
@given(DOCUMENTS)
def test_any_document_is_a_schema_or_a_schema_error(document: dict[str, Any]) -> None:
    """Whatever a file says, it is read or refused with `SchemaError`."""
    text = "\n".join(f"{key} = {toml(value)}" for key, value in document.items())
    try:
        schema = Schema.parse(text)
    except SchemaError:
        return
    assert schema.item[0].name == "item_id"
    names = [field.name for field in schema.fields]
    assert len(set(names)) == len(names)
    assert schema == Schema.parse(text)


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_any_text_is_a_schema_or_a_schema_error(text: str) -> None:
    """Text that is no TOML is refused with `SchemaError`."""
    with pytest.raises(SchemaError):
        Schema.parse(text)
