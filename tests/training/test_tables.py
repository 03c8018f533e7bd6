"""A team's own tables of any size: what the engine makes of them, held against polars in memory."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings

from tests.training import in_memory
from tests.training.any_tables import Tables, tables
from tests.training.prepared import read_tables
from training.engines import start
from training.logs import Logs, LogsError
from training.tables import prepare


def outcome(read: Any, source: Path, schema: Path) -> Any:
    """The tables and the reasons, or what was wrong with the whole."""
    try:
        logs: Logs = read(source, schema, max_bad_share=1.0)
    except LogsError as error:
        return error.column, error.expected
    reasons = Counter(reason for _, _, reason in logs.malformed.bad)
    return logs.events.rows(), logs.items.rows(), logs.users.rows(), logs.malformed.count, reasons


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(tables())
def test_the_engine_makes_of_any_tables_what_polars_makes_of_them_in_memory(drawn: Tables) -> None:
    """Every row, their order and every reason are the same, whatever the types and the files."""
    with tempfile.TemporaryDirectory() as name:
        one, several = Path(name, "one"), Path(name, "several")
        expected = outcome(in_memory.read_tables, one, drawn.write(one, 1))
        found = outcome(read_tables, several, drawn.write(several, drawn.files))
        assert found == expected


def events() -> pl.DataFrame:
    """20 impressions of one user, half a second apart."""
    start = datetime(2024, 1, 1)
    return pl.DataFrame(
        {
            "user_id": ["u"] * 20,
            "item_id": [f"i{row}" for row in range(20)],
            "ts": [start + timedelta(milliseconds=500 * row) for row in range(20)],
            "click": [row % 2 for row in range(20)],
            "behaviour": [row % 3 == 0 for row in range(20)],
        }
    )


def in_files(folder: Path, *frames: pl.DataFrame, unit: str = "s") -> Path:
    (folder / "events.parquet").mkdir()
    for number, frame in enumerate(frames):
        frame.write_parquet(folder / "events.parquet" / f"{number}.parquet")
    (folder / "events.parquet" / "_SUCCESS").touch()
    schema = folder / "schema.toml"
    text = f'name = "x"\nhistory_length = 5\nts_unit = "{unit}"\n[[task]]\nname = "click"\n'
    schema.write_text(text + '[[item]]\nname = "item_id"\n', encoding="utf-8")
    return schema


@pytest.mark.parametrize(("unit", "step"), [("s", 1), ("ms", 1000)])
def test_times_become_whole_units_of_the_schema_and_equal_ones_keep_the_order_of_the_source(
    tmp_path: Path, unit: str, step: int
) -> None:
    """Files count by name; half seconds are equal in seconds and differ in milliseconds."""
    schema = in_files(tmp_path, events()[1::2], events()[::2], unit=unit)
    logs = read_tables(tmp_path, schema)
    pairs = [(row + 1, row) if unit == "s" else (row, row + 1) for row in range(0, 20, 2)]
    assert logs.events["item_id"].to_list() == [f"i{row}" for pair in pairs for row in pair]
    assert logs.events["ts"][0] == 1_704_067_200 * step
    assert logs.events["ts"][-1] == 1_704_067_209 * step + (500 if unit == "ms" else 0)


def test_times_before_and_after_1970_are_split_as_others(tmp_path: Path) -> None:
    """The last tenth of the impressions is test, the tenth before it validation."""
    schema = in_files(tmp_path, events().with_columns(ts=pl.int_range(-10, 10)))
    logs = read_tables(tmp_path, schema)
    assert logs.events["ts"].to_list() == list(range(-10, 10))
    assert logs.events["split"].to_list() == ["train"] * 16 + ["validation"] * 2 + ["test"] * 2


def test_truth_values_say_what_a_behaviour_is(tmp_path: Path) -> None:
    """A column of Booleans is read as it is."""
    logs = read_tables(tmp_path, in_files(tmp_path, events()))
    flags = dict(zip(logs.events["item_id"], logs.events["behaviour"], strict=True))
    assert flags == {f"i{row}": row % 3 == 0 for row in range(20)}


def test_what_is_said_of_the_result_is_what_is_in_it(tmp_path: Path) -> None:
    """Rows, impressions and ends of labels of each split, and users with one event only."""
    once = events()[:1].with_columns(user_id=pl.lit("once"))
    schema = in_files(tmp_path, events(), once)
    written = prepare(tmp_path, schema, tmp_path / "out", partial(start, "duckdb"))
    logs = replace(Logs.read(tmp_path / "out"), malformed=written.malformed)
    assert written == logs.written()
    assert written.alone == 1
    assert written.splits == {"train": 15, "validation": 2, "test": 4}
    assert written.labels["test"] == {"click": (0, 1)}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("ts", "ts is not an integer"),
        ("click", "click is not 0, 1 or null"),
        ("probability", "probability is not a finite number"),
    ],
)
def test_a_nan_is_malformed_though_the_least_and_greatest_of_its_file_leave_it_out(
    tmp_path: Path, column: str, reason: str
) -> None:
    """Parquet's statistics say nothing of NaN, so no rule may be taken for settled by them."""
    drawn = events().with_columns(
        ts=pl.Series(range(20), dtype=pl.Float64),
        click=pl.Series([0.0, 1.0] * 10),
        probability=pl.Series([0.0, 1.0] * 10),
    )
    last = pl.int_range(pl.len()) == 19
    spoilt = drawn.with_columns(pl.when(last).then(float("nan")).otherwise(column).alias(column))
    schema = in_files(tmp_path)
    pq.write_table(spoilt.to_arrow(), tmp_path / "events.parquet" / "0.parquet")
    logs = read_tables(tmp_path, schema, max_bad_share=0.05)
    assert [(line, why) for _, line, why in logs.malformed.bad] == [(20, reason)]
    assert logs.events.height == 19


def test_files_of_a_table_have_the_same_columns(tmp_path: Path) -> None:
    """The error names the file that differs and the column; other files are named too."""
    schema = in_files(tmp_path, events(), events().with_columns(pl.col("click").cast(pl.Int8)))
    with pytest.raises(LogsError, match=r"1\.parquet: click: expected type int64 as in 0\.parquet"):
        read_tables(tmp_path, schema)
    events().drop("click").write_parquet(tmp_path / "events.parquet" / "1.parquet")
    with pytest.raises(LogsError, match=r"1\.parquet: click: expected a column of this name"):
        read_tables(tmp_path, schema)
    (tmp_path / "events.parquet" / "day=1").mkdir()
    with pytest.raises(LogsError, match=r"day=1: expected only files that end in \.parquet"):
        read_tables(tmp_path, schema)


def test_a_file_that_is_no_parquet_file_stops_the_job_or_is_left_out(tmp_path: Path) -> None:
    """It is named, and the rest is read."""
    schema = in_files(tmp_path, events(), events())
    (tmp_path / "events.parquet" / "0.parquet").write_bytes(b"nothing")
    with pytest.raises(LogsError, match=r"0\.parquet: file: expected one that can be read"):
        read_tables(tmp_path, schema)
    assert read_tables(tmp_path, schema, skip_unreadable=True).events.height == 20
