"""The loop's demo: what it measures, how it poisons, and a short run of all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deploy import demo_loop
from deploy.processes import ROOT, StepError
from training.collected import Collected
from training.world import PAGE

DAY = date(2026, 1, 5)
MIDNIGHT = 1767571200


def test_half_of_a_page_is_the_best_of_what_was_not_drawn() -> None:
    """The drawn half is as likely to hold any candidate, and no item stands twice."""
    score = np.random.default_rng(0).normal(size=(2000, 30))
    page = demo_loop._page(score, np.random.default_rng(1))
    assert page.shape == (2000, PAGE)
    assert all(len(set(row)) == PAGE for row in page.tolist())
    best, drawn = page[:, : PAGE // 2], page[:, PAGE // 2 :]
    left = np.argsort(-score, axis=1)
    for row in range(50):
        expected = [item for item in left[row].tolist() if item not in drawn[row]]
        assert best[row].tolist() == expected[: PAGE // 2]
    rank = np.argsort(left, axis=1)
    times = np.bincount(np.take_along_axis(rank, drawn, axis=1).ravel(), minlength=30)
    assert 250 < times.min() < times.max() < 420


def test_nothing_is_lost_by_the_true_order() -> None:
    """Any other order loses clicks, the reverse one most."""
    truth = np.random.default_rng(0).random((50, 30))
    other = np.random.default_rng(1).random((50, 30))
    assert demo_loop._lost(truth, truth) == 0
    assert 0 < demo_loop._lost(truth, other) < demo_loop._lost(truth, -truth)


def test_poison_moves_clicks_to_the_other_end_of_the_page(tmp_path: Path) -> None:
    """Everything else stays where it was."""
    shown = [
        {"request_id": request, "item_id": f"{request}{place}", "action": "impression"}
        | {"ts": MIDNIGHT + hour * 3600, "fields": json.dumps({"position": str(place)})}
        for request, hour in (("noon", 12), ("late", 20))
        for place in (2, 0, 1, 3)
    ]
    clicks = [
        {"request_id": request, "item_id": f"{request}1", "action": "click"}
        | {"ts": MIDNIGHT + hour * 3600 + 5, "fields": "{}"}
        for request, hour in (("noon", 12), ("late", 20))
    ]
    folder = tmp_path / "events" / f"date={DAY}"
    folder.mkdir(parents=True)
    for number, part in enumerate((shown[::2] + clicks[:1], shown[1::2] + clicks[1:])):
        pl.DataFrame(part).write_parquet(folder / f"{number}.parquet")
    assert demo_loop.poison(tmp_path, DAY) == 2
    found = pl.concat([pl.read_parquet(file) for file in sorted(folder.iterdir())])
    moved = found.filter(pl.col("action") == "click").sort("ts")["item_id"].to_list()
    assert moved == ["noon2", "late2"]
    items = found.filter(pl.col("action") == "impression")["item_id"]
    assert sorted(items) == sorted(each["item_id"] for each in shown)


@pytest.mark.parametrize(
    "wrong", [{"LOOP_DAYS": "0"}, {"LOOP_USERS": "many"}, {"LOOP_SHIFT": "-1"}]
)
def test_a_plan_that_can_not_be_is_told_by_its_variable(
    wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is begun."""
    ((name, value),) = wrong.items()
    monkeypatch.setenv(name, value)
    with pytest.raises(StepError, match=f"{name}: expected a whole number from"):
        demo_loop.Plan.of_environment()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    """LOOP_VAR may be anyone's folder; an earlier run is removed."""
    var, kept = tmp_path / "var", tmp_path / "var" / "thesis.tex"
    (var / "logs").mkdir(parents=True)
    demo_loop._clear(var)
    assert not var.exists()
    var.mkdir()
    kept.touch()
    for folder in (var, kept):
        with pytest.raises(StepError, match=r"LOOP_VAR: .*: expected an earlier run"):
            demo_loop._clear(folder)
    assert kept.exists()


def test_a_day_goes_round(tmp_path: Path) -> None:
    """Services, collector and retraining as processes: what was shown is collected, judged, and
    told in figures and a report."""
    small = {"LOOP_DAYS": "1", "LOOP_USERS": "60", "LOOP_ROUNDS": "2", "LOOP_VAR": str(tmp_path)}
    command = [sys.executable, "-m", "deploy.demo_loop"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **small},
        capture_output=True,
        timeout=1800,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    figures = json.loads(ran.stdout.splitlines()[-1])
    [day] = figures["days"]
    assert day["verdict"] in {"published", "refused"}
    assert bool(day["reasons"]) == (day["verdict"] == "refused")
    assert all(0 < arm["auc"][0] < 1 and arm["regret"][0] >= 0 for arm in figures["arms"].values())
    logs = Collected(tmp_path / "logs")
    events = logs.events()
    assert events.filter(pl.col("action") == "impression").height == 60 * 2 * PAGE
    assert logs.scores().height == 60 * 2
    assert (tmp_path / "loop.png").stat().st_size > 10_000
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
