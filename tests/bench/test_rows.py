"""The yardstick of memory by rows."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from pathlib import Path

from bench import rows, tables
from terminal.progress import Update, quiet

SMALL = ["dim=4", "attention=[4]", "head=[4]", "evaluations=1", "shard=300"]


def test_every_stage_of_both_jobs_has_its_peak(tmp_path: Path) -> None:
    """Run to their ends, in processes of their own."""
    found = rows.measure(400, tmp_path, 100.0, SMALL, quiet)
    assert found["impressions"] == 400
    for job, stages in (("prepare", ["write rows"]), ("fit", ["encode", "train", "measure"])):
        assert found[job]["ended"]
        seen = {stage["name"]: stage for stage in found[job]["stages"]}
        for name in stages:
            assert seen[name]["done"] == seen[name]["total"] > 0
        assert max(stage["anonymous_mib"] for stage in found[job]["stages"]) > 50
    assert tables.rows(found).row_count == sum(
        len(found[job]["stages"]) for job in ("prepare", "fit")
    )


def test_a_job_is_stopped_when_its_time_is_over() -> None:
    """It is told what it had done, and how much memory it had."""
    ours, theirs = multiprocessing.Pipe()

    def endless(update: Update) -> None:
        for done in itertools.count():
            update("count", done, 0, {})
            time.sleep(0.01)

    rows._sampled(theirs, endless, (), 0.3)
    told = []
    while not (told and isinstance(told[-1], dict)):
        told.append(ours.recv())
    assert not told[-1]["ended"]
    stage = told[-1]["stages"][-1]
    assert stage["name"] == "count"
    assert stage["done"] > 0
    assert 0.2 < stage["seconds"] < 5
    assert 10 < stage["anonymous_mib"] <= stage["resident_mib"]
