"""Fit and evaluate: the job between prepared logs and a finished run, top to bottom."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch._inductor.config  # seconds that torch would take at first use: `training.loading`

from model.contract.encode import Encoder
from model.contract.schema import Schema
from model.network import Network, NetworkConfig
from model.zoo import configure
from terminal.progress import Update, quiet
from training import cluster, state, vocabulary, window
from training.calibrate import Calibration, sigmoid
from training.carry import Outline, carry
from training.chunks import AnyLogs, Chunks
from training.cluster import Cluster
from training.dataset import Dataset, learn_encoder
from training.drift import HISTOGRAM
from training.encoded import Data, in_memory, in_parts
from training.golden import golden_requests
from training.group import Group
from training.logs import LogsError
from training.metrics import Array
from training.recipe import hold, settings
from training.run import Run, RunError
from training.state import State
from training.tally import Tally
from training.trainer import FitConfig, Trainer, tally
from training.vocabulary import Seen


@dataclass(frozen=True, eq=False)
class Encoded:
    """Logs as networks take them: the ids that have a row, the encoder of those, and the splits."""

    logs: AnyLogs
    seen: Mapping[str, Seen]
    encoder: Encoder
    sets: Mapping[str, Data]

    def whole(self, split: str) -> Dataset:
        """A split of logs that are in memory."""
        found = self.sets[split]
        assert isinstance(found, Dataset)
        return found


def fit(
    data: Path,
    out: Path,
    model: str,
    seed: int,
    given: Sequence[str],
    threads: int,
    update: Update,
    skip: bool = False,
) -> tuple[dict[str, Any], bool] | None:
    """Train a run to its end and write it down; its metrics, progress and speed, and whether it was
    trained now: a finished run is left as it is.

    With ``skip`` row groups of the events that can't be read are left out. Raises what reading,
    settings and training raise. A run that was killed goes on from its last checkpoint when asked
    for with the same arguments, by any number of processes. Of several that torchrun starts, the
    first one answers and tells how far they are; for the others it is None.
    """
    with cluster.join() as group, ExitStack() as held:
        update = update if group.leader else quiet
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        schema = Schema.load(data / "schema.toml")
        config, how = settings(schema.name, model, given)
        hold(schema, config, how)
        update("read", 0, 0, {})
        logs = Chunks(data, skip)
        about = describe(data, digest(data), model, config, how, seed, threads)
        run, finished = Run(out), list[dict[str, Any]]()

        def look() -> None:
            if group.leader and run.found(about) and (results := run.results()):
                run.clear()  # after a fit that was killed right after its end
                finished.append(results)

        group.agree(look)
        if group.sum(len(finished)):
            return (finished[0], False) if group.leader else None
        encoded = encode(logs, data, update, parts=(run.shards, how.shard, about), group=group)

        def claim() -> None:
            if group.leader:
                held.enter_context(run.alone())

        group.agree(claim)
        results = train(run, encoded, about, update, group=group)
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
    logs: AnyLogs,
    data: Path,
    update: Update,
    *,
    start: State | None = None,
    forget_days: int | None = None,
    parts: tuple[Path, int, Mapping[str, Any]] | None = None,
    group: Group | None = None,
) -> Encoded:
    """The logs, read from the folder ``data``, encoded for any number of runs.

    Ids that ``start`` knew have a row too; those not seen for ``forget_days`` have none. All is in
    memory unless there may be ``parts``: a folder for shards, their size, what they are of. Of a
    ``group`` the leader alone writes the shards, where the others find them. Raises `LogsError`
    when train or test has no impressions.
    """
    seen = vocabulary.learn(logs, start.outline.seen if start else None, forget_days, update)
    encoder = learn_encoder(logs, seen)
    sets = dict[str, Data]()

    def read() -> None:
        if parts is None:
            sets.update(in_memory(logs, encoder, update))
        else:
            sets.update(in_parts(logs, encoder, *parts, update))

    def wait() -> None:
        """What the others do meanwhile."""

    group = group or Group()
    sharded = parts is not None and len(logs) > parts[1]
    first = group.leader or not sharded
    group.agree(read if first else wait)
    if sharded:  # by now the others find what the leader wrote
        group.agree(wait if first else read)
    for split in ("train", "test"):
        _need(data, split, sets[split])
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
    impressions (not where there are none), measure it and write all down; the run's results.

    With the state of an earlier version it goes on from there: see `training.carry`. The test
    impressions' logits are kept beside it if asked for, of logs that are in memory. Of a ``group``
    of several processes the leader alone does all that comes after the last step, with whole
    tables; the others' results are empty.
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
    measured = {name: part for name, part in sets.items() if name != "train" and len(part)}
    kept: list[Array] = []

    def see(part: Dataset, logits: Array) -> None:
        if keep_logits and part is sets["test"]:
            kept.append(logits)

    tallies = _tally(network, measured, update, see)
    validation = tallies.get("validation", Tally(len(logs.schema.tasks)))
    calibration = validation.calibrate(how.negatives_kept)
    results = {
        "metrics": {
            name: _measure(logs, tallies[name], calibration) if name in tallies else {}
            for name in ("validation", "test")
        },
        "progress": asdict(progress),
        "samples_per_s": progress.impressions / progress.seconds if progress.seconds else 0.0,
    }
    if isinstance(logs, Chunks) and logs.skipped:
        results["unreadable"] = _unreadable(logs)
    state.write(
        run.state,
        schema_text=logs.schema_text,
        model=about["model"],
        options=about["options"],
        seen=seen,
        weights=network.state_dict(),
        moments=trainer.moments(),
    )
    histograms = validation.histograms(calibration)
    spread = dict(zip(logs.schema.tasks, histograms, strict=True))
    told = {HISTOGRAM: spread, "learnt_until": window.learnt_until(logs), **carried}
    if keep_logits:
        run.keep_logits(kept[0])
    run.finish(network, calibration, {**results, **told})
    run.clear()
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
    folder: Path, data: Path | None, update: Update, *, skip: bool = False, rows: bool = True
) -> tuple[dict[str, float], pl.DataFrame, dict[str, int]]:
    """Metrics of a finished run on its test impressions, and with ``rows`` one row for each of them
    (held in memory, however many); and how many events each row group has that was left out.

    Columns: user, item, and for each task label and probability (prefixed by the task's name
    when there are several).

    ``data`` are its own logs unless given. Raises `RunError` where these were prepared anew since:
    its training may have seen what is test there.
    """
    run = Run(folder)
    about, encoder = run.about(), run.encoder()
    network, calibration = run.network(encoder), run.calibration()
    torch.set_num_threads(about["threads"])
    own = Path(about["data"])
    update("read", 0, 0, {})
    logs = Chunks(data or own, skip)
    if data is None and digest(own) != about["logs"]:
        raise RunError(f"{folder}: {own} does not hold the logs it was trained on; give --data")
    data = data or own
    if logs.schema.fingerprint != encoder.schema.fingerprint:
        raise RunError(f"{folder}: trained on another schema than that of {data}")
    shard = FitConfig.of(about["fit"]).shard
    with tempfile.TemporaryDirectory(prefix=".shards-", dir=folder) as name:
        test = in_parts(logs, encoder, Path(name), shard, {}, update)["test"]
        _need(data, "test", test)
        kept: list[tuple[Array, Array]] = []

        def see(part: Dataset, logits: Array) -> None:
            if rows:
                kept.append((part.event, sigmoid(calibration.apply(logits))))

        def told(done: int) -> None:
            update("measure", done, len(test), {})

        found = tally(network, test, told, see)
    frame = _rows(logs, kept) if rows else pl.DataFrame()
    return _measure(logs, found, calibration), frame, _unreadable(logs)


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


def _rows(logs: AnyLogs, parts: Sequence[tuple[Array, Array]]) -> pl.DataFrame:
    """User, item, labels and probabilities by event, in the order of the logs."""
    event, probability = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.argsort(event)
    event, probability = event[order], probability[order]
    tasks, frames, begin = logs.schema.tasks, [], 0
    for chunk in logs.chunks(("user_id", "item_id", *tasks)):
        first, last = np.searchsorted(event, (begin, begin + len(chunk)))
        frames.append(chunk.events[event[first:last] - begin])
        begin += len(chunk)
    events = pl.concat(frames)
    columns = {"user": events["user_id"], "item": events["item_id"]}
    for at, task in enumerate(tasks):
        prefix = f"{task}_" if len(tasks) > 1 else ""
        columns[f"{prefix}label"] = events[task]
        columns[f"{prefix}probability"] = pl.Series(probability[:, at])
    return pl.DataFrame(columns)


def _tally(
    network: Network,
    sets: Mapping[str, Data],
    update: Update,
    see: Callable[[Dataset, Array], None],
) -> dict[str, Tally]:
    """The tally of each; ``see`` is shown the logits of each part."""
    done, total, found = 0, sum(map(len, sets.values())), {}
    update("measure", done, total, {})
    for name, data in sets.items():

        def told(n: int, before: int = done) -> None:
            update("measure", before + n, total, {})

        found[name] = tally(network, data, told, see)
        done += len(data)
    return found


def _measure(logs: AnyLogs, found: Tally, calibration: Calibration) -> dict[str, float]:
    """All metrics of the first task, then those of the others under task.metric."""
    named: dict[str, float] = {}
    for at, values in enumerate(found.measure(calibration)):
        task = logs.schema.tasks[at]
        named |= {f"{task}.{name}" if at else name: value for name, value in values.items()}
    return named


def _unreadable(logs: Chunks) -> dict[str, int]:
    """The row groups that were left out, as JSON has them."""
    return {str(group): rows for group, rows in logs.skipped.items()}


def _need(data: Path, split: str, part: Data) -> None:
    if not len(part):
        expected = f"impressions with split {split}, found none"
        raise LogsError(str(data / "events.parquet"), "split", expected)


def _need_both_labels(data: Path, logs: AnyLogs, train: Data) -> None:
    """Of one task at least: with one class there is nothing to learn."""
    if all(count in (0, len(train)) for count in train.ones):
        tasks = logs.schema.tasks
        labels = zip(tasks, train.ones, strict=True)
        seen = ", ".join(f"{task} {int(count > 0)}" for task, count in labels)
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
