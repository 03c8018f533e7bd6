"""A team's own tables of any size: what the engine makes of them, held against polars in memory."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import Phase, given, settings

from tests.training import in_memory
from tests.training.any_tables import Tables, tables
from tests.training.prepared import read_tables
from training.logs import Logs, LogsError


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
