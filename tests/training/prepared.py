"""A team's own tables prepared as the command does it, and read back."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from training.engines import Engine, start
from training.logs import Logs
from training.tables import prepare


def read_tables(source: Path, schema: Path, engine: Engine | None = None, **options: Any) -> Logs:
    """The canonical form of tables, with what was malformed; DuckDB unless an engine is given."""
    begin = partial(start, "duckdb") if engine is None else lambda folder: nullcontext(engine)
    with tempfile.TemporaryDirectory() as folder:
        written = prepare(source, schema, folder, begin, **options)
        return replace(Logs.read(folder), malformed=written.malformed)
