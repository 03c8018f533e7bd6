"""The yardstick of memory by rows."""

from __future__ import annotations

from pathlib import Path

from bench import rows, tables
from terminal.progress import quiet

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


def test_a_job_is_stopped_when_its_time_is_over(tmp_path: Path) -> None:
    """It says so, and what it had done."""
    found = rows.measure(400, tmp_path, 0.0, SMALL, quiet)
    assert not found["prepare"]["ended"]
    assert "fit" not in found
