"""What commands say of a run."""

from __future__ import annotations

import io

from rich.console import Console

from training import report


def test_what_labels_do_not_define_is_said_by_split_and_task() -> None:
    """One class of labels, users with one class each, and a task that has all figures."""
    screen = io.StringIO()
    whole = {"log_loss": 0.3, "auc": 0.7, "gauc": 0.7}
    rows = {
        "validation": {**whole, "conversion.log_loss": 0.1},
        "test": {"log_loss": 0.3, "auc": 0.7, **{f"conversion.{k}": v for k, v in whole.items()}},
    }
    report.undefined(Console(file=screen, width=40), rows)
    assert screen.getvalue().splitlines() == [
        "note: validation, conversion: all labels are alike: no AUC, GAUC or NE, and nothing is "
        "calibrated by it",
        "note: test: no user has both labels: no GAUC",
    ]
