"""The whole comparison on a shop's logs: what it reports, that it goes on, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from model.din import Attention
from model.network import Network
from terminal.progress import quiet
from tests.support import ROOT
from training import metrics
from training.__main__ import main
from training.comparison import command as command_module
from training.comparison import cost, entrants, job, page, plots, report
from training.comparison.order import Order
from training.comparison.paired import over_seeds, spread
from training.comparison.work import STAGE, Work
from training.logs import Logs
from training.run import Run
from training.trainer import TrainingError

MODELS = ("DIN=din:attention=[6]", "base")
SETTINGS = ("dim=4", "head=[8]", "size=64", "evaluations=4", "epochs=1")
METRICS = ("gauc", "auc", "log_loss", "normalised_entropy", "ece", "calibration")


def command(*arguments: object) -> int:
    """Run a command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training", *map(str, arguments)])
        patch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def data(shop_logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    shop_logs.write(folder)
    return folder


def arguments(data: Path, out: Path, *more: object) -> list[object]:
    models = [word for model in MODELS for word in ("--models", model)]
    given = [word for each in SETTINGS for word in ("--set", each)]
    return ["compare", "--data", data, "--out", out, "--threads", 1, *models, *given, *more]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A comparison's folder, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_module, "console", Console(file=screen, width=200))
        assert command(*arguments(data, out, "--seeds", 2)) == 0
    return out, screen.getvalue()


def reported(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def test_the_report_says_what_the_runs_measured(whole: tuple[Path, str]) -> None:
    """Each metric of each seed, RelaImpr of the same seeds, and both tests."""
    out, report = whole[0], reported(whole[0])
    assert list(report["models"]) == ["DIN", "base"]
    assert (report["baseline"], report["seeds"]) == ("base", 2)
    values: dict[tuple[str, str], list[float]] = {}
    for label, model in report["models"].items():
        runs = [Run(out / "runs" / label / f"seed-{seed}") for seed in (0, 1)]
        test = [run.about()["metrics"]["test"] for run in runs]
        for name in (*METRICS, *(f"buy.{name}" for name in METRICS)):
            values[label, name] = [each[name] for each in test]
            assert model["metrics"][name]["values"] == values[label, name]
            assert model["metrics"][name]["mean"] == pytest.approx(np.mean(values[label, name]))
        weights = sum(each.numel() for each in runs[0].network(runs[0].encoder()).parameters())
        assert sum(model["parameters"].values()) == weights
        assert model["onnx_bytes"] == (runs[0].folder / "model.onnx").stat().st_size
        assert len(report["timings"]["samples_per_s"][label]["values"]) == 2
    din = report["models"]["DIN"]
    unmeasured: list[str] = []
    for name in ("auc", "gauc", "buy.auc", "buy.gauc"):
        if min(values["base", name]) <= 0.5:  # a baseline no better than chance measures nothing
            assert f"rela_impr.{name}" not in din["metrics"]
            unmeasured.append(name)
            continue
        expected = [
            metrics.rela_impr(ours, theirs)
            for ours, theirs in zip(values["DIN", name], values["base", name], strict=True)
        ]
        assert din["metrics"][f"rela_impr.{name}"]["values"] == pytest.approx(expected)
    told = [note.partition(":")[0] for note in report["notes"] if "No RelaImpr" in note]
    assert told == ([f"No RelaImpr of {', '.join(unmeasured)}"] if unmeasured else [])
    against = din["against"]["baseline"]
    for task in ("", "buy."):
        for name in (f"{task}{metric}" for metric in METRICS):
            found = over_seeds(values["DIN", name], values["base", name])
            assert found is not None
            assert against[name]["seeds"] == found.plain()
    for name in ("gauc", "buy.gauc"):
        users = against[name]["users"]
        assert users["difference"] == pytest.approx(against[name]["seeds"]["difference"])
        assert users["low"] < users["high"]
    assert set(din["against"]) | set(report["models"]["base"]["against"]) == {"baseline", "best"}
    assert report["models"][report["best"]]["metrics"]["gauc"]["mean"] == max(
        model["metrics"]["gauc"]["mean"] for model in report["models"].values()
    )


def test_rela_impr_is_of_runs_with_the_same_seed() -> None:
    """A mean over seeds where each seed's baseline is better than chance, else there is none."""
    ours = {name: {"values": [0.7, 0.8]} for name in ("log_loss", "auc", "gauc")}
    base = {
        "log_loss": {"values": [1, 1]},
        "auc": {"values": [0.6, 0.7]},
        "gauc": {"values": [0.6, 0.4]},
    }
    found = report._rela_impr(ours, base)
    assert found.keys() == {"rela_impr.auc"}
    assert found["rela_impr.auc"]["values"] == pytest.approx([1.0, 0.5])
    assert found["rela_impr.auc"]["mean"] == pytest.approx(0.75)


def test_improvements_are_tested_over_seeds_too() -> None:
    """Against the baseline, which has none over itself, and against the best."""
    auc = {"DIN": [0.7, 0.8], "base": [0.6, 0.7], "ple": [0.8, 0.85]}
    models = {
        label: {
            "metrics": {
                "log_loss": spread([0.4, 0.5]),
                "auc": spread(each),
                "buy.auc": spread(each),
            }
        }
        for label, each in auc.items()
    }
    report._by_seed(models, "base", "ple")
    for label, model in models.items():
        for rival, against in model["against"].items():
            assert label != against["label"] == {"baseline": "base", "best": "ple"}[rival]
            for name in ("rela_impr.auc", "rela_impr.buy.auc"):
                ours, theirs = (
                    [metrics.rela_impr(*pair) for pair in zip(auc[x], auc["base"], strict=True)]
                    for x in (label, against["label"])
                )
                found = over_seeds(ours, theirs)
                assert found is not None
                assert against[name]["seeds"] == pytest.approx(found.plain())
    assert {label: set(model["against"]) for label, model in models.items()} == {
        "DIN": {"baseline", "best"},
        "base": {"best"},
        "ple": {"baseline"},
    }


def test_a_baseline_that_ranks_as_chance_does_is_told_once() -> None:
    """The note names what there is no RelaImpr of."""
    base = {
        "log_loss": {"values": [0.4, 0.4]},
        "auc": {"values": [0.6, 0.5]},
        "gauc": {"values": [0.6, 0.7]},
        "buy.gauc": {"values": [0.4, 0.7]},
    }
    [note] = report._no_better_than_chance("base", base)
    assert note.startswith("No RelaImpr of auc, buy.gauc: that of base, the baseline, is 0.5 ")
    better = {name: {"values": [0.51]} for name in base}
    assert report._no_better_than_chance("base", better) == []


def test_latency_is_of_a_hundred_behaviours(whole: tuple[Path, str]) -> None:
    """The shop keeps four, which is no matter."""
    report = reported(whole[0])
    assert report["latency_of"] == {"behaviours": 100, "candidates": 500, "calls": cost.ROUNDS}
    for found in report["timings"]["latency_ms"].values():
        assert 0 < found["quarter"] <= found["median"] <= found["three_quarters"]


def test_curves_come_from_the_runs(whole: tuple[Path, str]) -> None:
    """A loss for each step of these short runs, and every evaluation."""
    report = reported(whole[0])
    for model in report["models"].values():
        for curve in model["curves"]:
            steps = [step for step, _ in curve["losses"]]
            assert steps == list(range(1, steps[-1] + 1))
            assert {each["by"] for each in curve["evaluations"]} == {"gauc"}
            evaluated = {each["step"]: each["score"] for each in curve["evaluations"]}
            assert len(evaluated) >= 4
            assert evaluated[curve["best_step"]] == max(evaluated.values())


def test_a_run_of_a_comparison_is_the_run_of_fit(
    data: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    """Logs that were encoded once give the same weights, bit for bit."""
    given = [word for each in (*SETTINGS, "attention=[6]") for word in ("--set", each)]
    words = ("fit", "--data", data, "--out", tmp_path, "--threads", 1, "--seed", 1)
    assert command(*words, *given) == 0
    name = "weights.safetensors"
    same = (whole[0] / "runs" / "DIN" / "seed-1" / name).read_bytes()
    assert (tmp_path / name).read_bytes() == same


def test_the_page_needs_nothing_beside_it(whole: tuple[Path, str]) -> None:
    """No address, script or file; every plot is in it, and both labels."""
    text = (whole[0] / "report.html").read_text(encoding="utf-8")
    plain = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//|<script|<link|url\(|src=\"(?!data:image/png;)", plain)
    images = re.findall(r"src=\"data:image/png;base64,([\w+/=]+)\"", text)
    assert len(images) == 11  # of which three are users, and six of one task each
    assert len(set(images)) == 11
    for words in ("DIN", "base", "RelaImpr", "Over users", "over seeds", "T=100, N=500", "buy"):
        assert words in plain


def test_what_it_prints(whole: tuple[Path, str]) -> None:
    """A line for each run as it ends, a table, the notes and where the reports are."""
    out, printed = whole
    for at, (seed, label) in enumerate(
        ((seed, label) for seed in (0, 1) for label in ("DIN", "base")), 1
    ):
        assert f"{at} of 4 runs: {label}, seed {seed}: test gauc 0." in printed
    mean = reported(out)["models"]["DIN"]["metrics"]["gauc"]["mean"]
    assert f"{mean:.4f}" in printed
    assert f"{out}/report.html, {out}/report.json" in printed


def test_nothing_is_trained_twice(
    data: Path, whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same again trains and exports nothing, and more seeds train the new ones only."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    trained: list[tuple[str, int]] = []
    real = job.train

    def counted(run: Run, encoded: Any, about: Mapping[str, Any], *rest: Any, **more: Any) -> Any:
        trained.append((about["model"], about["seed"]))
        return real(run, encoded, about, *rest, **more)

    monkeypatch.setattr(job, "train", counted)
    monkeypatch.setattr(page, "html", lambda report: "")  # plots take seconds
    monkeypatch.setattr(cost, "export", lambda *_: pytest.fail("exported again"))
    assert command(*arguments(data, out, "--seeds", 2)) == 0
    assert trained == []
    assert undated(reported(out)) == undated(reported(whole[0]))
    assert command(*arguments(data, out, "--seeds", 3)) == 0
    assert trained == [("din", 2), ("base", 2)]


class Stopped(BaseException):
    """In place of a kill where no file is being written."""


def test_a_killed_comparison_goes_on_to_the_same_report(
    data: Path, whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 inside the second run, and an end while scores are read, between exports and
    while calls are timed: what is left is done, and all is as if nothing had happened.

    Exporting and plots take seconds; graphs are those of the whole comparison."""
    lineup = entrants.enter(data, MODELS, None, SETTINGS)
    order = Order(data, tmp_path / "out", lineup, 2, 1)
    words = [str(each) for each in arguments(data, order.out, "--seeds", 2)]
    second = order.out / "runs" / "base" / "seed-0"
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *words], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and not list(second.glob("checkpoint-*")):
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (order.out / "runs" / "DIN" / "seed-0" / "weights.safetensors").exists()
    assert not (order.out / "runs" / "base" / "seed-1" / "weights.safetensors").exists()

    def exported(network: Network, *_: object) -> bytes:
        label = "DIN" if isinstance(network.interest, Attention) else "base"
        return (whole[0] / "runs" / label / "seed-0" / "model.onnx").read_bytes()

    monkeypatch.setattr(cost, "export", exported)
    monkeypatch.setattr(cost, "parity", lambda *_: {})
    real = Work.done
    for stage in ("train", "scores", "graph", "turn"):

        def done(self: Work, kind: str, *rest: Any, stage: str = stage) -> None:
            real(self, kind, *rest)
            if kind.startswith(stage):
                raise Stopped

        monkeypatch.setattr(Work, "done", done)
        with pytest.raises(Stopped):
            job.compare(order, quiet, lambda line: None)
        assert not (order.out / "report.json").exists()
    monkeypatch.setattr(Work, "done", real)
    monkeypatch.setattr(page, "html", lambda report: "")
    told: list[str] = []
    seen: list[tuple[str, int, int]] = []

    def update(stage: str, now: int, whole: int, _: Mapping[str, float]) -> None:
        seen.append((stage, now, whole))

    job.compare(order, update, told.append)
    assert [stage for stage, _ in groupby(seen, key=itemgetter(0))][-1] == STAGE
    assert all(now < whole for stage, now, whole in seen[:-1] if stage == STAGE)
    assert seen[-1][1] == seen[-1][2]
    assert told == [f"{order.out}: going on with what is there", "4 of 4 runs are finished"]
    assert undated(reported(order.out)) == undated(reported(whole[0]))
    assert not list(order.out.rglob("*checkpoint*"))


def test_a_run_that_another_process_trains_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line; what both would write is that of one."""
    with Run(tmp_path / "runs" / "DIN" / "seed-0").alone():
        assert command(*arguments(data, tmp_path, "--seeds", 1)) == 1
    said = capsys.readouterr().err
    assert said.endswith("seed-0: another process trains this run\n")
    assert not list(tmp_path.rglob("run.json"))


def undated(report: dict[str, Any]) -> dict[str, Any]:
    """A report without timings."""
    return {name: value for name, value in report.items() if name != "timings"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--models dien2", "--models 'dien2': dien2: expected one of lr, "),
        ("--models din --models din", "expected a label unlike 'din'"),
        ("--models din:colour=red", "colour: expected an option of din"),
        ("--models din --set colour=red", "colour: expected an option of din"),
        ("--models din --baseline base", "--baseline base: expected one of din"),
        ("--seeds 0", "--seeds"),
        ("--threads 0", "--threads"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_a_wrong_option_exits_with_2_before_any_work(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    """The error names it and the choices; nothing is written."""
    out = tmp_path / "out"
    assert command("compare", "--data", data, "--out", out, *words.split()) == 2
    said = re.sub(r"[\s\u2502]+", " ", capsys.readouterr().err)
    assert expected in said
    assert not out.exists()


def test_other_settings_at_the_same_place_are_refused(
    data: Path, whole: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any training: the second model's would come after a new first one. Each is named,
    with both values."""
    out = tmp_path / "out"
    shutil.copytree(whole[0] / "runs" / "base", out / "runs" / "base")
    given = ("--seeds", 1, "--set", "dim=5", "--set", "epochs=0.4")
    assert command(*arguments(data, out, *given)) == 1
    said = "holds another run: dim is 4 and not 5, epochs is 1 and not 0.4; choose another --out"
    assert said in capsys.readouterr().err
    assert not (out / "runs" / "DIN").exists()


def relabelled(data: Path, folder: Path, **columns: pl.Expr) -> Path:
    shutil.copytree(data, folder)
    events = pl.read_parquet(folder / "events.parquet").with_columns(**columns)
    events.write_parquet(folder / "events.parquet")
    return folder


def test_labels_of_one_class_are_said_and_handled(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ranking and no test of it, and a page all the same. A model that can't be exported has
    no size and no latency, and a note says why."""
    zero = pl.when(pl.col("click").is_not_null()).then(0).cast(pl.Int8)
    spoilt = relabelled(data, tmp_path / "data", click=zero)

    def refuse(*_: object) -> bytes:
        raise cost.ParityError("N=1 T=0: a logit is off by 1")

    monkeypatch.setattr(cost, "export", refuse)
    out = tmp_path / "out"
    assert command(*arguments(spoilt, out, "--seeds", 1)) == 0
    report = reported(out)
    notes = "\n".join(report["notes"])
    for split in ("train", "validation", "test"):
        assert f"{split}, task click: all" in notes
    assert "One seed: no spread" in notes
    assert "base has no graph to serve: N=1 T=0: a logit is off by 1" in notes
    model = report["models"]["DIN"]
    assert not {"auc", "gauc", "rela_impr.auc", "normalised_entropy"} & model["metrics"].keys()
    assert {"log_loss", "ece", "buy.auc"} <= model["metrics"].keys()
    assert "gauc" not in model["against"].get("baseline", {})
    assert report["ranking"]["click"]["by"] == "log_loss"
    assert report["ranking"]["buy"]["by"] == "gauc"
    assert model["onnx_bytes"] is None
    assert report["timings"]["latency_ms"] == {}
    text = (out / "report.html").read_text("utf-8")
    assert "No user has test labels of both classes" in text
    assert "the best by mean test log loss of click is" in text
    assert plots.by_history(report, "click") is None
    assert plots.by_history(report, "buy") is not None


def test_an_empty_validation_set_is_said_and_handled(data: Path, tmp_path: Path) -> None:
    """The last weights are kept, and the page has no validation curve."""
    split = pl.when(pl.col("split") == "validation").then(pl.lit("train")).otherwise("split")
    spoilt = relabelled(data, tmp_path / "data", split=split)
    assert command(*arguments(spoilt, tmp_path / "out", "--seeds", 1)) == 0
    report = reported(tmp_path / "out")
    assert any(note.startswith("validation: no impressions") for note in report["notes"])
    [run] = report["models"]["DIN"]["curves"]
    assert run["evaluations"] == []
    assert run["best_step"] == run["losses"][-1][0]


def test_a_run_that_diverges_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, and which model and seed it was."""

    def broken(*_: object, **__: object) -> None:
        raise TrainingError("step 8: the loss is nan")

    monkeypatch.setattr(job, "train", broken)
    assert command(*arguments(data, tmp_path / "out")) == 1
    assert "error: DIN, seed 0: step 8: the loss is nan" in capsys.readouterr().err
