"""What the job prints: tables of metrics, which rows were malformed, what a join left out, skew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from training.lacks import lacks
from training.logs import Written

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


def undefined(console: Console, rows: Mapping[str, Mapping[str, float]]) -> None:
    """What labels do not allow to be measured, by split and task."""
    for split, values in rows.items():
        if not values:
            line = f"{split}: no impressions: the last weights are kept, and nothing is calibrated"
            console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)
        for name in (name for name in values if name.rpartition(".")[2] == "log_loss"):
            task, dot, _ = name.rpartition(".")
            of = f"{split}, {task}" if task else split
            if f"{task}{dot}auc" not in values:
                also = ", and nothing is calibrated by it" if split == "validation" else ""
                line = f"{of}: all labels are alike: no AUC, GAUC or NE{also}"
            elif f"{task}{dot}gauc" not in values:
                line = f"{of}: no user has both labels: no GAUC"
            else:
                continue
            console.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)


def prepared(console: Console, out: Path, written: Written) -> None:
    """What was left out, where the first of it is, what the logs lack, and what was written."""
    for lost in written.lost:
        line = f"left out: {lost.file}: {lost.part} can't be read ({lost.error})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    bad = written.malformed
    if bad.count:
        console.print(f"{bad.count:,} of {bad.total_rows:,} rows were malformed and dropped:")
    for file, line_number, reason in bad.bad:
        console.print(f"  {file}:{line_number}: {reason}", highlight=False)
    for why, count in written.left_out.items():
        console.print(f"left out: {why}: {count:,}", soft_wrap=True)
    for line in lacks(written):
        console.print(f"note: {line}", soft_wrap=True)
    shown = sorted(((rows, split) for split, rows in written.splits.items()), reverse=True)
    splits = ", ".join(f"{rows:,} {split}" for rows, split in shown)
    console.print(
        f"{out}: {written.events:,} events of {written.users:,} users and "
        f"{written.items:,} items; impressions: {splits}",
        soft_wrap=True,
    )


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
    if not found.requests:
        console.print("nothing was replayed")
    elif found.first is None:
        console.print("no skew")
    else:
        console.print(
            "first: request {request_id}, version {version}: {differs}".format(**found.first),
            markup=False,
        )
