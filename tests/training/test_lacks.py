"""Labels of one class, users with one event, splits without impressions: said, and handled."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest

from tests.training.test_job import ONE, QUICK, command
from training.lacks import lacks
from training.logs import Logs

FIT = (*ONE, *QUICK, "--set", "attention=[6]")


def altered(logs: Logs, folder: Path, **columns: pl.Expr) -> Path:
    """Logs with other columns of events, written."""
    events = logs.events.with_columns(**columns)
    Logs(logs.schema, events, logs.items, logs.users, logs.schema_text).write(folder)
    return folder


def where(split: str, then: int | None, task: str) -> pl.Expr:
    """A task whose labels of a split are all alike."""
    return pl.when(pl.col("split") == split).then(then).otherwise(task).cast(pl.Int8)


def test_sound_logs_lack_nothing(shop_logs: Logs) -> None:
    """Users of one event are the only thing that may be said of them."""
    often = shop_logs.events.filter(pl.len().over("user_id") > 1)
    logs = Logs(shop_logs.schema, often, shop_logs.items, shop_logs.users, shop_logs.schema_text)
    assert lacks(logs.written()) == []


def test_what_logs_lack_is_said(shop_logs: Logs) -> None:
    """Each split and task by its name, and the users by their number."""
    test = pl.col("split") == "test"
    events = shop_logs.events.with_columns(
        split=pl.when(pl.col("split") != "validation").then("split").otherwise(None),
        buy=where("train", 0, "buy"),
        click=where("test", 1, "click"),
        user_id=pl.when(test & (pl.col("ts") == pl.col("ts").max()))
        .then(pl.lit("once"))
        .otherwise("user_id"),
    )
    assert events.filter(pl.col("user_id") == "once").height >= 1
    alone = events.group_by("user_id").len().filter(pl.col("len") == 1).height
    logs = Logs(shop_logs.schema, events, shop_logs.items, shop_logs.users, shop_logs.schema_text)
    said = lacks(logs.written())
    assert said[:3] == [
        "no validation impressions: a fit keeps the last weights and calibrates nothing",
        "every buy of train is 0: a model learns nothing of it",
        "every click of test is 1: it can't be ranked",
    ]
    assert said[3:] == (
        [f"users with one event only, and no history before it: {alone:,}"] if alone else []
    )


def test_a_user_of_one_event_is_counted(shop_logs: Logs) -> None:
    """Here every event is of a user of its own."""
    events = shop_logs.events.with_columns(user_id=pl.int_range(pl.len()).cast(pl.String))
    logs = Logs(shop_logs.schema, events, shop_logs.items, shop_logs.users, shop_logs.schema_text)
    assert lacks(logs.written()) == [
        f"users with one event only, and no history before it: {events.height:,}"
    ]


def without(split: str, logs: Logs, folder: Path) -> Path:
    """Logs whose impressions of a split are behaviours only, written."""
    left = pl.when(pl.col("split") != split).then("split")
    tasks = {task: pl.when(pl.col("split") != split).then(task) for task in ("click", "buy")}
    kept = {"behaviour": pl.col("behaviour") | (pl.col("split") == split)}
    return altered(logs, folder, split=left, **tasks, **kept)


def test_without_validation_the_last_weights_are_kept_uncalibrated(
    shop_logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, and such a run is evaluated and exported as any other."""
    data, run = without("validation", shop_logs, tmp_path / "data"), tmp_path / "run"
    assert command("fit", "--data", data, "--out", run, *FIT) == 0
    said = capsys.readouterr().err
    assert (
        "validation: no impressions: the last weights are kept, and nothing is calibrated" in said
    )
    found = json.loads((run / "run.json").read_text())
    assert found["progress"]["best_step"] == found["progress"]["step"] > 1
    assert found["progress"]["evaluations"] == []
    assert found["metrics"]["validation"] == {}
    assert found["calibration"] == {"slope": [1.0, 1.0], "offset": [0.0, 0.0]}
    assert found["metrics"]["test"]["impressions"] > 0
    assert command("evaluate", "--run", run) == 0
    assert command("export", "--run", run, "--repository", tmp_path / "repository") == 0


@pytest.mark.parametrize("split", ["train", "test"])
def test_fit_refuses_logs_without_a_split(
    shop_logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    """One line that names the file, the column and the split; exit code 1; nothing written."""
    data = without(split, shop_logs, tmp_path / "data")
    assert command("fit", "--data", data, "--out", tmp_path / "run", *FIT) == 1
    expected = f"split: expected impressions with split {split}, found none"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_fit_refuses_training_labels_of_one_class(
    shop_logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no task has both there is nothing to learn; the error says what was found."""
    tasks = {"click": where("train", 1, "click"), "buy": where("train", 0, "buy")}
    data = altered(shop_logs, tmp_path / "data", **tasks)
    assert command("fit", "--data", data, "--out", tmp_path / "run", *FIT) == 1
    expected = "click: expected both labels of some task among the train impressions, found only"
    assert f"{expected} click 1, buy 0" in capsys.readouterr().err


def test_validation_labels_of_one_class_go_by_the_log_loss(
    shop_logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights that are kept are those of the least loss, and no figure is a NaN."""
    tasks = {task: where("validation", 0, task) for task in ("click", "buy")}
    data = altered(shop_logs, tmp_path / "data", **tasks)
    run = tmp_path / "run"
    many = ("--set", "evaluations=4", "--set", "epochs=2", "--set", "patience=9")
    assert command("fit", "--data", data, "--out", run, *FIT, *many) == 0
    found = json.loads((run / "run.json").read_text())
    progress, validation = found["progress"], found["metrics"]["validation"]
    losses = {each["step"]: each["loss"] for each in progress["evaluations"]}
    assert {each["by"] for each in progress["evaluations"]} == {"log_loss"}
    assert len(losses) > 4
    assert progress["best_step"] == min(losses, key=lambda step: losses[step])
    assert "auc" not in validation
    assert all(math.isfinite(value) for value in (*validation.values(), *losses.values()))
    assert command("evaluate", "--run", run) == 0
    assert "nan" not in capsys.readouterr().err.lower()


def test_test_labels_of_one_class_leave_the_ranking_out(
    shop_logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table shows a dash for what such labels do not define."""
    tasks = {task: where("test", 1, task) for task in ("click", "buy")}
    data = altered(shop_logs, tmp_path / "data", **tasks)
    assert command("fit", "--data", data, "--out", tmp_path / "run", *FIT) == 0
    found = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["test"]
    assert not {"auc", "gauc", "normalised_entropy"} & set(found)
    assert math.isfinite(found["log_loss"])
    assert "nan" not in capsys.readouterr().err.lower()
