"""The yardsticks' command: ours against REF, in one process, on one core."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench import graph, training
from bench.measure import machine, pin, shown
from model.layers import Activation

HEADLINE = (100, 500)
SHAPES = [(t, n) for t in (10, 50, 100, 500) for n in (50, 200, 500, 2000)]

UNITS: tuple[Activation, ...] = ("sigmoid", "dice")


class What(StrEnum):
    graph = "graph"
    training = "training"
    all = "all"


console = Console(width=120 if not Console().is_terminal else None)


def bench(
    what: Annotated[What, typer.Argument(help="Which yardstick.")] = What.all,
    quick: Annotated[bool, typer.Option(help="The figures that matter, in 2 minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("bench/out"),
) -> None:
    """Measure ours against the frozen naive reference (see bench/README.md)."""
    pin()
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    console.print(
        "{cpu}, {cores} cores, {sets}; one core's sgemm peak {peak} GFLOP/s; load {busy}".format(
            cpu=about["machine"]["cpu"],  # type: ignore[index]
            cores=about["machine"]["cores"],  # type: ignore[index]
            sets=" ".join(about["machine"]["instruction_sets"]),  # type: ignore[index]
            peak=about["machine"]["sgemm_gflops"],  # type: ignore[index]
            busy=about["machine"]["busy"],  # type: ignore[index]
        ),
        highlight=False,
    )
    if what in (What.graph, What.all):
        _write(out, "graph", {**about, "rows": _graph(quick, about["machine"])})
    if what in (What.training, What.all):
        _write(out, "training", {**about, "rows": _training(quick)})


def _graph(quick: bool, about: Any) -> list[dict[str, Any]]:
    shapes = [HEADLINE] if quick else SHAPES
    rows = []
    for unit in UNITS:
        with console.status(f"exporting the {unit} unit twice"):
            encoder = graph.encoder(longest=max(t for t, _ in shapes))
            pair = graph.exported(encoder, graph.network(encoder, unit))
        with console.status("running"):
            peak = about["sgemm_gflops"] * 1e9
            found = graph.measure(pair, shapes, 9, peak)
        rows += [{"unit": unit, **row} for row in found]
    table = _table("Scoring graph, D=64, attention 80-40: ms per call, median (quartiles)")
    for name in ("unit", "T", "N", "REF", "ours", "times faster", "of sgemm peak", "largest |d|"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for row in rows:
        table.add_row(
            row["unit"],
            str(row["T"]),
            str(row["N"]),
            shown(row["reference_ms"]),
            shown(row["ours_ms"]),
            shown(row["ratio"], ".2f"),
            f"{row['share_of_peak']:.0%}",
            f"{row['difference']:.0e}" + ("" if row["same"] else " DIFFERS"),
        )
    console.print(table)
    return rows


def _training(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for name, read in training.sources(users=200 if quick else 2000).items():
        with console.status(f"reading and training on {name}"):
            sets = training.prepare(read())
            row = training.measure(sets, 5 if quick else 15, 0.5 if quick else 1.0)
        rows.append({"data": name, **row})
    table = _table("Training, DIN with the data set's recipe: samples/s, median (quartiles)")
    for column in ("data", "longest history", "mean", "REF", "ours", "times faster"):
        table.add_column(column, justify="left" if column == "data" else "right")
    for row in rows:
        table.add_row(
            row["data"],
            str(row["longest"]),
            f"{row['mean_length']:.1f}",
            shown(row["reference_per_s"], ",.0f"),
            shown(row["ours_per_s"], ",.0f"),
            shown(row["ratio"], ".1f"),
        )
    console.print(table)
    return rows


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")


def _write(out: Path, name: str, found: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(bench)
