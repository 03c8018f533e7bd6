"""Fit and evaluate: the job between prepared logs and a finished run, top to bottom."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from model.contract.encode import Encoder
from model.network import Network, NetworkConfig
from model.zoo import configure
from terminal.progress import Update, quiet
from training import calibrate, checkpoint, cluster, metrics, state, vocabulary, window
from training.calibrate import Calibration, sigmoid
from training.carry import Outline, carry
from training.cluster import Cluster
from training.dataset import Dataset, build, learn_encoder
from training.drift import HISTOGRAM, histogram
from training.golden import golden_requests
from training.group import Group
from training.logs import Logs, LogsError
from training.recipe import hold, settings
from training.run import Run, RunError
from training.state import State
from training.trainer import FitConfig, Trainer, predict
from training.vocabulary import Seen


@dataclass(frozen=True, eq=False)
class Encoded:
    """Logs as networks take them: the ids that have a row, the encoder of those, and the splits."""

    logs: Logs
    seen: Mapping[str, Seen]
    encoder: Encoder
    sets: dict[str, Dataset]


def fit(
    data: Path,
    out: Path,
    model: str,
    seed: int,
    given: Sequence[str],
    threads: int,
    update: Update,
) -> tuple[dict[str, Any], bool] | None:
    """Train a run to its end and write it down; its metrics, progress and speed, and whether it was
    trained now: a finished run is left as it is.

    Raises what reading, settings and training raise. A run that was killed goes on from its last
    checkpoint when asked for with the same arguments, by any number of processes. Of several that
    torchrun starts, the first one answers and tells how far they are; for the others it is None.
    """
    with cluster.join() as group:
        update = update if group.leader else quiet
        return _fit(data, out, model, seed, given, threads, update, group)


def _fit(
    data: Path,
    out: Path,
    model: str,
    seed: int,
    given: Sequence[str],
    threads: int,
    update: Update,
    group: Group,
) -> tuple[dict[str, Any], bool] | None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    update("read", 0, 0, {})
    logs = Logs.read(data)
    config, how = settings(logs.schema.name, model, given)
    hold(logs.schema, config, how)
    about = describe(data, digest(data), model, config, how, seed, threads)
    run, finished = Run(out), list[dict[str, Any]]()

    def look() -> None:
        if group.leader and run.found(about) and (results := run.results()):
            checkpoint.remove(out)  # of a fit that was killed right after its end
            finished.append(results)

    group.agree(look)
    if group.sum(len(finished)):
        return (finished[0], False) if group.leader else None
    results = train(run, encode(logs, data, update), about, update, group=group)
    return (results, True) if group.leader else None


def describe(
    data: Path,
    logs: str,
    model: str,
    config: NetworkConfig,
    how: FitConfig,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """What run.json says of a run before it starts; ``logs`` is their `digest`."""
    return {
        "model": model,
        "options": plain(asdict(config)),
        "fit": plain(asdict(how)),
        "seed": seed,
        "threads": threads,
        "data": str(data.resolve()),
        "logs": logs,
    }


def encode(
    logs: Logs,
    data: Path,
    update: Update,
    *,
    start: State | None = None,
    forget_days: int | None = None,
) -> Encoded:
    """The logs, read from the folder ``data``, encoded for any number of runs.

    Ids that ``start`` knew have a row too; those not seen for ``forget_days`` have none. Raises
    `LogsError` when a split has no impressions.
    """
    update("encode", 0, 0, {})
    seen = vocabulary.learn(logs, start.outline.seen if start else None, forget_days)
    encoder = learn_encoder(logs, seen)
    sets = build(logs, encoder)
    for split, part in sets.items():
        _need(data, split, part)
    _need_both_labels(data, logs, sets["train"])
    return Encoded(logs, seen, encoder, sets)


def train(
    run: Run,
    encoded: Encoded,
    about: Mapping[str, Any],
    update: Update,
    *,
    start: State | None = None,
    keep_logits: bool = False,
    group: Group | None = None,
) -> dict[str, Any]:
    """Train a network ``about`` which run.json says everything, calibrate it on the validation
    impressions, measure it and write all down; the run's results.

    With the state of an earlier version it goes on from there: see `training.carry`. The test
    impressions' logits are kept beside it if asked for. Of a ``group`` of several processes the
    leader alone does all that comes after the last step, with whole tables; the others' results
    are empty.
    """
    group = group or Group()
    config, how = configure(about["model"], about["options"]), FitConfig.of(about["fit"])
    logs, seen, encoder, sets = encoded.logs, encoded.seen, encoded.encoder, encoded.sets

    def begin() -> None:
        if group.leader:
            run.start(logs.schema_text, encoder, golden_requests(logs), about)

    def fresh() -> Network:
        torch.manual_seed(about["seed"])
        sizes = {name: table.size for name, table in encoder.tables.items()}
        return config.build(logs.schema, sizes)

    group.agree(begin)
    if isinstance(group, Cluster):
        network = fresh()
        group.shard(network)
        Trainer(network, sets, how, about["seed"], run.folder, group=group).fit(update)
        if not group.leader:
            return {}
    network = fresh()  # after several processes it takes all from their last checkpoint
    trainer = Trainer(network, sets, how, about["seed"], run.folder, warm=start is not None)
    carried = _go_on(trainer, start, Outline(logs.schema, about["model"], about["options"], seen))
    progress = trainer.fit(update)
    network.settle_unknown(trainer.counts)
    measured = {name: sets[name] for name in ("validation", "test")}
    logits = _predict(network, measured, update)
    calibration = calibrate.fit(logits["validation"], sets["validation"].label, how.negatives_kept)
    figures = {
        name: _measure(logs, part, logits[name], calibration) for name, part in measured.items()
    }
    results = {
        "metrics": figures,
        "progress": asdict(progress),
        "samples_per_s": progress.impressions / progress.seconds if progress.seconds else 0.0,
    }
    state.write(
        run.state,
        schema_text=logs.schema_text,
        model=about["model"],
        options=about["options"],
        seen=seen,
        weights=network.state_dict(),
        moments=trainer.moments(),
    )
    scores = sigmoid(calibration.apply(logits["validation"]))
    spread = {task: histogram(scores[:, at]) for at, task in enumerate(logs.schema.tasks)}
    told = {HISTOGRAM: spread, "learnt_until": window.learnt_until(logs), **carried}
    if keep_logits:
        run.keep_logits(logits["test"])
    run.finish(network, calibration, {**results, **told})
    checkpoint.remove(run.folder)
    return results


def _go_on(trainer: Trainer, start: State | None, outline: Outline) -> dict[str, Any]:
    """Put what an earlier version knew into a trainer; what was carried, for run.json."""
    if start is None:
        return {}
    found = carry(
        start.outline, start.weights, start.moments, outline, trainer.network.state_dict()
    )
    trainer.network.load_state_dict(found.weights, strict=False)
    trainer.remember(found.moments)
    return {"carried": {"tables": found.tables, "fresh": found.fresh}}


def evaluate(
    folder: Path, data: Path | None, update: Update
) -> tuple[dict[str, float], pl.DataFrame]:
    """Metrics of a finished run on its test impressions, and one row for each of them.

    Columns: user, item, and for each task label and probability (prefixed by the task's name
    when there are several).
    """
    run = Run(folder)
    about, encoder = run.about(), run.encoder()
    network, calibration = run.network(encoder), run.calibration()
    torch.set_num_threads(about["threads"])
    data = data or Path(about["data"])
    update("read", 0, 0, {})
    logs = Logs.read(data)
    if logs.schema.fingerprint != encoder.schema.fingerprint:
        raise RunError(f"{folder}: trained on another schema than that of {data}")
    update("encode", 0, 0, {})
    test = build(logs, encoder)["test"]
    _need(data, "test", test)
    logit = _predict(network, {"test": test}, update)["test"]
    probability = sigmoid(calibration.apply(logit))
    events = logs.events.sort("user_id", "ts", maintain_order=True)[test.event]
    columns = {"user": events["user_id"], "item": events["item_id"]}
    tasks = logs.schema.tasks
    for at, task in enumerate(tasks):
        prefix = f"{task}_" if len(tasks) > 1 else ""
        columns[f"{prefix}label"] = events[task]
        columns[f"{prefix}probability"] = pl.Series(probability[:, at])
    return _measure(logs, test, logit, calibration), pl.DataFrame(columns)


def baseline(folder: Path, run: Path, data: Path | None) -> dict[str, float]:
    """The test metrics of the run in ``folder``, to compare those of another with.

    Raises `RunError` when it has not ended, or was measured on other logs than that run will be
    (``data``, or its own).
    """
    about = Run(folder).about()
    if "metrics" not in about:
        raise RunError(f"{folder}: not trained to the end; run fit again to go on")
    if about["logs"] != (digest(data) if data else Run(run).about()["logs"]):
        raise RunError(f"{folder}: measured on other logs than {run}")
    found: dict[str, float] = about["metrics"]["test"]
    return found


def _predict(
    network: Network, parts: Mapping[str, Dataset], update: Update
) -> dict[str, metrics.Array]:
    """Logits of each part."""
    done, total, found = 0, sum(map(len, parts.values())), {}
    for name, part in parts.items():

        def told(n: int, before: int = done) -> None:
            update("measure", before + n, total, {})

        found[name] = predict(network, part, told)
        done += len(part)
    return found


def _measure(
    logs: Logs, data: Dataset, logit: metrics.Array, calibration: Calibration
) -> dict[str, float]:
    """All metrics of the first task, then those of the others under task.metric."""
    probability = sigmoid(calibration.apply(logit))
    found: dict[str, float] = {}
    for at, task in enumerate(logs.schema.tasks):
        values = metrics.all_metrics(data.user, data.label[:, at], probability[:, at])
        found |= {f"{task}.{name}" if at else name: value for name, value in values.items()}
    return found


def _need(data: Path, split: str, part: Dataset) -> None:
    if not len(part):
        expected = f"impressions with split {split}, found none"
        raise LogsError(str(data / "events.parquet"), "split", expected)


def _need_both_labels(data: Path, logs: Logs, train: Dataset) -> None:
    """Of one task at least: with one class there is nothing to learn."""
    low, high = train.label.min(0), train.label.max(0)
    if (low == high).all():
        tasks = logs.schema.tasks
        seen = ", ".join(f"{task} {label:.0f}" for task, label in zip(tasks, low, strict=True))
        expected = f"both labels of some task among the train impressions, found only {seen}"
        raise LogsError(str(data / "events.parquet"), tasks[0], expected)


def digest(data: Path) -> str:
    """sha256 of the prepared logs: a run that goes on must go on with the same ones."""
    found = hashlib.sha256()
    for name in ("events.parquet", "items.parquet", "users.parquet", "schema.toml"):
        with (data / name).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON reads them back: lists for tuples."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
