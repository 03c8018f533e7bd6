"""Small tables of a team's own as hypothesis draws them: every type, and much that is malformed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

SCHEMA = """name = "any"
history_length = 20
[[task]]
name = "click"
[[task]]
name = "buy"
[[item]]
name = "item_id"
[[item]]
name = "colours"
kind = "tags"
max_values = 3
[[ad]]
name = "price"
kind = "number"
boundaries = [1.0, 2.0]
[[context]]
name = "hour"
"""
TIME = datetime(1969, 12, 31, 23, 59, 59, 500_000)
NAN, INF = float("nan"), float("inf")
TEXTS = ["a", "b", "A", "\u00e9", "\U0001f600", " ", "a'b"]
NO_TEXTS = ["x" * 257, "", None]
NUMBERS = ["0", "1", "1.0", "1e0", "+1", "-0.5", ".5", "5."]
NO_NUMBERS = ["0x1", "1e999", "nan", "inf", "1_0", "1,5", " 1", "1 ", "1\n", "-", "", None]

# By column: the types it may have, each with sound values and with others.
Kinds = list[tuple[pa.DataType, list[Any], list[Any]]]
IDS: Kinds = [
    (pa.string(), TEXTS, NO_TEXTS),
    (pa.int64(), [2**53 + 1, -1, 0], [None]),
    (pa.uint64(), [2**64 - 1, 0], []),
    (pa.dictionary(pa.int32(), pa.string()), ["a", "b"], ["", None]),
]
COLUMNS: dict[str, Kinds] = {
    "user_id": IDS,
    "item_id": IDS,
    "ts": [
        (pa.int64(), [-(2**63), -1, 0, 1, 2, 3, 70_000, 2**63 - 1], [None]),
        (pa.uint64(), [0, 5, 6, 7], [2**63]),
        (
            pa.string(),
            ["0", "1", "+2", "-3", "007"],
            ["1.0", "1e1", str(2**63), "", None],
        ),
        (pa.float64(), [0.0, -0.0, 3.0, 7.0, -(2.0**63)], [2.5, NAN, INF, 1e300, 2.0**63]),
        (pa.timestamp("us"), [TIME, datetime(2024, 1, 1), datetime(9999, 1, 1)], [None]),
        (pa.timestamp("ms", "Europe/Paris"), [TIME.replace(tzinfo=UTC)], [None]),
        (pa.date32(), [date(1969, 12, 31), date(2024, 2, 29)], [None]),
    ],
    "click": [
        (pa.int8(), [0, 1], [2, None]),
        (pa.bool_(), [True, False], [None]),
        (pa.string(), ["0", "1", "1.0", "1e0"], ["2", *NO_NUMBERS]),
        (pa.float32(), [0.0, -0.0, 1.0], [0.5, NAN, None]),
    ],
    "price": [
        (pa.float64(), [1.5, -0.0, 1e300, None], [NAN, -INF]),
        (pa.float32(), [0.1, None], [INF]),
        (pa.uint64(), [2**64 - 1, None], []),
        (pa.decimal128(10, 2), [Decimal("1.25"), None], []),
        (pa.bool_(), [True, False, None], []),
        (pa.null(), [None], []),
        (pa.string(), NUMBERS, NO_NUMBERS),
    ],
    "hour": [
        (pa.int16(), [0, 23, None], []),
        (pa.string(), [*TEXTS, "", None], ["x" * 257]),
        (pa.null(), [None], []),
    ],
    "behaviour": [
        (pa.bool_(), [True, False], [None]),
        (pa.int32(), [0, 1], [2]),
        (pa.string(), ["true", "FALSE", "1", "0"], ["yes", "", None]),
    ],
    "split": [(pa.string(), ["train", "validation", "test"], ["dev", "", None])],
    "probability": [(pa.float64(), [0.0, 0.5, 1.0, None], [1.5, NAN])],
    "colours": [
        (pa.string(), ["a|b", "", "|a||", "\u00e9.*", None], ["x" * 257]),
        (pa.list_(pa.string()), [[], ["a", "", None], ["a|b"], None], [["x" * 257]]),
        (pa.large_list(pa.int32()), [[1, None, 2], [], None], []),
    ],
}
COLUMNS["buy"] = COLUMNS["click"]
EVENTS = ("user_id", "item_id", "ts", "click", "buy", "price", "hour")
OPTIONAL = ("behaviour", "split", "probability")


@dataclass(frozen=True)
class Tables:
    events: pa.Table
    items: pa.Table
    files: int

    def write(self, folder: Path, files: int) -> Path:
        """The tables, events in so many files, beside the schema, whose path is returned."""
        folder.mkdir()
        pq.write_table(self.items, folder / "items.parquet")
        if files == 1:
            pq.write_table(self.events, folder / "events.parquet")
        else:
            (folder / "events.parquet").mkdir()
            size = len(self.events) // files + 1
            for index in range(files):
                path = folder / "events.parquet" / f"part+{index} %20\u00e9.parquet"
                pq.write_table(self.events.slice(index * size, size), path)
        schema = folder / "schema.toml"
        schema.write_text(SCHEMA, encoding="utf-8")
        return schema


@st.composite
def tables(draw: st.DrawFn, least: int = 0, most: int = 30) -> Tables:
    names = [*EVENTS, *(name for name in OPTIONAL if draw(st.booleans()))]
    events = _table(draw, names, draw(st.integers(least, most)))
    items = _table(draw, ["item_id", "colours"], draw(st.integers(0, 5)))
    return Tables(events, items, draw(st.integers(1, 3)))


def _table(draw: st.DrawFn, names: list[str], rows: int) -> pa.Table:
    """Most columns have sound values only."""
    arrays = {}
    for name in names:
        kind, sound, odd = draw(st.sampled_from(COLUMNS[name]))
        some = [*sound, *odd] if draw(st.integers(0, 3)) == 0 else sound
        values = st.lists(st.sampled_from(some), min_size=rows, max_size=rows)
        arrays[name] = pa.array(draw(values), kind)
    return pa.table(arrays)


def every_kind() -> list[Tables]:
    """Each type of each column in some table, and each odd value of it in a row of its own."""
    names = [*EVENTS, *OPTIONAL]
    number = max(len(kinds) for kinds in COLUMNS.values())
    return [
        Tables(
            _every_value(names, index), _every_value(["item_id", "colours"], index), 1 + index % 2
        )
        for index in range(number)
    ]


def _every_value(names: list[str], index: int) -> pa.Table:
    """Sound values in turn, then for each odd value of a column a row that has it."""
    kinds = {name: COLUMNS[name][index % len(COLUMNS[name])] for name in names}
    odd = [(name, value) for name, (_, _, values) in kinds.items() for value in values]
    whole = max(len(sound) for _, sound, _ in kinds.values())
    arrays = {}
    for name, (kind, sound, _) in kinds.items():
        values = [sound[row % len(sound)] for row in range(whole + len(odd))]
        for row, (of, value) in enumerate(odd, start=whole):
            if of == name:
                values[row] = value
        arrays[name] = pa.array(values, kind)
    return pa.table(arrays)
