"""What runs the queries of data preparation: DuckDB in this process, or Spark on a cluster.

Ibis writes a query once (`training.tables`), and an engine runs it in its own SQL. Both read and
write Parquet only, work out of core, and number the rows of a file as its writer did.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import duckdb
    import ibis.expr.types as ir
    from pyspark.sql import SparkSession

NAME, ROW = "#name", "#row"
BATCH = 1 << 17
GLOB = "*?[]{}\\"
SPARK: dict[str, bool | float | int | str | None] = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": True,
    "spark.ui.showConsoleProgress": False,
}
# Spark gives the name as in a URL; its decoder takes a plus for a space.
SPARK_NAME = "url_decode(replace(_metadata.file_name, '+', '%2B'))"
MICROSECONDS = {"s": 1_000_000, "ms": 1000}


class EngineError(RuntimeError):
    """An engine that can't start, or a query that it could not run to its end."""


class Engine(Protocol):
    """Runs the queries that Ibis writes."""

    def scan(
        self,
        view: str,
        files: Sequence[Path],
        schema: ibis.Schema,
        times: Mapping[str, str] | None = None,
    ) -> ir.Table:
        """The columns of a schema out of Parquet files, and of each row its file's `NAME` without
        folders and its number in that file, `ROW`, from 0.

        ``times`` names columns that hold dates or times; they become int64, rounded down to the
        given unit ("s" or "ms") since 1970, UTC where the file names no zone.
        """
        ...

    def rows(self, table: ir.Table) -> list[tuple[Any, ...]]:
        """A small result. Raises `EngineError`, as `save` and `batches` do."""
        ...

    def save(self, table: ir.Table, folder: Path) -> list[Path]:
        """Write a result as Parquet files into a new folder, in no order. Returns the files."""
        ...

    def batches(self, table: ir.Table, folder: Path) -> Iterator[pa.RecordBatch]:
        """A result in its order, never whole in memory; ``folder`` is a new one, for this only."""
        ...


class DuckDB:
    """DuckDB in this process; what does not fit into its memory goes to files in its folder."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def scan(
        self,
        view: str,
        files: Sequence[Path],
        schema: ibis.Schema,
        times: Mapping[str, str] | None = None,
    ) -> ir.Table:
        listed = ", ".join(_text(str(path)) for path in _plain(files))
        columns = [_duckdb_column(name, (times or {}).get(name)) for name in schema.names]
        row = f'file_row_number AS "{ROW}"'
        # The min and max of a row group leave NaN out: by themselves they would settle rules.
        query = (
            f'SELECT {", ".join([*columns, row])}, parse_filename("{NAME}") AS "{NAME}" '
            f"FROM read_parquet([{listed}], file_row_number = true, filename = '{NAME}', "
            "hive_partitioning = false, can_have_nan = true)"
        )
        self._run(f"CREATE OR REPLACE VIEW {_quoted(view)} AS {query}")
        return _table(view, schema, times)

    def rows(self, table: ir.Table) -> list[tuple[Any, ...]]:
        with _failing("DuckDB"):
            return self._run(_sql(table, "duckdb")).fetchall()

    def save(self, table: ir.Table, folder: Path) -> list[Path]:
        folder.mkdir()
        path = folder / "part.parquet"
        query = _sql(table, "duckdb")
        self._run(f"COPY ({query}) TO {_text(str(path))} (FORMAT parquet, ROW_GROUP_SIZE {BATCH})")
        return [path]

    def batches(self, table: ir.Table, folder: Path) -> Iterator[pa.RecordBatch]:
        with _failing("DuckDB"):
            yield from self._connection.sql(_sql(table, "duckdb")).to_arrow_reader(BATCH)

    def _run(self, query: str) -> duckdb.DuckDBPyConnection:
        with _failing("DuckDB"):
            return self._connection.execute(query)


class Spark:
    """A Spark session; all its machines see the files at the same paths."""

    def __init__(self, session: SparkSession) -> None:
        self._session = session

    def scan(
        self,
        view: str,
        files: Sequence[Path],
        schema: ibis.Schema,
        times: Mapping[str, str] | None = None,
    ) -> ir.Table:
        paths = [f"file://{path}" for path in _plain(files)]
        columns = [_spark_column(name, (times or {}).get(name)) for name in schema.names]
        with _failing("Spark"):
            frame = self._session.read.parquet(*paths)
            frame = frame.selectExpr(
                *columns,
                f"_metadata.row_index AS `{ROW}`",
                f"{SPARK_NAME} AS `{NAME}`",
            )
            frame.createOrReplaceTempView(view)
        return _table(view, schema, times)

    def rows(self, table: ir.Table) -> list[tuple[Any, ...]]:
        with _failing("Spark"):
            found = self._session.sql(_sql(table, "pyspark")).collect()
            return [tuple(row) for row in found]

    def save(self, table: ir.Table, folder: Path) -> list[Path]:
        with _failing("Spark"):
            query = self._session.sql(_sql(table, "pyspark"))
            query.write.parquet(f"file://{folder.resolve()}")
        return sorted(folder.glob("part-*.parquet"))

    def batches(self, table: ir.Table, folder: Path) -> Iterator[pa.RecordBatch]:
        for path in self.save(table, folder):  # parts are numbered in the order of the result
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH)
        shutil.rmtree(folder)


def start(
    engine: str, folder: Path, master: str | None = None, memory: int | None = None
) -> AbstractContextManager[Engine]:
    """An engine, "duckdb" or "spark", until the block ends; ``memory`` in MiB.

    DuckDB puts what does not fit into ``folder``. Raises `EngineError`.
    """
    return _duckdb(folder, memory) if engine == "duckdb" else _spark(master, memory)


@contextmanager
def _duckdb(folder: Path, memory: int | None) -> Iterator[Engine]:
    import duckdb

    options: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
    }
    if memory:
        options["memory_limit"] = f"{memory}MiB"
    with duckdb.connect(":memory:", config=options) as connection:
        yield DuckDB(connection)


@contextmanager
def _spark(master: str | None, memory: int | None) -> Iterator[Engine]:
    try:
        from ibis import pyspark  # noqa: F401 # registers the options that its SQL depends on
        from pyspark.sql import SparkSession
    except ImportError:
        raise EngineError("Spark is not installed: the extra named spark brings it") from None
    builder = SparkSession.builder.appName("dinserve prepare").config(map=SPARK)
    if master:
        builder = builder.master(master)
    if memory:
        builder = builder.config("spark.driver.memory", f"{memory}m")
        builder = builder.config("spark.executor.memory", f"{memory}m")
    with _failing("Spark, which needs Java 17 or newer and a master that answers"):
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    try:
        yield Spark(session)
    finally:
        session.stop()


@contextmanager
def _failing(engine: str) -> Iterator[None]:
    """What the engine raises as `EngineError`, in its own words."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("_duckdb", "duckdb", "pyspark", "py4j")):
            raise
        raise EngineError(f"{engine}: {_first_lines(str(error))}") from None


def _first_lines(text: str, characters: int = 500) -> str:
    return text.partition("\n\tat ")[0][:characters]


def _plain(files: Iterable[Path]) -> list[Path]:
    """Absolute paths; both engines would take some characters of a path for patterns."""
    paths = [path.resolve() for path in files]
    for path in paths:
        if set(GLOB) & set(str(path)):
            raise EngineError(f"{path}: expected a path without any of {GLOB}")
    return paths


def _table(view: str, schema: ibis.Schema, times: Mapping[str, str] | None) -> ir.Table:
    columns = {**schema, **dict.fromkeys(times or {}, "int64"), ROW: "int64", NAME: "string"}
    return ibis.table(columns, name=view)


def _sql(table: ir.Table, dialect: str) -> str:
    return str(ibis.to_sql(table, dialect=dialect))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _duckdb_column(name: str, unit: str | None) -> str:
    column = _quoted(name)
    if unit is None:
        return column
    time, step = f"epoch_us({column})", MICROSECONDS[unit]
    return f"({time} - ({time} % {step} + {step}) % {step}) // {step} AS {column}"


def _spark_column(name: str, unit: str | None) -> str:
    column = "`" + name.replace("`", "``") + "`"
    if unit is None:
        return column
    function = {"s": "unix_seconds", "ms": "unix_millis"}[unit]
    return f"{function}(CAST({column} AS TIMESTAMP)) AS {column}"
