"""What logs lack for training and measuring, said when they are prepared."""

from __future__ import annotations

from training.logs import SPLITS, Written

USE = {
    "train": "a model learns nothing of it",
    "validation": "it can't be ranked, so the log loss decides, and nothing is calibrated",
    "test": "it can't be ranked",
}

NONE = {
    "train": ", without which there is no fit",
    "validation": ": a fit keeps the last weights and calibrates nothing",
    "test": ", without which there is no fit",
}


def lacks(written: Written) -> list[str]:
    """One line for each split without impressions, or with one class of labels of a task, and one
    for the users whose only event has no history."""
    labels = written.labels
    lines = [f"no {split} impressions{NONE[split]}" for split in SPLITS if split not in labels]
    for split in (each for each in SPLITS if each in labels):
        for task, (low, high) in labels[split].items():
            if low == high:
                lines.append(f"every {task} of {split} is {low}: {USE[split]}")
    if written.alone:
        lines.append(f"users with one event only, and no history before it: {written.alone:,}")
    return lines
