"""The offline job's commands: prepare, fit, evaluate, export; collect, join and replay of the logs.

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
        BaseImpressions, typer.Option(help="Impressions of the prepared logs that are used too.")
    ] = BaseImpressions.window,
) -> None:
    """Label the collected impressions of some days, and write them in the canonical form."""
    from terminal.progress import progress
    from training import report
    from training.join import Rules
    from training.join import join as run_join

    if last < first:
        raise typer.BadParameter("--last: expected a day from --first on")
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


@app.command()
def collect(
    logs: Annotated[Path, typer.Option(help="Folder of the collected logs; made when not there.")],
    redis_url: Annotated[
        str, typer.Option(envvar="DINSERVE_REDIS_URL", help="Where the service logs.")
    ] = "redis://127.0.0.1:6379/0",
    key_prefix: Annotated[
        str, typer.Option(envvar="DINSERVE_KEY_PREFIX", help="As of the service.")
    ] = "din",
    once: Annotated[bool, typer.Option("--once", help="Write what is there now, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between files.")] = 30.0,
    rows: Annotated[int, typer.Option(min=1, help="Write sooner with so many entries.")] = 10_000,
    consumer: Annotated[
        str | None, typer.Option(help="Name in the consumer group; default: HOST-PID.")
    ] = None,
    claim_after: Annotated[
        float, typer.Option(min=0, help="Take over what another has held for so many seconds.")
    ] = 60.0,
    metrics_port: Annotated[int | None, typer.Option(min=0, help="Prometheus metrics.")] = None,
    metrics_host: Annotated[str, typer.Option(help="Where they are told.")] = "127.0.0.1",
    metrics_file: Annotated[
        Path | None, typer.Option(help="The same as a textfile, written after each turn.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository, whose canary is to be guarded.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Model, where there are several.")] = None,
    window: Annotated[float, typer.Option(min=1, help="Live quality: of so many seconds,")] = 3600,
    label_delay: Annotated[
        float, typer.Option(min=0, help="up to so many seconds ago: what a click may take.")
    ] = 300,
    canary_low: Annotated[float, typer.Option(help="Predicted/observed of a canary: least,")] = 0.8,
    canary_high: Annotated[float, typer.Option(help="and most.")] = 1.25,
    canary_impressions: Annotated[
        int, typer.Option(min=1, help="It is judged on no fewer impressions,")
    ] = 1000,
    canary_clicks: Annotated[float, typer.Option(min=1, help="nor expected clicks.")] = 30,
) -> None:
    """Drain the service's log from Redis into date-partitioned Parquet, each entry once; measure
    live quality, and take a canary out of traffic that is plainly off."""
    import signal
    import threading

    from model.contract.repository import Repository
    from training.collect import Judged, Shown, Source
    from training.collect import collect as run_collect
    from training.drain import Pace
    from training.guard import Band
    from training.quality import Span

    if not 0 < canary_low < canary_high:
        raise typer.BadParameter("--canary-low: expected 0 < low < high")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    source = Source(redis_url, key_prefix, *([consumer] if consumer else []))
    run_collect(
        source,
        logs,
        pace=Pace(rows, every, claim_after),
        once=once,
        stop=stop,
        shown=Shown(metrics_host, metrics_port, metrics_file),
        judged=Judged(
            Span(window, label_delay),
            Band(canary_low, canary_high, canary_impressions, canary_clicks),
            None if repository is None else Repository.find(repository, name),
        ),
    )


@app.command()
def retrain(
    repository: Annotated[Path, typer.Option(help="Model repository; made when not there.")],
    logs: Annotated[
        Path | None, typer.Option(help="Folder of collected logs: what collect wrote.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="In place of --logs, prepared logs: what prepare wrote.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="With --logs: a new schema; default: that of LOGS/base.")
    ] = None,
    label_seconds: Annotated[
        int, typer.Option(min=1, help="With --logs: an outcome counts so long after an impression.")
    ] = 86_400,
    settle_seconds: Annotated[
        int, typer.Option(min=0, help="With --logs: the last impressions, too young, are left out.")
    ] = 600,
    name: Annotated[
        str | None, typer.Option(help="The model's name, to be sure that the logs are of it.")
    ] = None,
    first: Annotated[
        datetime | None,
        typer.Option("--from", formats=[DAY], help="First day of the window (UTC)."),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option("--to", formats=[DAY], help="Last day; default: the newest that is over."),
    ] = None,
    window_days: Annotated[int, typer.Option(min=1, help="Days of the window.")] = 7,
    skip: Annotated[
        list[datetime] | None,
        typer.Option(formats=[DAY], help="A day whose impressions are left out, as poisoned ones."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="din or base; default: as the current version.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, over the current version's settings."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="key=value, over the gate's rules (docs/loop.md).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same weights, bit for bit.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads (results depend on it).")] = 2,
    cold: Annotated[bool, typer.Option("--cold", help="Start from nothing.")] = False,
    forget_days: Annotated[
        int, typer.Option(min=1, help="Ids not seen for more days than this lose their row.")
    ] = 60,
    canary: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Publish as a canary with this share of the traffic."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="All but publishing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Though it was done before.")] = False,
    metrics_file: Annotated[
        Path | None, typer.Option(help="Write the job's metrics for Prometheus's textfile reader.")
    ] = None,
    push_gateway: Annotated[
        str | None, typer.Option(help="Push the job's metrics to this URL.")
    ] = None,
) -> None:
    """Train on the newest logs, and publish if the gate lets it.

    The last line on stdout is one JSON object. Exit codes: 0 published, 10 refused by the gate,
    11 nothing new, 12 another retraining is at work, else a failure.
    """
    from dataclasses import replace

    from model.contract.schema import Schema
    from terminal.progress import progress
    from training.announce import Announcement, stopped_by_signal
    from training.gate import rules
    from training.join import Rules as Joining
    from training.lease import LeaseError
    from training.retrain import Order
    from training.retrain import retrain as run_retrain
    from training.source import Loop, Prepared

    source: Loop | Prepared
    if (logs is None) == (data is None):
        raise typer.BadParameter("one of --logs and --data is needed")
    if logs is not None:
        joining = Joining(window_seconds=label_seconds, settle_seconds=settle_seconds)
        source = Loop(logs, joining, schema)
    elif data is not None:
        source = Prepared(data)
    told = Announcement(name or "", print, _complain, metrics_file, push_gateway)
    try:
        told = replace(told, model=Schema.load(source.schema).name)
        order = Order(
            repository=repository,
            source=source,
            name=name,
            first=first.date() if first else None,
            last=last.date() if last else None,
            days=window_days,
            skipped=tuple(sorted(day.date() for day in skip or [])),
            model=model,
            given=tuple(setting or []),
            seed=seed,
            threads=threads,
            cold=cold,
            forget_days=forget_days,
            rules=rules(rule or []),
            canary=canary,
            dry_run=dry_run,
            again=again,
        )
        with progress(console) as update, stopped_by_signal():
            outcome = run_retrain(order, update)
    except LeaseError as error:
        _complain(str(error))
        raise typer.Exit(told.failed(error, "busy")) from None
    except Exception as error:
        told.failed(error)
        raise
    for reason in outcome.reasons:
        console.print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(told.ended(outcome))


def main() -> None:
    """Run a command; what can go wrong is one line on stderr and exit code 1."""
    try:
        app()
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        _complain(str(error))
        sys.exit(1)


def _complain(error: str) -> None:
    line = " ".join(error.split())
    console.print(f"error: {line}", style="red", highlight=False, markup=False, soft_wrap=True)


def _expected() -> tuple[type[Exception], ...]:
    """What a command may raise; imported only when needed, since half of it brings torch."""
    from model.contract.bundle import BundleError
    from model.contract.encode import FieldError
    from model.contract.labels import LabelError
    from model.contract.repository import RepositoryError
    from model.contract.schema import SchemaError
    from training.announce import StoppedError
    from training.collect import CollectError
    from training.export import ParityError
    from training.gate import RuleError
    from training.lease import LeaseError
    from training.logs import LogsError
    from training.recipe import SettingError
    from training.retrain import OrderError
    from training.run import RunError
    from training.state import StateError
    from training.trainer import TrainingError

    return (
        BundleError,
        CollectError,
        FieldError,
        LabelError,
        LeaseError,
        LogsError,
        OSError,
        OrderError,
        ParityError,
        RepositoryError,
        RuleError,
        RunError,
        SchemaError,
        SettingError,
        StateError,
        StoppedError,
        TrainingError,
    )


if __name__ == "__main__":
    main()
