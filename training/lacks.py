"""What logs lack for training and measuring, said when they are prepared."""

from __future__ import annotations

import polars as pl

from training.logs import SPLITS, Logs

USE = {
    "train": "a model learns nothing of it",
    "validation": "it can't be ranked, so the log loss decides, and nothing is calibrated",
    "test": "it can't be ranked",
}
_ENDS = ("min", "max")


def lacks(logs: Logs) -> list[str]:
    """One line for each split without impressions, or with one class of labels of a task, and one
    for the users whose only event has no history."""
    shown = logs.events.lazy().filter(pl.col("split").is_not_null()).group_by("split")
    tasks = logs.schema.tasks
    ends = [getattr(pl.col(task), end)().alias(f"{end} {task}") for task in tasks for end in _ENDS]
    found = {row["split"]: row for row in shown.agg(*ends).collect().iter_rows(named=True)}
    lines = [
        f"no {split} impressions, without which there is no fit"
        for split in SPLITS
        if split not in found
    ]
    for split in (each for each in SPLITS if each in found):
        for task in tasks:
            low, high = (found[split][f"{end} {task}"] for end in _ENDS)
            if low == high:
                lines.append(f"every {task} of {split} is {low}: {USE[split]}")
    events = logs.events.lazy().group_by("user_id").len().select(pl.col("len") == 1)
    alone = events.sum().collect().item()
    if alone:
        lines.append(f"users with one event only, and no history before it: {alone:,}")
    return lines
