"""A comparison's report, made by hand: two models, whose figures are drawn and mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from training import metrics
from training.comparison import report as made_by
from training.comparison.paired import Difference, over_users, spread

METRICS = ("gauc", "auc", "log_loss", "normalised_entropy", "ece")


def report(
    tasks: tuple[str, ...] = ("click", "buy"),
    labels: tuple[str, str] = ("DIN", "base"),
    seeds: int = 2,
    measured: tuple[str, ...] = METRICS,
    by: str = "gauc",
) -> dict[str, Any]:
    """The second model is the baseline, the first has attention; ``measured`` is what test labels
    define, ``by`` what validation went by."""
    draw = np.random.default_rng(0)
    models = {label: _model(draw, tasks, seeds, measured, by) for label in labels}
    ranking = {task: made_by._ranking(models, task, tasks) for task in tasks}
    best = ranking[tasks[0]]["labels"][0]
    made_by._by_seed(models, labels[1], best)
    ranked = "gauc" in measured
    for model in models.values():
        for against in model["against"].values():
            for task in tasks if ranked else ():
                name = metrics.of_task("gauc", task, tasks)
                tested = over_users(draw.random(9), draw.random(9))
                against.setdefault(name, {})["users"] = tested.plain()
    bins = [
        {"lengths": "0", "impressions": 20, "users": 9, "users_with_both_labels": 5 * ranked},
        {"lengths": "1-4", "impressions": 30, "users": 9, "users_with_both_labels": 0},
    ]
    return {
        "schema": "shop",
        "tasks": list(tasks),
        "seeds": seeds,
        "threads": 1,
        "baseline": labels[1],
        "best": best,
        "ranking": ranking,
        "impressions": {
            "test": {"impressions": 50, "users": 9, "positives": dict.fromkeys(tasks, 7)}
        },
        "notes": [],
        "models": models,
        "history_bins": dict.fromkeys(tasks, bins),
        "latency_of": {"behaviours": 100, "candidates": 500, "calls": 30},
        "with_attention": [labels[0]],
        "attention": None,
        "item_map": None,
        "timings": {
            "machine": {"onnxruntime": "1", "torch": "2", "cpu": None, "cores": 2},
            "samples_per_s": {label: spread([9.0]) for label in labels},
            "latency_ms": {},
        },
    }


def _model(
    draw: np.random.Generator,
    tasks: tuple[str, ...],
    seeds: int,
    measured: tuple[str, ...],
    by: str,
) -> dict[str, Any]:
    def losses() -> list[float]:
        return sorted(draw.uniform(0.3, 0.7, 3).tolist(), reverse=True)

    names = [metrics.of_task(name, task, tasks) for task in tasks for name in measured]
    steps = (1, 2, 3)
    return {
        "options": {},
        "fit": {},
        "parameters": {"tables": 1, "layers": 1},
        "onnx_bytes": None,
        "metrics": {name: spread(draw.uniform(0.6, 0.8, seeds).tolist()) for name in names},
        "reliability": {
            task: {key: draw.random(20).tolist() for key in ("predicted", "observed")}
            for task in tasks
        },
        "gauc_by_history": {
            task: [
                {"gauc": draw.random(), "over_baseline": Difference(*draw.random(3)).plain()},
                None,
            ]
            for task in tasks
        },
        "curves": [
            {
                "losses": [*zip(steps, losses(), strict=True)],
                "evaluations": [
                    {
                        "step": step,
                        "by": by,
                        "score": -loss if by == "log_loss" else loss,
                        "loss": loss,
                    }
                    for step, loss in zip(steps, losses(), strict=True)
                ],
                "best_step": 3,
            }
            for _ in range(seeds)
        ],
    }
