"""Two tasks through the whole line: all commands, a real service, one probability per task."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.contract.ids import keys
from model.contract.repository import Repository
from tests.e2e.test_line import trained
from tests.support import Service, running_redis
from training.evidence import gather
from training.logs import Logs
from training.run import Run
from training.window import Window

TASKS = ("ctr", "conversion")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, run/, repository/ and predictions of PLE whose conversions happen within clicks."""
    folder = tmp_path_factory.mktemp("tasks")
    data, run = folder / "data", folder / "run"
    trained(
        "prepare", "--source", "synthetic", "--conversions", "--users", "40",
        "--out", data,
    )  # fmt: skip
    chosen = ["attention=[6]", "head=[8]", "expert=[8]", "epochs=1", 'product_of=["ctr"]']
    chosen += ["task_weights=[1, 2]"]
    settings = [part for each in chosen for part in ("--set", each)]
    trained(
        "fit", "--data", data, "--model", "ple", "--out", run, "--threads", "1",
        *settings,
    )  # fmt: skip
    trained("evaluate", "--run", run, "--predictions", folder / "predictions.parquet")
    trained("export", "--run", run, "--repository", folder / "repository")
    return folder


@pytest.fixture(scope="module")
def service(line: Path) -> Iterator[Service]:
    with (
        running_redis(line) as redis,
        Service(line / "repository", redis.url, log=line / "log") as started,
    ):
        yield started


def requests(line: Path, users: int) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Of some users the last page: as a request, and what evaluate said of its impressions."""
    events = pl.read_parquet(line / "data" / "events.parquet").with_row_index("at")
    said = pl.read_parquet(line / "predictions.parquet").drop("user", "item")
    test = events.filter(pl.col("split") == "test").hstack(said)
    budget = dict(pl.read_parquet(line / "data" / "users.parquet").rows())
    for user in test["user_id"].unique(maintain_order=True).head(users):
        mine = test.filter(pl.col("user_id") == user)
        page = mine.filter(pl.col("ts") == pl.col("ts").max())
        past = events.filter(
            (pl.col("user_id") == user) & pl.col("behaviour") & (pl.col("ts") < page["ts"][0])
        )
        request = {
            "user_id": f"{user} sent",
            "user": {"budget": budget[user]},
            "history": past.select("item_id", "ts").to_dicts(),
        }
        yield request, page


def test_each_task_is_served_with_the_probability_of_evaluate(line: Path, service: Service) -> None:
    """Row form, with reasons: ctr and conversion of each candidate, as they were offline."""
    differ = 0.0
    for request, page in requests(line, 5):
        for row in page.iter_rows(named=True):
            answer = service.score(
                **request, context={"position": row["position"]}, candidates=[row["item_id"]],
                explain=2,
            )  # fmt: skip
            assert answer.status_code == 200, answer.text
            [score] = answer.json()["scores"]
            for task in TASKS:
                assert score[task] == pytest.approx(row[f"{task}_probability"], abs=1e-5)
            assert len(score["because"]) == 2
            differ = max(differ, abs(score["ctr"] - score["conversion"]))
    assert differ > 0.01


def test_columns_have_a_list_per_task(line: Path, service: Service) -> None:
    """As JSON and as bytes: the numbers of the row form."""
    request, page = next(requests(line, 1))
    body = {**request, "context": {"position": "0"}}
    items = page["item_id"].to_list()
    rows = service.score(**body, candidates=items).json()["scores"]
    found = service.client.post("/score/columns", json={**body, "item_ids": items}).json()
    for task in TASKS:
        assert found[task] == pytest.approx([row[task] for row in rows], abs=1e-6)

    rows = service.score(user_id="nobody", candidates=items).json()["scores"]
    asked = struct.pack("<4sIII", b"DIN1", len(items), 0, 6) + b"nobody\0\0" + keys(items).tobytes()
    sort = {"Content-Type": "application/vnd.dinserve"}
    answer = service.client.post("/score/columns", content=asked, headers=sort).content
    assert struct.unpack_from("<4sII", answer) == (b"DIN1", len(items), 2)
    by_task = np.frombuffer(answer, "<f4", 2 * len(items), 32).reshape(2, -1)
    for task, values in zip(TASKS, by_task, strict=True):
        np.testing.assert_allclose(values, [row[task] for row in rows], atol=1e-6)


def test_each_task_is_measured(line: Path) -> None:
    """run.json has the metrics of the second task under its name, on validation and test."""
    about = json.loads((line / "run" / "run.json").read_text(encoding="utf-8"))
    for split in ("validation", "test"):
        measured = about["metrics"][split]
        assert {name for name in measured if "." not in name} == {
            name.removeprefix("conversion.") for name in measured if "." in name
        }
    assert len(about["calibration"]["slope"]) == 2
    assert about["fit"]["task_weights"] == [1, 2]
    assert about["options"]["product_of"] == ["ctr"]


def test_the_gate_compares_tasks_of_the_same_name(line: Path) -> None:
    """What the run and its published version say of the test impressions, for each task."""
    logs, run = Logs.read(line / "data"), Run(line / "run")
    version = Repository.find(line / "repository").open(1)
    window = Window(date(1970, 1, 1), date(1970, 1, 2))
    found = gather(run, logs, version, logs, version.metrics, window)
    predictions = pl.read_parquet(line / "predictions.parquet")
    assert list(found) == list(TASKS)
    for task, evidence in found.items():
        expected = predictions[f"{task}_probability"].to_numpy()
        np.testing.assert_allclose(evidence.candidate, expected, atol=1e-6)
        np.testing.assert_allclose(evidence.current, expected, atol=1e-5)
        assert evidence.label.tolist() == predictions[f"{task}_label"].to_list()
    promised = version.metrics["test"]
    assert found["conversion"].promised == {
        name: promised[f"conversion.{name}"] for name in ("gauc", "auc")
    }
