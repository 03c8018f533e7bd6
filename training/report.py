"""What the job shows: progress bars with rates and time left, and tables of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from training.logs import Malformed

Update = Callable[[str, int, int, Mapping[str, float]], None]


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


@contextmanager
def progress(console: Console) -> Iterator[Update]:
    """Bars by stage: call the given function with (stage, done, total, figures)."""
    bar = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )
    tasks: dict[str, TaskID] = {}

    def update(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if not tasks:
            bar.start()  # not before: an error that comes first is to be the only line
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total, figures="")
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if bar.tasks[tasks[stage]].finished and done < total:
            bar.reset(tasks[stage], total=total, figures=text)
        bar.update(tasks[stage], completed=done, figures=text)

    try:
        yield update
    finally:
        if tasks:
            bar.stop()


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
