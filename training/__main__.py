"""The offline job's commands: prepare, fit, evaluate, export; join and replay of collected logs.

Each reads what the last one left.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.collected import Collected

# Threads that wait by spinning take the cores from those that work; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From raw logs to a published model: prepare, fit, evaluate, export.",
)
console = Console(stderr=True)


DAY = "%Y-%m-%d"
SKEWED = 12


class BaseImpressions(StrEnum):
    none = "none"
    window = "window"
    all = "all"


class Source(StrEnum):
    movielens_1m = "movielens-1m"
    amazon_csv = "amazon-csv"
    synthetic = "synthetic"
    parquet = "parquet"


@app.command()
def prepare(
    source: Annotated[Source, typer.Option(help="What the raw logs are.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared logs.")],
    path: Annotated[
        Path | None,
        typer.Option(
            help="movielens-1m: the official zip; amazon-csv: the common prefix of the three "
            "files; parquet: the folder of your events, items and users tables (Parquet or CSV)."
        ),
    ] = None,
    test_users: Annotated[
        Path | None, typer.Option(help="movielens-1m: file of test users, one id a line.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="parquet: the TOML file that says what the fields are.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="parquet: canonical=yours, for each column of yours with another name."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="synthetic: number of users.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of drawn negatives and synthetic worlds.")] = 0,
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when more rows than this are malformed.")
    ] = 0.001,
) -> None:
    """Read raw logs into the canonical form: events, items and users as Parquet, and the schema."""
    from terminal.progress import progress
    from training import readers, report, tables, world

    with progress(console) as update:
        if source is Source.synthetic:
            logs = world.World(users=users, seed=seed).logs(update=update)
        elif path is None:
            raise typer.BadParameter(f"--path is needed for {source}")
        elif source is Source.movielens_1m:
            logs = readers.read_movielens(
                path, test_users, seed=seed, max_bad_share=max_bad_share, update=update
            )
        elif source is Source.amazon_csv:
            logs = readers.read_amazon(path, seed=seed, max_bad_share=max_bad_share, update=update)
        else:
            if schema is None:
                raise typer.BadParameter("--schema is needed for parquet")
            if any("=" not in each for each in column or []):
                raise typer.BadParameter("--column: expected canonical=yours")
            pairs = dict(each.split("=", 1) for each in column or [])
            logs = tables.read_tables(
                path, schema, columns=pairs, max_bad_share=max_bad_share, update=update
            )
        logs.write(out, update)
    report.malformed(console, logs.malformed)
    shown = logs.events["split"].drop_nulls().value_counts().rows()
    splits = ", ".join(f"{count:,} {name}" for name, count in sorted(shown, reverse=True))
    console.print(
        f"{out}: {len(logs.events):,} events of {len(logs.users):,} users and "
        f"{len(logs.items):,} items; impressions: {splits}",
        soft_wrap=True,
    )


@app.command()
def fit(
    data: Annotated[Path, typer.Option(help="Folder that prepare wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that was killed goes on.")],
    model: Annotated[str, typer.Option(help="din or base.")] = "din",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same weights, bit for bit.")] = 0,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, over the data set's recipe.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads (results depend on it).")] = 2,
) -> None:
    """Train a model, stop early by validation GAUC, calibrate it, measure it on the test set."""
    from terminal.progress import progress
    from training import report
    from training.fit import fit as run_fit

    with progress(console) as update:
        figures, trained = run_fit(data, out, model, seed, setting or [], threads, update)
    if not trained:
        console.print(f"{out}: this run is finished; nothing was trained", soft_wrap=True)
    report.metrics_table(console, f"{model}, seed {seed}: {out}", figures["metrics"])
    stopped = figures["progress"]
    console.print(
        f"best at step {stopped['best_step']:,} of {stopped['step']:,}; "
        f"{figures['samples_per_s']:,.0f} samples/s"
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Parquet file to write: user, item, label, probability.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared logs; default: the run's.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Another run on the same logs: RelaImpr over its metrics.")
    ] = None,
) -> None:
    """Measure a run on the test impressions of its logs; one row per impression if asked."""
    from terminal.progress import progress
    from training import metrics, report
    from training.fit import baseline as baseline_metrics
    from training.fit import evaluate as run_evaluate

    base = baseline_metrics(baseline, run, data) if baseline is not None else None
    with progress(console) as update:
        measured, frame = run_evaluate(run, data, update)
    if predictions is not None:
        frame.write_parquet(predictions)
    report.metrics_table(console, str(run), {"test": measured})
    if base is not None:
        improved = metrics.improvement(measured, base).items()
        shown = ", ".join(f"{name} {value:+.2%}" for name, value in improved)
        console.print(f"RelaImpr over {baseline}: {shown}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    repository: Annotated[Path, typer.Option(help="Model repository; made when not there.")],
) -> None:
    """Export a run to ONNX, hold it against PyTorch, and publish it as the next version."""
    from terminal.progress import progress
    from training.publish import publish
    from training.run import Run

    with progress(console) as update:
        found, version, worst = publish(Run(run), repository, update)
    console.print(
        f"published {found.folder / str(version)}; "
        f"largest |dlogit| between PyTorch and ONNX {worst:.1e}",
        soft_wrap=True,
    )


@app.command()
def join(
    logs: Annotated[Path, typer.Option(help="Folder of collected logs.")],
    first: Annotated[datetime, typer.Option(formats=[DAY], help="First day (UTC).")],
    last: Annotated[datetime, typer.Option(formats=[DAY], help="Last day, included.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared logs.")],
    schema: Annotated[
        Path | None, typer.Option(help="TOML file; default: that of the logs' base.")
    ] = None,
    window_seconds: Annotated[
        int, typer.Option(min=1, help="An outcome counts within this time.")
    ] = 86_400,
    settle_seconds: Annotated[
        int, typer.Option(min=0, help="Impressions of the logs' last seconds are left out.")
    ] = 600,
    validation: Annotated[float, typer.Option(min=0, max=0.5, help="Share of impressions.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=0.5, help="Share of the newest.")] = 0.1,
    base: Annotated[
        BaseImpressions, typer.Option(help="Impressions of the base to use too: of these days, ...")
    ] = BaseImpressions.window,
) -> None:
    """Label the collected impressions of some days, and write them in the canonical form."""
    from terminal.progress import progress
    from training import report
    from training.join import Rules
    from training.join import join as run_join

    rules = Rules(window_seconds, settle_seconds, validation, test, base.value)
    with progress(console) as update:
        update("join", 0, 0, {})
        found = run_join(Collected(logs), first.date(), last.date(), rules, schema)
        found.logs.write(out, update)
    report.joined(console, found.tally)


@app.command()
def replay(
    logs: Annotated[Path, typer.Option(help="Folder of collected logs.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")],
    name: Annotated[str | None, typer.Option(help="Default: the model published last.")] = None,
    day: Annotated[
        datetime | None, typer.Option(formats=[DAY], help="Scores of this day (UTC) only.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the newest.")] = None,
    sample: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests, by their id.")
    ] = 1.0,
    tolerance: Annotated[float, typer.Option(min=0, help="Of a probability.")] = 1e-4,
    as_json: Annotated[bool, typer.Option("--json", help="One line on stdout.")] = False,
) -> None:
    """Score logged requests again and show online/offline skew; exit code 12 when there is any."""
    from model.contract.repository import Repository
    from terminal.progress import progress
    from training import report
    from training.replay import replay as run_replay

    with progress(console) as update:
        found = run_replay(
            Collected(logs),
            Repository.find(repository, name),
            day=None if day is None else day.date(),
            limit=limit,
            sample=sample,
            tolerance=tolerance,
            update=update,
        )
    if as_json:
        print(json.dumps({**asdict(found), "skew": found.first is not None}))
    else:
        report.skew(console, found)
    if found.first is not None:
        raise typer.Exit(SKEWED)


def main() -> None:
    """Run a command; what can go wrong is one line on stderr and exit code 1."""
    try:
        app()
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        line = " ".join(str(error).split())
        console.print(f"error: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


def _expected() -> tuple[type[Exception], ...]:
    """What a command may raise; imported only when needed, since half of it brings torch."""
    from model.contract.bundle import BundleError
    from model.contract.encode import FieldError
    from model.contract.repository import RepositoryError
    from model.contract.schema import SchemaError
    from training.export import ParityError
    from training.logs import LogsError
    from training.recipe import SettingError
    from training.run import RunError
    from training.trainer import TrainingError

    return (
        BundleError,
        FieldError,
        LogsError,
        OSError,
        ParityError,
        RepositoryError,
        RunError,
        SchemaError,
        SettingError,
        TrainingError,
    )


if __name__ == "__main__":
    main()
