"""The engines of data preparation: the same files out of DuckDB and Spark."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.training.any_tables import Tables, every_kind, tables
from training.engines import Engine, EngineError, start
from training.logs import TABLES, LogsError, Written
from training.tables import prepare

# Its sockets are closed when they are collected, not when the session stops.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
# What compiles the longest pays where a query runs for long, and here none does.
CONF = (
    "--conf spark.sql.shuffle.partitions=2 --conf spark.ui.enabled=false "
    '--driver-java-options "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" pyspark-shell'
)


@pytest.fixture(scope="module")
def spark() -> Iterator[Engine]:
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    if shutil.which("java") is None:
        pytest.skip("no java, which Spark needs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", CONF)
        with start("spark", Path(), "local[2]") as engine:
            yield engine


def files(engine: Engine | None, source: Path, out: Path) -> tuple[Written, list[bytes]] | str:
    """What is written, to the byte, or what is wrong with the tables."""
    begin = partial(start, "duckdb") if engine is None else lambda folder: nullcontext(engine)
    try:
        written = prepare(source, source / "schema.toml", out, begin, max_bad_share=1.0)
    except LogsError as error:
        return str(error)
    return written, [(out / table).read_bytes() for table in TABLES]


@settings(
    max_examples=2,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tables(least=30, most=60))
def test_spark_writes_what_duckdb_writes_to_the_byte(spark: Engine, drawn: Tables) -> None:
    """All tables, the counts and the listed rows, whatever the types and the number of files."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "source")
        drawn.write(source, drawn.files)
        expected = files(None, source, Path(name, "duckdb"))
        assert files(spark, source, Path(name, "spark")) == expected


@pytest.mark.parametrize("each", every_kind())
def test_spark_finds_in_every_type_of_column_what_duckdb_finds(
    tmp_path: Path, spark: Engine, each: Tables
) -> None:
    """Whatever is odd in a row, it is so for both, for the same reason."""
    each.write(tmp_path / "source", each.files)
    expected = files(None, tmp_path / "source", tmp_path / "duckdb")
    assert files(spark, tmp_path / "source", tmp_path / "spark") == expected
    assert not isinstance(expected, str)
    assert expected[0].malformed.bad


def spoilt(folder: Path) -> Path:
    """Events in two files, the second of which has 4 row groups, one of them broken."""
    (folder / "events.parquet").mkdir(parents=True)
    rows = 400
    events = pa.table(
        {
            "user_id": [f"u{row % 7}" for row in range(rows)],
            "item_id": [f"i{row % 50}" for row in range(rows)],
            "ts": [row // 3 for row in range(rows)],
            "click": [row % 2 if row < 399 else 2 for row in range(rows)],
        }
    )
    pq.write_table(events, folder / "events.parquet" / "a.parquet")
    path = folder / "events.parquet" / "b.parquet"
    pq.write_table(events, path, row_group_size=100, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(path).row_group(2).column(1)
    data = bytearray(path.read_bytes())
    begin = column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    (folder / "schema.toml").write_text(
        'name = "x"\nhistory_length = 5\n[[task]]\nname = "click"\n[[item]]\nname = "item_id"\n',
        encoding="utf-8",
    )
    return folder


@pytest.mark.parametrize("name", ["duckdb", "spark"])
def test_a_row_group_that_cannot_be_read_stops_the_job_or_is_left_out(
    tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    """It is named; without it the other rows are there, and lines are those of the file."""
    source = spoilt(tmp_path / "source")
    engine = request.getfixturevalue("spark") if name == "spark" else None
    begin = partial(start, "duckdb") if engine is None else lambda folder: nullcontext(engine)
    out, schema = tmp_path / "out", source / "schema.toml"
    with pytest.raises(LogsError, match=r"b\.parquet: row group 2: expected one that can be read"):
        prepare(source, schema, out, begin)
    assert not out.exists()
    written = prepare(source, schema, out, begin, skip_unreadable=True, max_bad_share=0.01)
    lost = [(Path(lost.file).name, lost.part) for lost in written.lost]
    assert lost == [("b.parquet", "row group 2")]
    bad = [(Path(file).name, line) for file, line, _ in written.malformed.bad]
    assert bad == [("a.parquet", 400), ("b.parquet", 400)]
    assert written.events == len(pq.read_table(out / "events.parquet")) == 698


def test_an_engine_says_what_it_could_not_do(tmp_path: Path) -> None:
    """In its own words; and a path that it would take for a pattern is refused."""
    with start("duckdb", tmp_path) as engine:
        import ibis

        with pytest.raises(EngineError, match="no_such_table"):
            engine.rows(ibis.table({"a": "int64"}, name="no_such_table"))
        with pytest.raises(EngineError, match="without any of"):
            engine.scan("x", [tmp_path / "a*.parquet"], ibis.schema({"a": "int64"}))
