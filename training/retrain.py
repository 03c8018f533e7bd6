"""Retrain: the newest logs become a new version, if the gate lets it; top to bottom.

Beside the versions of a model lie::

    .retrain/lease.<n>         one retraining at a time (`training.lease`)
    .retrain/<days>-<job>/     the run, until it is published or refused
    .state/<digest>/           what the next one goes on from (`training.state`)
    refused/<days>-<job>/      report.html and report.json of what was refused

A job is what is trained, and on what: the days, the data and the settings. It is done once, as the
lineage of a version or a refusal tells; killed, it goes on where it stopped.

The gate looks only at impressions that the current version has not learnt from: by older ones a
candidate that is older, or that goes on from the current version, can't be judged.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch

from model.contract.labels import LabelFile, MovedError, PinnedError
from model.contract.repository import Repository
from model.contract.schema import Schema
from model.network import NetworkConfig
from terminal.progress import Update
from training import gate_report, record, state
from training.evidence import first_labels, gather, rows, same_impressions
from training.fit import encode, plain, train
from training.gate import Rules, Verdict, judge, too_few
from training.intervals import Evidence
from training.lease import Lease
from training.logs import Logs
from training.option import OptionError
from training.publish import publish
from training.recipe import hold, settings
from training.record import Version
from training.run import Run, RunError
from training.scores import recast
from training.source import Source
from training.trainer import FitConfig
from training.window import Window, cut, digest, from_ms, hold_out

Status = Literal["published", "would_publish", "refused", "nothing_new"]


class OrderError(OptionError):
    """An order that contradicts itself or the logs."""


class ErasedError(RuntimeError):
    """Users were erased while their events were trained on; the next retraining knows of it."""


@dataclass(frozen=True)
class Order:
    """What is asked for: the days from ``first`` to ``last``. Without ``last`` it is the newest day
    that is over, without ``first`` there are as many as ``days``. ``name`` is checked, if given.

    ``given`` are settings over those of the current version, or over the recipe where there is none
    or it is another ``model``. ``validation`` is the share of the impressions, the newest, that do
    not train: the older half of it stops and calibrates, the newer half is for the gate.
    """

    repository: Path
    source: Source
    name: str | None = None
    first: date | None = None
    last: date | None = None
    days: int = 7
    skipped: tuple[date, ...] = ()
    model: str | None = None
    given: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 2
    cold: bool = False
    forget_days: int = 60
    validation: float = 0.15
    rules: Rules = field(default_factory=Rules)
    canary: float | None = None
    dry_run: bool = False
    again: bool = False
    lease_seconds: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """What came of it. ``current`` is the version that was to be replaced, ``warm`` whether its
    state was gone on from; ``label`` is what the new version is for: stable, canary, or none where
    one is pinned or another one has become stable since. ``report`` is a folder."""

    status: Status
    model: str
    window: Window | None = None
    job: str | None = None
    current: int | None = None
    warm: bool = False
    version: int | None = None
    label: str | None = None
    reasons: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    report: Path | None = None


def retrain(order: Order, update: Update) -> Outcome:
    """Raises `LeaseError` where another one is at work, and what reading, training and publishing
    raise; then nothing is published."""
    schema = Schema.load(order.source.schema)
    name = schema.name
    if order.name not in (None, name):
        raise OrderError(f"--name: expected {name}, of which the logs are")
    repository = Repository(order.repository, name)
    labels = LabelFile(repository, "retrain").read()
    _window(order, ())  # days that contradict each other are refused before any work
    _configured(order, schema, record.current(repository, labels))  # as are settings
    lease = Lease(repository.folder / record.WORK, "lease", order.lease_seconds)
    with lease.held():
        return _retrain(order, repository, lease, update)


def _retrain(order: Order, repository: Repository, lease: Lease, update: Update) -> Outcome:
    torch.set_num_threads(order.threads)
    torch.use_deterministic_algorithms(True)
    labels = LabelFile(repository, "retrain")
    current = record.current(repository, labels.read())
    outcome = Outcome("nothing_new", repository.name, current=current.number if current else None)

    # What there is to train on.
    update("read", 0, 0, {})
    days = order.source.days()
    window = _window(order, days)
    if window is None or not any(window.first <= day <= window.last for day in days):
        return replace(outcome, window=window, reasons=("no day with impressions",))
    erased = order.source.erased()
    raw, tally = order.source.read(window)
    logs = cut(raw, window, order.validation, order.skipped)
    if not len(logs.events):
        return replace(outcome, window=window, reasons=("no impressions in these days",))

    # Whether it was done before.
    about = _about(order, repository, logs, window, current)
    job = _job(order, about)
    outcome = replace(outcome, window=window, job=job, warm=about["warm"] is not None)
    run = Run(record.work_folder(repository, window, job))
    refusal = record.refusal_folder(repository, window, job)
    record.tidy(repository, labels.read(), run.folder)
    done = next((v for v in reversed(record.versions(repository)) if v.job == job), None)
    if done and run.state.exists() and state.digest(run.state) == done.state:
        # It was killed after it had published, and before it had said so.
        return _conclude(order, repository, labels, outcome, done.number, run)
    if not order.again and (done or refusal.exists()):
        said = f"are version {done.number}" if done else "were refused"
        return replace(outcome, reasons=(f"these days, data and settings {said}",))

    # Train, and compare with the current version, on what that has not learnt from.
    logs, learnt = _unlearnt(logs, current)
    if learnt and not rows(logs)["test"]:
        older = f"these days are not newer than what version {outcome.current} has learnt from"
        return replace(outcome, reasons=(older,))
    evidence: dict[str, Evidence] = {}
    if reason := too_few(first_labels(logs, "test"), order.rules):
        reason += f"; version {outcome.current} has learnt from {learnt:,} more" if learnt else ""
        verdict = Verdict("too_few", (reason,), rules=order.rules)
    else:
        _train(run, logs, about, repository, order, update)
        update("compare", 0, 0, {})
        evidence = _evidence(run, logs, repository, current, window, order)
        first, *others = logs.schema.tasks
        verdict = judge(
            evidence[first], order.rules, {f"task {task}": evidence[task] for task in others}
        )
    outcome = replace(
        outcome, reasons=verdict.reasons, metrics=gate_report.figures(verdict.overall)
    )
    told = gate_report.Told(
        model=repository.name,
        days=str(window),
        current=outcome.current,
        impressions=rows(logs),
        tally=tally,
        run=run.about() if evidence else about,
        verdict=verdict,
        evidence=evidence.get(logs.schema.tasks[0]),
    )

    # Publish it, or say why not.
    files = gate_report.files(told)
    if order.dry_run:  # the run stays, so that the same without --dry-run need not train again
        report = _write(run.folder / "report", files)
        return replace(
            outcome, status="would_publish" if verdict.passed else "refused", report=report
        )
    if not verdict.passed:
        _remove(run)
        return replace(outcome, status="refused", report=_write(refusal, files))
    if gone := _erased_since(erased, order.source.erased(), logs):
        _remove(run)
        raise ErasedError(f"{gone} of the users were erased meanwhile; run it again without them")
    lease.check()
    if order.canary is not None and outcome.current is not None:
        labels.settle(outcome.current, f"a canary of {window} is to come")
    _, version, _ = publish(
        run, order.repository, update, lineage_too=_lineage(outcome, window), more=files
    )
    return _conclude(order, repository, labels, outcome, version, run)


def _erased_since(before: pl.DataFrame, now: pl.DataFrame, logs: Logs) -> int:
    """How many users of the logs were erased since ``before``."""
    new = now.join(before, on=["user_id", "until"], how="anti")
    known = pl.concat([logs.events["user_id"], logs.users["user_id"]]).unique()
    return int(known.is_in(new["user_id"].implode()).sum())


def _window(order: Order, days: Sequence[date]) -> Window | None:
    """The days asked for; None where no day is over."""
    last = order.last
    if last is None:
        today = datetime.now(UTC).date()
        last = max((day for day in days if day < today), default=None)
    if last is None:
        return None
    first = order.first or last - timedelta(days=order.days - 1)
    if first > last:
        raise OrderError(f"--from: expected a day not after {last}")
    return Window(first, last)


def _unlearnt(logs: Logs, current: Version | None) -> tuple[Logs, int]:
    """The logs, with only impressions for the gate that the current version has not learnt from,
    and how many others the gate would have looked at."""
    if current is None:
        return logs, 0
    found = hold_out(logs, from_ms(current.learnt_until, logs.schema))
    return found, rows(logs)["test"] - rows(found)["test"]


def _configured(
    order: Order, schema: Schema, current: Version | None
) -> tuple[str, NetworkConfig, FitConfig]:
    """The model and its settings: those of the current version, or of the recipe where there is
    none or it is another model, under what was ``given``. Raises `SettingError`."""
    lineage = current.lineage if current else {}
    model = order.model or lineage.get("model", "din")
    base = None
    if lineage.get("model") == model:
        base = {**lineage["options"], **lineage["fit"]}
    config, how = settings(schema.name, model, order.given, base)
    hold(schema, config, how)
    return model, config, how


def _about(
    order: Order,
    repository: Repository,
    logs: Logs,
    window: Window,
    current: Version | None,
) -> dict[str, Any]:
    """What run.json says of what is trained."""
    model, config, how = _configured(order, logs.schema, current)
    warm = None if order.cold or current is None else current.state
    if warm and not state.there(repository.folder, warm):  # as when versions alone were copied
        warm = None
    return {
        "model": model,
        "options": plain(asdict(config)),
        "fit": plain(asdict(how)),
        "seed": order.seed,
        "threads": order.threads,
        "data": str(order.source.schema.parent.resolve()),
        "logs": digest(logs),
        "days": str(window),
        "forget_days": order.forget_days,
        "held_out_from": current.learnt_until if current else 0,
        "warm": warm,
    }


def _job(order: Order, about: Mapping[str, Any]) -> str:
    """Names the job; the version that it starts from is not part of it, since its own result
    becomes that."""
    left = ("threads", "data", "held_out_from", "warm")
    what = {key: value for key, value in about.items() if key not in left} | {"cold": order.cold}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _train(
    run: Run,
    logs: Logs,
    about: Mapping[str, Any],
    repository: Repository,
    order: Order,
    update: Update,
) -> None:
    """Train the run, or on from where it was killed; a finished one is left as it is."""
    try:
        run.found(about)
    except RunError:  # it went on from what is no longer the current version
        _remove(run)
    if run.found(about) and run.results():
        return
    start = state.find(repository.folder, about["warm"]) if about["warm"] else None
    data = Path(about["data"])
    encoded = encode(logs, data, update, start=start, forget_days=order.forget_days)
    train(run, encoded, about, update, start=start)


def _evidence(
    run: Run,
    logs: Logs,
    repository: Repository,
    current: Version | None,
    window: Window,
    order: Order,
) -> dict[str, Evidence]:
    """The current version sees the logs in the form of its own schema."""
    bundle = repository.open(current.number) if current else None
    theirs = logs
    if bundle is not None and bundle.schema != logs.schema:
        raw, _ = order.source.read(window, bundle.folder / "schema.toml")
        theirs, _ = _unlearnt(cut(raw, window, order.validation, order.skipped), current)
        if not same_impressions(logs, theirs):
            theirs = recast(logs, bundle.schema)
    return gather(run, logs, bundle, theirs, current.metrics if current else {}, window)


def _lineage(outcome: Outcome, window: Window) -> dict[str, Any]:
    """What the version's manifest says of the retraining that it is of."""
    about = {
        "days": [str(window.first), str(window.last)],
        "job": outcome.job,
        "current": outcome.current,
        "warm": outcome.warm,
    }
    return {"retrain": about}


def _conclude(
    order: Order,
    repository: Repository,
    labels: LabelFile,
    outcome: Outcome,
    version: int,
    run: Run,
) -> Outcome:
    """Label a version that was published, and clear away what made it.

    Who has made another version stable since it was compared with the current one knows more.
    """
    label, why = "stable", f"retrained on {outcome.window}"
    compared = record.version(repository, version).lineage.get("retrain", {}).get("current")
    over = (None, compared, version)
    try:
        if order.canary is not None and outcome.current not in (None, version):
            labels.start_canary(version, order.canary, why, over)
            label = "canary"
        else:
            labels.promote(version, why, over)
    except (PinnedError, MovedError) as error:
        label = "none"
        outcome = replace(outcome, reasons=(f"version {version} has no label: {error}",))
    _remove(run)
    record.tidy(repository, labels.read())
    folder = repository.folder / str(version)
    return replace(outcome, status="published", version=version, label=label, report=folder)


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write a report into a folder, whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, content in files.items():
        (unfinished / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    return unfinished.rename(folder)


def _remove(run: Run) -> None:
    shutil.rmtree(run.folder, ignore_errors=True)
