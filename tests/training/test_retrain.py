"""Retraining as a whole: what is published, refused, gone on from and left alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.contract.bundle import Bundle
from model.contract.encode import Encoder
from model.contract.labels import LabelFile
from model.contract.log import Erased
from model.contract.repository import Repository
from model.network import Network
from terminal.progress import Update
from tests.support import ROOT
from tests.training import days
from tests.training.collecting import collect
from training import publish, record, retrain
from training.calibrate import Calibration
from training.export import export
from training.gate import Rules
from training.join import Rules as Joining
from training.lease import Lease, LeaseError
from training.logs import Logs
from training.retrain import ErasedError, Order, OrderError, Outcome
from training.source import Loop, Prepared

SMALL = (
    "dim=4", "head=[8]", "attention=[6]", "size=256", "epochs=1", "evaluations=1", "rate=0.02",
    "embedding_rate=0.05",
)  # fmt: skip
# Some 600 impressions decide here; the defaults are for thousands.
EASY = Rules(
    impressions=100, positives=20, ranking=0.2, log_loss=0.5, calibration_low=0.5, drop=0.4,
    gain=-1, calibration_high=2.0, slice_ranking=0.5, slice_log_loss=2.0,
    slice_calibration_low=0.3, slice_calibration_high=3.0,
)  # fmt: skip


def silent(*_: object) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def logs() -> Logs:
    """Six days."""
    return days.world(6)


@pytest.fixture(scope="module")
def first(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A folder with the logs of four days in data/, and a repository where they were retrained on;
    what came of it."""
    folder = tmp_path_factory.mktemp("first")
    days.until(logs, 3).write(folder / "data")
    return folder, retrain.retrain(order(folder), silent)


@pytest.fixture(autouse=True, scope="module")
def one_graph_each() -> Iterator[None]:
    """The graph of one and the same network is made once: most tests retrain on the same days."""
    graphs: dict[bytes, bytes] = {}

    def exported(
        network: Network, calibration: Calibration, encoder: Encoder, update: Update
    ) -> bytes:
        values = [*network.state_dict().values(), calibration.slope, calibration.offset]
        key = hashlib.sha256(f"{encoder.schema.fingerprint} {network}".encode())
        for value in values:
            key.update(np.asarray(value).tobytes())
        if key.digest() not in graphs:
            graphs[key.digest()] = export(network, calibration, encoder, update)
        return graphs[key.digest()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "export", exported)
        yield


@pytest.fixture
def after(first: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of the folder after the first retraining."""
    shutil.copytree(first[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def order(folder: Path, number: int = 3, **more: Any) -> Order:
    """Retrain on the four days that end with day ``number``."""
    more = {"given": SMALL, "rules": EASY, "threads": 1, "days": 4, **more}
    return Order(folder / "repository", Prepared(folder / "data"), last=days.day(number), **more)


def repository(folder: Path) -> Repository:
    return Repository(folder / "repository", "synthetic")


def opened(folder: Path, version: int) -> Bundle:
    return repository(folder).open(version)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lease."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): p.read_bytes() for p in files if "lease" not in p.name}


def test_the_first_version_is_published_with_its_report(first: tuple[Path, Outcome]) -> None:
    """It is stable; the report lies in its folder; the lineage says of which days and data."""
    folder, outcome = first
    assert (outcome.status, outcome.version, outcome.label) == ("published", 1, "stable")
    assert (outcome.current, outcome.warm, outcome.reasons) == (None, False, ())
    bundle = opened(folder, 1)
    assert outcome.report == bundle.folder
    assert {"report.html", "report.json"} <= set(bundle.manifest["files"])
    report = json.loads((bundle.folder / "report.json").read_bytes())
    assert report["overall"] == outcome.metrics
    assert report["overall"]["candidate"]["ranking"][0] > 0.5
    lineage = bundle.manifest["lineage"]
    window = [str(days.day(0)), str(days.day(3))]
    assert lineage["retrain"] == {
        "days": window, "job": outcome.job, "current": None, "warm": False
    }  # fmt: skip
    splits = report["impressions"]
    assert sum(splits.values()) == 4 * 4 * 10 * 60
    # 16 pages of 600: 85 % and 92.5 % of them fall into the 14th and 15th, cut where these begin.
    assert splits == {"train": 13 * 600, "validation": 600, "test": 2 * 600}
    assert sum(bundle.metrics["score_histogram"]["ctr"]) == splits["validation"]
    assert LabelFile(repository(folder), "").read().stable == 1
    assert [path.name for path in (folder / "repository/synthetic/.retrain").iterdir()] == [
        "lease.1"
    ]


def test_the_same_days_again_are_nothing_new(after: Path) -> None:
    """Nothing is trained, nothing is written."""
    before = content(after)
    outcome = retrain.retrain(order(after), silent)
    assert (outcome.status, outcome.version) == ("nothing_new", None)
    assert outcome.reasons == ("these days, data and settings are version 1",)
    assert content(after) == before


def test_late_clicks_are_something_new(after: Path, logs: Logs) -> None:
    """The same days with other labels are another job, and so are other settings."""
    late = days.relabel(
        days.until(logs, 3), 3, lambda shown: (shown["ctr"] == 1) | (shown["item_id"] == "7")
    )
    late.write(after / "data")
    dry = order(after, dry_run=True)
    one = retrain.retrain(dry, silent)
    assert one.status == "would_publish"
    other = retrain.retrain(replace(dry, given=(*SMALL, "epochs=0.5")), silent)
    assert other.status == "would_publish"
    jobs = {opened(after, 1).manifest["lineage"]["retrain"]["job"], one.job, other.job}
    assert len(jobs) == 3


def test_days_that_the_current_version_has_learnt_from_are_not_judged_by(
    after: Path, logs: Logs
) -> None:
    """An older window is nothing new, whatever it starts from, and nothing is trained; of one that
    ends with the same day, only what was held out then counts."""
    asked = {"days": 3, "cold": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.retrain.train", None)
        before = content(after)
        for more in ({}, {"cold": False}, {"again": True}):
            outcome = retrain.retrain(order(after, 2, **{**asked, **more}), silent)
            assert (outcome.status, outcome.version) == ("nothing_new", None)
            assert outcome.reasons == (
                "these days are not newer than what version 1 has learnt from",
            )
        assert content(after) == before
        few = order(after, 3, **asked, validation=0.5, rules=replace(EASY, impressions=1201))
        outcome = retrain.retrain(few, silent)
        # Of the newest quarter of the last 3 days, 1,800, version 1 had 1,200 for its gate.
        assert outcome.status == "refused"
        assert outcome.reasons[0].startswith("too few impressions to tell: 1,200, ")
        assert outcome.reasons[0].endswith("; version 1 has learnt from 600 more")
    enough = order(after, 3, **asked, validation=0.5, again=True, dry_run=True)
    outcome = retrain.retrain(enough, silent)
    assert outcome.status == "would_publish"
    assert outcome.report is not None
    report = json.loads((outcome.report / "report.json").read_bytes())
    assert report["impressions"] == {"train": 3600, "validation": 2400, "test": 1200}
    assert outcome.metrics["impressions"] == 1200


def test_a_version_says_until_when_it_has_learnt(first: tuple[Path, Outcome], logs: Logs) -> None:
    """That is where the impressions that it was judged on begin, or just before."""
    folder, _ = first
    (version,) = record.versions(repository(folder))
    shown = days.until(logs, 3).events.filter(pl.col("split").is_not_null())["ts"].sort()
    assert shown[14 * 600 - 1] * 1000 < version.learnt_until <= shown[14 * 600] * 1000


def test_the_next_day_goes_on_from_the_current_version(after: Path, logs: Logs) -> None:
    """Known ids keep what was learnt, and the settings are those of before; the new version is
    stable and the one before is what a rollback brings back."""
    days.until(logs, 4).write(after / "data")
    outcome = retrain.retrain(order(after, 4, given=()), silent)
    assert (outcome.status, outcome.version, outcome.label) == ("published", 2, "stable")
    assert (outcome.current, outcome.warm) == (1, True)
    one, two = opened(after, 1), opened(after, 2)
    assert two.manifest["lineage"]["options"] == one.manifest["lineage"]["options"]
    report = json.loads((two.folder / "report.json").read_bytes())
    known = report["carried"]["tables"]["item_id"]["known"]
    assert known == len(one.encoder.tables["item_id"].sorted_keys)  # type: ignore[attr-defined]
    assert report["carried"]["fresh"] == []
    assert set(report["overall"]["current"]) == {"ranking", "log_loss", "calibration"}
    assert LabelFile(repository(after), "").rollback().stable == 1


def test_a_cold_start_goes_on_from_nothing(after: Path, logs: Logs) -> None:
    """The report says so, and the current version is still compared with."""
    days.until(logs, 4).write(after / "data")
    outcome = retrain.retrain(order(after, 4, cold=True, dry_run=True), silent)
    assert (outcome.status, outcome.current, outcome.warm) == ("would_publish", 1, False)
    assert outcome.report is not None
    assert json.loads((outcome.report / "report.json").read_bytes())["carried"] is None
    assert "current" in outcome.metrics


def test_without_a_state_it_starts_from_nothing(after: Path, logs: Logs) -> None:
    """As where versions alone were copied to another repository."""
    shutil.rmtree(repository(after).folder / ".state")
    days.until(logs, 4).write(after / "data")
    outcome = retrain.retrain(order(after, 4, dry_run=True), silent)
    assert (outcome.status, outcome.current, outcome.warm) == ("would_publish", 1, False)


def test_a_dry_run_leaves_its_training_to_the_real_one(after: Path, logs: Logs) -> None:
    """It publishes nothing; the same without --dry-run publishes what it had trained."""
    days.until(logs, 4).write(after / "data")
    dry = retrain.retrain(order(after, 4, dry_run=True), silent)
    assert dry.status == "would_publish"
    assert repository(after).versions() == [1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.retrain.train", None)
        real = retrain.retrain(order(after, 4), silent)
    assert (real.status, real.version, real.metrics) == ("published", 2, dry.metrics)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda shown: 1 - shown["ctr"], "the labels are doubtful"),
        (lambda shown: shown["ctr"].shuffle(seed=1), "not above that of chance, 0.5"),
    ],
)
def test_poisoned_labels_are_refused(
    after: Path, logs: Logs, change: Callable[[pl.DataFrame], pl.Series], expected: str
) -> None:
    """The report says why; the old version stays; the same once more is nothing new."""
    days.relabel(days.until(logs, 5), 4, change).write(after / "data")
    asked = order(after, 5, days=2, rules=replace(EASY, impressions=50, positives=10))
    outcome = retrain.retrain(asked, silent)
    assert outcome.status == "refused"
    assert any(expected in reason for reason in outcome.reasons)
    assert outcome.report is not None
    assert outcome.report.parent == repository(after).folder / "refused"
    report = json.loads((outcome.report / "report.json").read_bytes())
    assert (report["status"], report["reasons"]) == ("refused", list(outcome.reasons))
    assert outcome.reasons[0].split(":")[0] in (outcome.report / "report.html").read_text()
    assert repository(after).versions() == [1]
    assert LabelFile(repository(after), "").read().stable == 1
    again = retrain.retrain(asked, silent)
    assert again.reasons == ("these days, data and settings were refused",)


def test_too_few_impressions_are_refused_before_training(after: Path, logs: Logs) -> None:
    """The reason says how many there are and how many are needed; `--again` looks once more, and
    only with it other rules are asked."""
    days.until(logs, 4).write(after / "data")
    few = order(after, 4, rules=Rules(impressions=10_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.retrain.train", None)
        outcome = retrain.retrain(few, silent)
    assert outcome.status == "refused"
    assert "too few impressions to tell: 1,200, " in outcome.reasons[0]
    assert "needed are 10,000" in outcome.reasons[0]
    assert outcome.report is not None
    assert "Nothing was trained" in (outcome.report / "report.html").read_text()
    assert retrain.retrain(few, silent).status == "nothing_new"
    assert retrain.retrain(replace(few, again=True), silent).status == "refused"
    assert retrain.retrain(replace(few, rules=EASY), silent).status == "nothing_new"
    assert retrain.retrain(replace(few, rules=EASY, again=True), silent).status == "published"


def test_one_that_was_killed_goes_on_from_its_checkpoint(after: Path, logs: Logs) -> None:
    """kill -9 after an evaluation: the next one goes on there, and ends as an undisturbed one."""
    days.until(logs, 4).write(after / "data")
    folder = repository(after).folder
    given = [f"--set={each}" for each in (*SMALL, "evaluations=20")]
    command = [sys.executable, "-m", "training", "retrain", "--threads=1", "--window-days=4"]
    command += ["--repository", str(after / "repository"), "--data", str(after / "data")]
    easy = [f"--rule={name}={value}" for name, value in asdict(EASY).items()]
    process = subprocess.Popen([*command, *given, *easy], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not list(folder.glob(".retrain/*/checkpoint-*")):
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    lease = folder / ".retrain" / "lease.2"
    assert json.loads(lease.read_text())["pid"] == process.pid
    lease.write_text("{}")
    os.utime(lease, (0, 0))  # as when its time is over

    samples: list[int] = []

    def count(stage: str, done: int, *_: object) -> None:
        samples.extend([done] if stage == "train" else [])

    asked = order(after, 4, given=(*SMALL, "evaluations=20"), dry_run=True)
    resumed = retrain.retrain(asked, count)
    assert samples[0] > 256  # the first step is not the first one of the training
    shutil.rmtree(record.work_folder(repository(after), resumed.window, str(resumed.job)))
    whole = retrain.retrain(asked, silent)
    assert resumed.status == whole.status == "would_publish"
    assert resumed.metrics == whole.metrics


def test_one_that_was_killed_after_publishing_is_concluded(after: Path, logs: Logs) -> None:
    """The version gets its label and the work goes, without another training."""
    days.until(logs, 4).write(after / "data")
    asked = order(after, 4, canary=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelFile, "start_canary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retrain.retrain(asked, silent)
    assert repository(after).versions() == [1, 2]
    assert LabelFile(repository(after), "").read().stable == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.retrain.train", None)
        outcome = retrain.retrain(asked, silent)
    assert (outcome.status, outcome.version, outcome.label) == ("published", 2, "canary")
    assert repository(after).versions() == [1, 2]
    now = LabelFile(repository(after), "").read()
    assert (now.stable, now.canary, now.canary_share) == (1, 2, 0.2)
    assert retrain.retrain(asked, silent).status == "nothing_new"


def test_of_two_at_once_one_is_turned_away(after: Path) -> None:
    """It says who holds the lease, and touches nothing."""
    before = content(after)
    held = Lease(repository(after).folder / record.WORK, "lease").held()
    with held, pytest.raises(LeaseError, match=f"held by process {os.getpid()}"):
        retrain.retrain(order(after), silent)
    assert content(after) == before


def test_who_lost_the_lease_does_not_publish(after: Path, logs: Logs) -> None:
    """As after a sleep of the machine: another one may have published since."""
    days.until(logs, 4).write(after / "data")

    def lose(stage: str, *_: object) -> None:
        if stage == "compare":
            (repository(after).folder / ".retrain" / "lease.3").touch()

    with pytest.raises(LeaseError, match="lost to another"):
        retrain.retrain(order(after, 4), lose)
    assert repository(after).versions() == [1]


def test_where_a_version_is_pinned_the_new_one_has_no_label(after: Path, logs: Logs) -> None:
    """It is published, for whoever unpins; the outcome says so."""
    LabelFile(repository(after), "test").pin(1)
    days.until(logs, 4).write(after / "data")
    folder = repository(after).folder

    def copied(*_: object, **__: object) -> tuple[Repository, int, float]:
        shutil.copytree(folder / "1", folder / "2")  # a version as any other, and sooner there
        return repository(after), 2, 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.retrain.publish", copied)
        outcome = retrain.retrain(order(after, 4), silent)
    assert (outcome.status, outcome.version, outcome.label) == ("published", 2, "none")
    assert LabelFile(repository(after), "").read().stable == 1


@pytest.mark.parametrize("canary", [None, 0.2])
def test_who_changes_what_is_stable_meanwhile_is_not_overruled(
    after: Path, logs: Logs, canary: float | None
) -> None:
    """The new version is published without a label, and the outcome says why."""
    days.until(logs, 4).write(after / "data")
    folder, labels = repository(after).folder, LabelFile(repository(after), "operator")
    shutil.copytree(folder / "1", folder / "2")
    labels.promote(2)

    def roll_back(stage: str, *_: object) -> None:
        if stage == "compare":
            labels.rollback("2 is bad")

    outcome = retrain.retrain(order(after, 4, canary=canary), roll_back)
    assert (outcome.status, outcome.current) == ("published", 2)
    assert (outcome.version, outcome.label) == (3, "none")
    assert outcome.reasons == ("version 3 has no label: version 1 has become the stable one since",)
    now = labels.read()
    assert (now.stable, now.canary, now.changes[-1].why) == (1, None, "2 is bad")


def test_a_new_schema_goes_on_from_the_old_one(after: Path, logs: Logs) -> None:
    """A field more: what was learnt is carried, the current version is judged by its own schema."""
    until = days.until(logs, 4)
    text = until.schema_text + '\n[[context]]\nname = "hour"\n'
    (after / "new.toml").write_text(text)
    hour = (pl.col("ts") // 3600 % 24).cast(pl.String)
    events = until.events.with_columns(
        pl.when(pl.col("split").is_not_null()).then(hour).alias("hour")
    )
    Logs.build(after / "new.toml", events, until.items, until.users).write(after / "data")
    outcome = retrain.retrain(order(after, 4, dry_run=True), silent)
    assert (outcome.status, outcome.current, outcome.warm) == ("would_publish", 1, True)
    assert outcome.report is not None
    report = json.loads((outcome.report / "report.json").read_bytes())
    assert report["carried"]["fresh"] == ["embeddings.tables.hour.weight"]
    assert report["overall"]["current"]["ranking"][0] > 0.55


def test_collected_logs_become_a_version(logs: Logs, tmp_path: Path) -> None:
    """Impressions and clicks as a service logs them, joined; what was left out is reported."""
    days.collected(days.until(logs, 2), tmp_path / "logs")
    source = Loop(tmp_path / "logs", Joining())
    asked = order(tmp_path, days=3, dry_run=True, given=(*SMALL, "epochs=3"))
    asked = replace(asked, source=source, last=None)
    outcome = retrain.retrain(asked, silent)
    assert (outcome.status, str(outcome.window)) == (
        "would_publish",
        f"{days.day(0)}_{days.day(2)}",
    )
    assert outcome.report is not None
    report = json.loads((outcome.report / "report.json").read_bytes())
    assert sum(report["impressions"].values()) == (3 * 4 - 1) * 600
    left_out = report["joined"]["left_out"]
    assert list(left_out.values()) == [600]  # of the last page, which may still be clicked
    assert report["joined"]["kept"] == (3 * 4 - 1) * 600
    page = (outcome.report / "report.html").read_text()
    assert "<td>too new</td>" in page


def test_who_is_erased_while_it_trains_is_not_published(logs: Logs, tmp_path: Path) -> None:
    """It fails and leaves nothing of the training behind; the next one is without the user. Who is
    not in these logs is no matter."""
    days.collected(days.until(logs, 2), tmp_path / "logs")
    asked = replace(order(tmp_path, 2, days=3), source=Loop(tmp_path / "logs", Joining()))
    user, now = logs.users["user_id"][0], 4_000_000_000_000

    def erase(who: str, stage: str, *_: object) -> None:
        if stage == "compare":
            collect(tmp_path / "logs", [Erased(who, now)])

    with pytest.raises(ErasedError, match=r"^1 of the users were erased meanwhile") as told:
        retrain.retrain(asked, partial(erase, user))
    assert f" {user} " not in str(told.value)
    assert repository(tmp_path).versions() == []
    left = [path.name for path in (repository(tmp_path).folder / ".retrain").iterdir()]
    assert left == ["lease.1"]
    outcome = retrain.retrain(asked, partial(erase, "nobody"))
    assert outcome.status == "published"
    assert outcome.report is not None
    report = json.loads((outcome.report / "report.json").read_bytes())
    assert report["joined"]["kept"] == (3 * 4 - 1) * 590


def test_days_without_impressions_are_nothing_new(after: Path) -> None:
    """Asked for or not, nothing is trained on nothing."""
    assert retrain.retrain(order(after, 40), silent).status == "nothing_new"
    skipped = tuple(map(days.day, range(4)))
    outcome = retrain.retrain(order(after, skipped=skipped), silent)
    assert outcome.reasons == ("no impressions in these days",)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"name": "shop"}, "--name: expected synthetic"),
        ({"first": days.day(9)}, "--from: expected a day not after 2024-10-07"),
    ],
)
def test_orders_that_contradict_themselves(
    after: Path, more: dict[str, Any], expected: str
) -> None:
    """The error names the option."""
    with pytest.raises(OrderError, match=expected):
        retrain.retrain(order(after, **more), silent)
