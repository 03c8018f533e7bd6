"""Logs that are prepared on disk, as the command does it, and read back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from training import chunks
from training.engines import Engine, start
from training.logs import Logs
from training.scratch import scratch
from training.tables import prepare


def read_tables(source: Path, schema: Path, engine: Engine | None = None, **options: Any) -> Logs:
    """The canonical form of tables, with what was malformed; DuckDB unless an engine is given."""
    begin = partial(start, "duckdb") if engine is None else lambda folder: nullcontext(engine)
    with tempfile.TemporaryDirectory() as folder:
        written = prepare(source, schema, folder, begin, **options)
        return replace(Logs.read(folder), malformed=written.malformed)


def read_chunks(read: Callable[..., Iterator[Logs]], path: Path, **options: Any) -> Logs:
    """The canonical form of a source that is read in chunks, with what was left out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with scratch(out) as work:
            written = chunks.write(out, read(path, work, **options))
        logs = Logs.read(out)
        return replace(logs, malformed=written.malformed, left_out=written.left_out)
