"""What the job prints: tables of metrics, which rows were malformed, what a join left out, skew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from training.lacks import lacks
from training.logs import Logs, Malformed

if TYPE_CHECKING:  # they bring torch
    from training.join import Tally
    from training.replay import Skew


def metrics_table(console: Console, title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """One row per metric, one column per split: it fits a screen however many tasks there are."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = Table("metric", title=title, title_justify="left")
    for split in rows:
        table.add_column(split, justify="right")
    for name in names:
        form = ",.0f" if name.rpartition(".")[2] == "impressions" else ".4f"
        shown = [format(values[name], form) if name in values else "-" for values in rows.values()]
        table.add_row(name, *shown)
    console.print(table)


def malformed(console: Console, found: Malformed) -> None:
    """How many rows were dropped, and where the first of them are."""
    if not found.count:
        return
    console.print(f"{found.count:,} of {found.total_rows:,} rows were malformed and dropped:")
    for file, line, reason in found.bad:
        console.print(f"  {file}:{line}: {reason}", highlight=False)


def noted(console: Console, logs: Logs) -> None:
    """What the reader left out, and what the logs lack."""
    for why, count in logs.left_out.items():
        console.print(f"left out: {why}: {count:,}", soft_wrap=True)
    for line in lacks(logs):
        console.print(f"note: {line}", soft_wrap=True)


def unreadable(console: Console, groups: Mapping[str, int]) -> None:
    """Which row groups could not be read, and how many events they have."""
    if groups:
        console.print(
            f"left out: {sum(groups.values()):,} events in row groups that can't be read "
            f"({', '.join(groups)})",
            soft_wrap=True,
        )


def joined(console: Console, tally: Tally) -> None:
    """What became of the impressions and outcomes."""
    table = Table("impressions", "count", title="joined", title_justify="left")
    table.add_row("kept", f"{tally.kept:,}")
    for note, count in tally.notes.items():
        table.add_row(f"  {note}", f"{count:,}")
    for why, count in tally.left_out.items():
        table.add_row(f"left out: {why}", f"{count:,}")
    table.add_section()
    table.add_row("outcomes", f"{tally.outcomes:,}")
    for why, count in tally.vain.items():
        table.add_row(f"no label: {why}", f"{count:,}")
    console.print(table)


def skew(console: Console, found: Skew) -> None:
    """Which fields and scores differ between online and offline, and where first."""
    title = f"{found.requests:,} requests replayed"
    table = Table("field", "differs in", "share", title=title, title_justify="left")
    for name, count in found.fields.items():
        table.add_row(name, f"{count:,}", f"{count / max(found.requests, 1):.2%}")
    console.print(table)
    table = Table("score", "largest |dp|", "mean |dp|", "requests beyond the tolerance")
    for task, each in found.scores.items():
        table.add_row(task, f"{each.largest:.1e}", f"{each.mean:.1e}", f"{each.requests:,}")
    console.print(table)
    for why, count in found.skipped.items():
        console.print(f"not replayed: {count:,}, {why}")
    if found.first is None:
        console.print("no skew")
    else:
        console.print(
            "first: request {request_id}, version {version}: {differs}".format(**found.first),
            markup=False,
        )
