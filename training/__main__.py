"""The offline job's commands: prepare, fit, evaluate, export, push, each of which reads what the
last one left. Those of the closed loop are in `training.loop_commands`, and `compare` is in
`training.comparison.command`.
"""

from __future__ import annotations

import sys

from training import last_line

if sys.argv[1:2] == ["retrain"]:  # before what follows is loaded
    last_line.begin()

import functools
import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from terminal.commands import Commands
from training import loop_commands
from training.comparison import command
from training.loop_commands import complain
from training.option import OptionError, Seed, Threads

# Threads that wait by spinning take the cores from those that work; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = Commands("From raw logs to a published model, and from what was served to the next one.")
console = Console(stderr=True)


@app.callback()
def one_of_many(context: typer.Context) -> None:
    """What torchrun starts several times must be a command that several do together."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and context.invoked_subcommand != "fit":
        raise typer.BadParameter("torchrun with several processes: expected the command fit")


class Source(StrEnum):
    movielens_1m = "movielens-1m"
    movielens_20m = "movielens-20m"
    amazon_csv = "amazon-csv"
    amazon_reviews = "amazon-reviews"
    alimama = "alimama"
    ali_ccp = "ali-ccp"
    taobao = "taobao"
    synthetic = "synthetic"
    parquet = "parquet"


class EngineName(StrEnum):
    duckdb = "duckdb"
    spark = "spark"


class Unreadable(StrEnum):
    stop = "stop"
    skip = "skip"


@app.command()
def prepare(
    source: Annotated[Source, typer.Option(help="What the raw logs are.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared logs.")],
    path: Annotated[
        Path | None,
        typer.Option(
            help="movielens-1m, movielens-20m: the official zip; amazon-csv: the common prefix of "
            "the three files; amazon-reviews: the reviews_X_5.json.gz beside its metadata, or "
            "their folder; alimama, ali-ccp: the folder of the official files; taobao: "
            "UserBehavior.csv or its zip; parquet: the folder of your events, items and users "
            "tables (Parquet or CSV)."
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
    engine: Annotated[
        EngineName | None,
        typer.Option(help="parquet: what reads, checks and sorts the rows; default: duckdb."),
    ] = None,
    master: Annotated[
        str | None,
        typer.Option(help="spark: local[2], spark://host:7077, yarn, ...; default: Spark's own."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="parquet: what the engine may use, from 512MB; default: its own."),
    ] = None,
    unreadable: Annotated[
        Unreadable | None,
        typer.Option(
            help="parquet: what to do where a file or row group can't be read; default: stop."
        ),
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="synthetic: number of users; default: 2000.")
    ] = None,
    conversions: Annotated[
        bool, typer.Option("--conversions", help="synthetic: a second task, conversion.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="All but parquet: of what is drawn or hashed; default: 0."),
    ] = None,
    max_bad_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="All but synthetic: stop when a larger share is malformed; default: 0.001.",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Take a part of a data set whose published size is known."),
    ] = False,
) -> None:
    """Read raw logs into the canonical form: events, items and users as Parquet, and the schema."""
    from terminal.progress import progress
    from training import chunks, readers, report, world
    from training.logs import Logs
    from training.rows import MAX_BAD_SHARE
    from training.scratch import scratch

    whole: dict[Source, Callable[..., Logs]] = {
        Source.movielens_1m: functools.partial(readers.read_movielens, test_users=test_users),
        Source.amazon_csv: readers.read_amazon,
    }
    streamed: dict[Source, Callable[..., Iterator[Logs]]] = {
        Source.movielens_20m: readers.read_movielens_20m,
        Source.amazon_reviews: readers.read_amazon_reviews,
        Source.alimama: readers.read_alimama,
        Source.ali_ccp: readers.read_ali_ccp,
        Source.taobao: readers.read_taobao,
    }
    own, made = Source.parquet, Source.synthetic
    of_files, drawn = ([each for each in Source if each is not other] for other in (made, own))
    given: dict[str, tuple[object, Collection[Source]]] = {
        "--path": (path, of_files),
        "--test-users": (test_users, [Source.movielens_1m]),
        "--schema": (schema, [own]),
        "--column": (column or None, [own]),
        "--engine": (engine, [own]),
        "--master": (master, [own]),
        "--memory": (memory, [own]),
        "--unreadable": (unreadable, [own]),
        "--users": (users, [made]),
        "--conversions": (conversions or None, [made]),
        "--seed": (seed, drawn),
        "--max-bad-share": (max_bad_share, of_files),
        "--partial": (partial or None, streamed),
    }
    columns = [(our, their) for our, _, their in (each.partition("=") for each in column or [])]
    refused = {
        **{
            f"{option} is for --source {', '.join(sources)}": value is not None
            and source not in sources
            for option, (value, sources) in given.items()
        },
        f"--path is needed for {source}": source is not made and path is None,
        "--schema is needed for parquet": source is own and schema is None,
        "--column: expected canonical=yours": any("=" not in each for each in column or []),
        "--master is for --engine spark": master is not None and engine is not EngineName.spark,
        **{
            f"--column {name}: expected once": times > 1
            for name, times in Counter(name for name, _ in columns).items()
        },
    }
    for why, broken in refused.items():
        if broken:
            raise typer.BadParameter(why)
    mebibytes = None if memory is None else _mebibytes(memory)
    users, seed = users or world.World.users, seed or 0
    bad = MAX_BAD_SHARE if max_bad_share is None else max_bad_share

    with progress(console) as update:
        if source is own and path and schema:
            from training import engines, tables

            chosen = engine or EngineName.duckdb
            written = tables.prepare(
                path,
                schema,
                out,
                lambda folder: engines.start(chosen, folder, master, mebibytes),
                columns=dict(columns),
                max_bad_share=bad,
                skip_unreadable=unreadable is Unreadable.skip,
                update=update,
            )
        elif source in whole:
            logs = whole[source](path, seed=seed, max_bad_share=bad, update=update)
            written = logs.write(out, update)
        elif source in streamed:
            with scratch(out) as work:
                read = streamed[source](
                    path, work, seed=seed, partial=partial, max_bad_share=bad, update=update
                )
                written = chunks.write(out, read)
        else:
            shop = world.World(users=users, seed=seed, conversions=conversions)
            if users > world.CHUNK:  # not all in memory at once
                written = chunks.write(out, shop.chunks(), shop.events(), update)
            else:
                written = shop.logs(update=update).write(out, update)
    report.prepared(console, out, written)


def _mebibytes(memory: str) -> int:
    found = re.fullmatch(r"([0-9]+)(MB|GB)", memory)
    size = int(found[1]) * (1024 if found[2] == "GB" else 1) if found else 0
    if size < 512:
        raise typer.BadParameter(f"--memory: expected 512MB or more, as 4GB, found {memory}")
    return size


@app.command()
def fit(
    data: Annotated[Path, typer.Option(help="Folder that prepare wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that was killed goes on.")],
    model: Annotated[str, typer.Option(help="din, base, ...: docs/models.md.")] = "din",
    seed: Seed = 0,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, over the data set's recipe.")
    ] = None,
    threads: Threads = 2,
    unreadable: Annotated[
        Unreadable, typer.Option(help="What to do at a row group of events that can't be read.")
    ] = Unreadable.stop,
) -> None:
    """Train a model, stop early by validation GAUC, calibrate it, measure it on the test set."""
    from terminal.progress import progress
    from training.loading import loading

    with progress(console) as update:
        with loading(update):
            from training import report
            from training.fit import fit as run_fit

        fitted = run_fit(
            data,
            out,
            model,
            seed,
            setting or [],
            threads,
            update,
            skip=unreadable is Unreadable.skip,
        )
    if fitted is None:  # one of several processes, of which the first one tells
        return
    figures, trained = fitted
    if not trained:
        console.print(f"{out}: this run is finished; nothing was trained", soft_wrap=True)
    report.metrics_table(console, f"{model}, seed {seed}: {out}", figures["metrics"])
    report.undefined(console, figures["metrics"])
    stopped = figures["progress"]
    console.print(
        f"best at step {stopped['best_step']:,} of {stopped['step']:,}; "
        f"{figures['samples_per_s']:,.0f} samples/s, waiting for data "
        f"{stopped['waited'] / max(stopped['seconds'], 1e-9):.2%} of the time",
        soft_wrap=True,
    )
    report.unreadable(console, figures.get("unreadable", {}))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Parquet file to write: user, item, label, probability.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared logs; default: the run's.")] = None,
    unreadable: Annotated[
        Unreadable, typer.Option(help="What to do at a row group of events that can't be read.")
    ] = Unreadable.stop,
    baseline: Annotated[
        Path | None, typer.Option(help="Another run on the same logs: RelaImpr over its metrics.")
    ] = None,
) -> None:
    """Measure a run on the test impressions of its logs; one row per impression if asked."""
    from terminal.progress import progress
    from training.loading import loading

    if predictions is not None and (predictions.is_dir() or not predictions.parent.is_dir()):
        raise OptionError(f"--predictions {predictions}: expected a file in a folder that is there")
    with progress(console) as update:
        with loading(update):
            from training import metrics, report
            from training.fit import baseline as baseline_metrics
            from training.fit import evaluate as run_evaluate

        base = baseline_metrics(baseline, run, data) if baseline is not None else None
        measured, frame, left_out = run_evaluate(
            run, data, update, skip=unreadable is Unreadable.skip, rows=predictions is not None
        )
    if predictions is not None:
        frame.write_parquet(predictions)
    report.metrics_table(console, str(run), {"test": measured})
    report.undefined(console, {"test": measured})
    report.unreadable(console, left_out)
    if base is not None:
        improved = metrics.improvement(measured, base).items()
        shown = ", ".join(f"{name} {value:+.2%}" for name, value in improved)
        shown = shown or "not defined, as no ranking of it is better than chance"
        console.print(f"RelaImpr over {baseline}: {shown}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    repository: Annotated[Path, typer.Option(help="Model repository; made when not there.")],
) -> None:
    """Export a run to ONNX, hold it against PyTorch, and publish it as the next version."""
    from terminal.progress import progress
    from training.loading import loading

    with progress(console) as update:
        with loading(update):
            from training.publish import publish
            from training.run import Run

        found, version, worst = publish(Run(run), repository, update)
    console.print(
        f"published {found.folder / str(version)}; "
        f"largest |dlogit| between PyTorch and ONNX {worst:.1e}",
        soft_wrap=True,
    )


@app.command()
def push(
    to: Annotated[str, typer.Option(help="URL of the store's folder: s3://, gs://, file://, ...")],
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("var/repository"),
    name: Annotated[str | None, typer.Option(help="Default: the model published last.")] = None,
) -> None:
    """Take new versions and the labels to an object store, which services mirror."""
    from mirror.remote import MirrorError, Remote
    from model.contract.repository import Repository

    found = Repository.find(repository, name)
    remote = Remote(to)
    try:
        taken = remote.push(found)
    except Exception as error:
        if isinstance(error, _expected()):
            raise
        # Each store has errors of its own, as botocore's where there are no credentials.
        raise MirrorError(f"the object store: {type(error).__name__}: {error}") from error
    versions = ", ".join(map(str, taken)) or "none is new"
    console.print(f"{found.name}: versions {versions}; the labels are there", soft_wrap=True)


command.add_to(app)
loop_commands.add_to(app)


def main() -> None:
    """Run a command; what can go wrong is one line on stderr and exit code 1, a wrong option 2."""
    try:
        app()
    except Exception as error:
        if isinstance(error, _expected()):
            complain(console, str(error))
        elif isinstance(error, ModuleNotFoundError):
            complain(console, f"{error.name} is not installed: pip install 'dinserve[training]'")
        else:
            traceback.print_exc()
        sys.exit(2 if isinstance(error, OptionError) else 1)
    finally:
        last_line.tell()


_EXPECTED = {
    "mirror.remote": "MirrorError",
    "model.contract.bundle": "BundleError",
    "model.contract.encode": "FieldError",
    "model.contract.labels": "LabelError",
    "model.contract.repository": "RepositoryError",
    "model.contract.schema": "SchemaError",
    "safetensors": "SafetensorError",  # a disk that is full
    "training.announce": "StoppedError",
    "training.checkpoint": "CheckpointError",
    "training.cluster": "ClusterError",
    "training.collect": "CollectError",
    "training.engines": "EngineError",
    "training.export": "ParityError",
    "training.lease": "LeaseError",
    "training.logs": "LogsError",
    "training.retrain": "OrderError",
    "training.run": "RunError",
    "training.state": "StateError",
    "training.trainer": "TrainingError",
}


def _expected() -> tuple[type[Exception], ...]:
    """What a command may raise, of the modules that are loaded: nothing else can have been raised,
    and half of the others bring torch, for which a refusal need not wait."""
    loaded = [(sys.modules[of], name) for of, name in _EXPECTED.items() if of in sys.modules]
    return (OSError, OptionError, *(getattr(module, name) for module, name in loaded))


if __name__ == "__main__":
    main()
