"""What the job prints: tables of metrics, and which rows were malformed."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from training.logs import Malformed


def metrics_table(console: Console, title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """One row per split, one column per metric."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = Table("split", *names, title=title, title_justify="left")
    for split, values in rows.items():
        form = {n: ",.0f" if n == "impressions" else ".4f" for n in names}
        shown = [format(values[n], form[n]) if n in values else "-" for n in names]
        table.add_row(split, *shown)
    console.print(table)


def malformed(console: Console, found: Malformed) -> None:
    """How many rows were dropped, and where the first of them are."""
    if not found.count:
        return
    console.print(f"{found.count:,} of {found.total_rows:,} rows were malformed and dropped:")
    for file, line, reason in found.bad:
        console.print(f"  {file}:{line}: {reason}", highlight=False)
