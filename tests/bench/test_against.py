"""Two checkouts side by side: both answer in all forms, and a row says how they compare."""

from __future__ import annotations

from bench import against, tables
from bench.graph import Exported
from bench.measure import shown
from bench.servers import Cores
from deploy.processes import ROOT


def test_a_checkout_is_held_against_itself(exported: Exported) -> None:
    """Every form is answered in full by both, and the ratios are of their CPU times."""
    said: list[str] = []
    rows = against.measure(exported, Cores.found(), ROOT, 1, 3, said.append)
    assert [row["form"] for row in rows] == said == list(against.FORMS)
    for row in rows:
        assert row["errors"] == 0
        other, this = (row["loop_us"][who]["median"] for who in (against.OTHER, against.THIS))
        assert row["loop_ratio"]["median"] == this / other
        assert 0 < other < 1e6
    table = tables.against(rows)
    assert table.row_count == len(rows)
    assert list(table.columns[5].cells) == [shown(row["loop_ratio"], ".2f") for row in rows]
