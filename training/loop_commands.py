"""The commands of the closed loop: collect, join, retrain, replay."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from terminal.commands import Command
from training import last_line
from training.option import Seed, Threads

if TYPE_CHECKING:  # they bring torch
    from training.source import Loop, Prepared

DAY = "%Y-%m-%d"
SKEWED = 12
DAYS, SECONDS = 100_000, 1_000_000_000  # at most, of what has to be a date in the end
console = Console(stderr=True)


class BaseImpressions(StrEnum):
    none = "none"
    window = "window"
    all = "all"


def add_to(app: typer.Typer) -> None:
    """Make these the application's commands too."""
    for command in (collect, join, replay):
        app.command()(command)
    app.command(cls=Told)(retrain)


class Told(Command):
    """A command whose wrong use is told in a line on stdout as well."""

    def make_context(self, *given: Any, **more: Any) -> Any:
        try:
            return super().make_context(*given, **more)
        except Exception as error:
            if hasattr(error, "format_message"):  # wrong use; --help ends by an exception too
                last_line.say(last_line.failed(error.format_message()))
            raise


def complain(console: Console, error: str) -> None:
    """Say what went wrong, in one line."""
    line = " ".join(error.split())
    console.print(f"error: {line}", style="red", highlight=False, markup=False, soft_wrap=True)


def join(
    logs: Annotated[Path, typer.Option(help="Folder of collected logs.")],
    first: Annotated[datetime, typer.Option(formats=[DAY], help="First day (UTC).")],
    last: Annotated[datetime, typer.Option(formats=[DAY], help="Last day, included.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared logs.")],
    schema: Annotated[
        Path | None, typer.Option(help="TOML file; default: that of the logs' base.")
    ] = None,
    window_seconds: Annotated[
        int, typer.Option(min=1, max=SECONDS, help="An outcome counts within this time.")
    ] = 86_400,
    settle_seconds: Annotated[
        int,
        typer.Option(
            min=0, max=SECONDS, help="Impressions of the logs' last seconds are left out."
        ),
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
    from training.collected import Collected
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


def replay(
    logs: Annotated[Path, typer.Option("--logs", "--log", help="Folder of collected logs.")],
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
    from training.collected import Collected
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
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Prometheus metrics; 0 picks a port.")
    ] = None,
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
    canary_clicks: Annotated[float, typer.Option(min=1, help="nor clicks, expected or seen.")] = 30,
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
        int | None,
        typer.Option(
            min=1,
            max=SECONDS,
            help="With --logs: an outcome counts so long after an impression; default: 86400.",
        ),
    ] = None,
    settle_seconds: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=SECONDS,
            help="With --logs: the last impressions, too young, are left out; default: 600.",
        ),
    ] = None,
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
    window_days: Annotated[int, typer.Option(min=1, max=DAYS, help="Days of the window.")] = 7,
    skip: Annotated[
        list[datetime] | None,
        typer.Option(formats=[DAY], help="A day whose impressions are left out, as poisoned ones."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="As of fit; default: as the current version.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, over the current version's settings."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="key=value, over the gate's rules (docs/loop.md).")
    ] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    cold: Annotated[bool, typer.Option("--cold", help="Start from nothing.")] = False,
    forget_days: Annotated[
        int,
        typer.Option(min=1, max=DAYS, help="Ids not seen for more days than this lose their row."),
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
    from training.loading import loading

    with progress(console) as update, loading(update):
        from training.announce import Announcement, stopped_by_signal
        from training.gate import rules
        from training.lease import LeaseError
        from training.retrain import Order
        from training.retrain import retrain as run_retrain

    told = Announcement(
        name or "", last_line.say, partial(complain, console), metrics_file, push_gateway
    )
    last_line.end()
    try:
        with progress(console) as update, stopped_by_signal():
            source = _source(logs, data, schema, label_seconds, settle_seconds)
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
            outcome = run_retrain(order, update)
    except LeaseError as error:
        complain(console, str(error))
        raise typer.Exit(told.failed(error, "busy")) from None
    except (Exception, KeyboardInterrupt) as error:
        told.failed(error)
        raise
    for reason in outcome.reasons:
        console.print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(told.ended(outcome))


def _source(
    logs: Path | None,
    data: Path | None,
    schema: Path | None,
    label_seconds: int | None,
    settle_seconds: int | None,
) -> Loop | Prepared:
    """Where a retraining's logs are. Raises typer.BadParameter for options that do not go
    together."""
    from training.join import Rules as Joining
    from training.source import Loop, Prepared

    if logs is not None and data is None:
        settle = Joining.settle_seconds if settle_seconds is None else settle_seconds
        return Loop(logs, Joining(label_seconds or Joining.window_seconds, settle), schema)
    if data is None or logs is not None:
        raise typer.BadParameter("one of --logs and --data is needed")
    of_logs = {
        "--schema": schema,
        "--label-seconds": label_seconds,
        "--settle-seconds": settle_seconds,
    }
    for option, given in of_logs.items():
        if given is not None:
            raise typer.BadParameter(f"{option} is for --logs")
    return Prepared(data)
