"""The command: ``python -m training compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training.option import OptionError, Threads

console = Console(stderr=True)


def add_to(app: typer.Typer) -> None:
    """Make it the application's command too."""
    app.command(context_settings={"allow_extra_args": True})(compare)


def compare(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder that prepare wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the runs and reports; a killed comparison goes on.")
    ] = Path("var/compare"),
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="[LABEL=]MODEL[:KEY=VALUE,...], once for each, or MODEL,MODEL,...; default: every "
            "model by the data set's recipe."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each model, seeds 0, 1, ...")] = 5,
    baseline: Annotated[
        str | None,
        typer.Option(help="Label that the others are compared with; default: base, or the first."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, over the recipes of all models."),
    ] = None,
    threads: Threads = 2,
) -> None:
    """Train models on one split, several seeds each, and write one report: HTML and JSON."""
    from terminal.progress import progress
    from training.loading import loading

    with progress(console) as update, loading(update):
        from training.comparison import entrants, job
        from training.comparison.order import Order

    if context.args:
        raise OptionError(f"--models: {context.args[0]} follows nothing; {entrants.SEVERAL}")
    lineup = entrants.enter(data, models or [], baseline, setting or [])

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with progress(console) as update:
        found = job.compare(Order(data, out, lineup, seeds, threads), update, tell)
    console.print(_summary(found))
    for note in found["notes"]:
        tell(note)
    tell(f"{out / job.HTML}, {out / job.JSON}")


def _summary(found: dict[str, Any]) -> Table:
    """Means over seeds, and their standard deviation."""
    names = {"gauc": "GAUC", "auc": "AUC", "rela_impr.auc": "RelaImpr", "log_loss": "log loss"}
    table = Table(
        "model",
        title=f"test, {found['seeds']} seed{'s' * (found['seeds'] > 1)}",
        title_justify="left",
    )
    for name in (*names.values(), "ECE"):
        table.add_column(name, justify="right")
    for label, model in found["models"].items():
        cells = []
        for name in (*names, "ece"):
            value = model["metrics"].get(name)
            form = "+.2%" if name == "rela_impr.auc" else ".4f"
            shown = "-" if value is None else format(value["mean"], form)
            if value is not None and value["sd"] is not None:
                shown += f"\n\u00b1 {format(value['sd'], form.removeprefix('+'))}"
            cells.append(shown)
        table.add_row(label, *cells)
    return table
