"""What a comparison found, as plain numbers: the contents of report.json.

Each model's entry has what its runs measured, how it stands against the baseline and the best,
and what the plots show; ``timings`` alone differ when the same comparison is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from training import metrics
from training.calibrate import sigmoid
from training.comparison import cost, inside, quality
from training.comparison.entrants import Entrant
from training.comparison.order import Order
from training.comparison.paired import over_seeds, over_users, redrawn, spread
from training.comparison.quality import Cells
from training.comparison.work import Work
from training.fit import Encoded, plain
from training.run import Run

FORMAT = 1
RANKING = ("gauc", "auc")
Floats = npt.NDArray[np.float64]
Model = dict[str, Any]


def report(order: Order, encoded: Encoded, logs_digest: str, work: Work) -> dict[str, Any]:
    """What is told of the runs of an order, which have ended."""
    tasks, lineup = encoded.logs.schema.tasks, order.lineup
    counts, notes = quality.told({split: encoded.whole(split) for split in encoded.sets}, tasks)
    notes += [f"{label} is left out: {why}" for label, why in lineup.left_out.items()]
    if order.seeds == 1:
        notes.append("One seed: no spread over seeds and no test over seeds.")
    models: dict[str, Model] = {each.label: _measured(order, each) for each in lineup.entrants}
    notes += _no_better_than_chance(lineup.baseline, models[lineup.baseline]["metrics"])
    best = _best(models)
    for label, model in models.items():
        rivals = {"baseline": lineup.baseline, "best": best}
        model["against"] = {
            name: {"label": rival, **_over_seeds(model["metrics"], models[rival]["metrics"])}
            for name, rival in rivals.items()
            if rival != label
        }
        model["metrics"] |= _rela_impr(model["metrics"], models[lineup.baseline]["metrics"])
    bins = _by_user(order, encoded, models, work)
    latency, latency_of = _costs(order, encoded, models, notes, work)
    return {
        "format": FORMAT,
        "schema": encoded.logs.schema.name,
        "logs": logs_digest,
        "tasks": list(tasks),
        "seeds": order.seeds,
        "threads": order.threads,
        "baseline": lineup.baseline,
        "best": best,
        "impressions": counts,
        "notes": notes,
        "models": models,
        "history_bins": bins,
        "latency_of": latency_of,
        **_pictures(order, encoded, models),
        "timings": {
            "machine": cost.machine(),
            "samples_per_s": {
                each.label: spread([run["samples_per_s"] for run in _results(order, each)])
                for each in lineup.entrants
            },
            "latency_ms": latency,
        },
    }


def _results(order: Order, entrant: Entrant) -> list[dict[str, Any]]:
    return [order.run(entrant, seed).about() for seed in range(order.seeds)]


def _measured(order: Order, entrant: Entrant) -> Model:
    """Settings, test metrics and training curves of an entrant's runs."""
    runs = _results(order, entrant)
    test = [run["metrics"]["test"] for run in runs]
    return {
        "model": entrant.model,
        "options": plain(asdict(entrant.config)),
        "fit": asdict(entrant.how),
        "metrics": {
            name: spread([each[name] for each in test])
            for name in test[0]
            if name.rpartition(".")[2] != "impressions"
        },
        "curves": [
            {
                "losses": run["progress"]["losses"],
                "evaluations": [
                    {name: each[name] for name in ("step", "by", "score", "loss")}
                    for each in run["progress"]["evaluations"]
                ],
                "best_step": run["progress"]["best_step"],
            }
            for run in runs
        ],
    }


def _best(models: Mapping[str, Model]) -> str:
    """The label of the highest mean GAUC of the first task; by AUC, then by log loss, where the
    labels define no other."""

    def rank(label: str) -> tuple[float, ...]:
        found = models[label]["metrics"]
        ranking = [found[name]["mean"] for name in RANKING if name in found]
        return (*ranking, -found["log_loss"]["mean"])

    return max(models, key=rank)


def _over_seeds(ours: Model, theirs: Model) -> dict[str, Any]:
    """The t-test of every metric, under ``seeds``; nothing with one seed."""
    found = {}
    for name in ours:
        test = over_seeds(ours[name]["values"], theirs[name]["values"])
        if test is not None:
            found[name] = {"seeds": test.plain()}
    return found


def _rela_impr(ours: Model, base: Model) -> Model:
    """RelaImpr of every AUC and GAUC over the baseline's run of the same seed."""
    found: dict[str, list[float]] = {}
    seeds = len(ours["log_loss"]["values"])
    for seed in range(seeds):
        one, other = (
            {name: each["values"][seed] for name, each in of.items()} for of in (ours, base)
        )
        for name, value in metrics.improvement(one, other).items():
            found.setdefault(f"rela_impr.{name}", []).append(value)
    return {name: spread(values) for name, values in found.items() if len(values) == seeds}


def _no_better_than_chance(label: str, base: Model) -> list[str]:
    """A note where the baseline measures nothing, which leaves RelaImpr of no model."""
    names = [
        name
        for name, each in base.items()
        if name.rpartition(".")[2] in RANKING and min(each["values"]) <= 0.5
    ]
    if not names:
        return []
    return [
        f"No RelaImpr of {', '.join(names)}: that of {label}, the baseline, is 0.5 (chance) or "
        "less in some seed, and RelaImpr divides by what is above it."
    ]


def _by_user(
    order: Order, encoded: Encoded, models: Mapping[str, Model], work: Work
) -> list[dict[str, Any]]:
    """Put into each model what its test scores say by user: the test over users of each task's
    GAUC, reliability, and GAUC by length of the history, whose bins are given back."""
    test, tasks, lineup = encoded.whole("test"), encoded.logs.schema.tasks, order.lineup
    users = [Cells.of(test, task, by_length=False) for task in range(len(tasks))]
    lengths = Cells.of(test, 0, by_length=True)
    by_user: list[dict[str, Floats]] = [{} for _ in tasks]
    by_length: dict[str, Floats] = {}
    for entrant in lineup.entrants:
        runs = [order.run(entrant, seed) for seed in range(order.seeds)]
        scores = np.stack([_scores(run) for run in runs])  # (seeds, I, tasks)
        for task, cells in enumerate(users):
            by_user[task][entrant.label] = cells.areas(test.label[:, task], scores[..., task])
        by_length[entrant.label] = lengths.areas(test.label[:, 0], scores[..., 0])
        found = quality.reliability(test.label[:, 0], scores[..., 0])
        models[entrant.label]["reliability"] = found
        work.done("scores")
    for task, cells in enumerate(users):
        if not cells.both.any():
            continue
        areas = np.stack([area[cells.both] for area in by_user[task].values()], 1)
        gauc = dict(zip(models, redrawn(cells.size[cells.both], areas).T, strict=True))
        name = f"{tasks[task]}.gauc" if task else "gauc"
        for label, model in models.items():
            for against in model["against"].values():
                tested = over_users(gauc[label], gauc[against["label"]])
                against.setdefault(name, {})["users"] = tested.plain()
    longest = encoded.logs.schema.history_length
    bins, by_bin = quality.by_history(lengths, by_length, lineup.baseline, longest)
    for label, model in models.items():
        model["gauc_by_history"] = by_bin[label]
    return bins


def _scores(run: Run) -> Floats:
    """Probabilities [I, tasks] of the test impressions."""
    return sigmoid(run.calibration().apply(run.logits()))


def _costs(
    order: Order,
    encoded: Encoded,
    models: Mapping[str, Model],
    notes: list[str],
    work: Work,
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Put parameters and graph sizes into each model; latencies, and what they are of."""
    graphs = {}
    for entrant in order.lineup.entrants:
        run, model = order.run(entrant, 0), models[entrant.label]
        network = run.network(encoded.encoder)
        model["parameters"] = cost.parameters(network)
        model["onnx_bytes"] = None
        there = cost.file(run).exists()
        try:
            path = cost.graph(run, network, run.calibration(), encoded.encoder)
        except cost.ExportError as error:
            notes.append(f"{entrant.label} has no graph to serve: {error}")
        else:
            graphs[entrant.label] = path
            model["onnx_bytes"] = path.stat().st_size
        if not there:
            work.done("graph")
    return cost.latency(graphs, encoded.encoder, partial(work.done, "turn"))


def _pictures(order: Order, encoded: Encoded, models: Mapping[str, Model]) -> dict[str, Any]:
    """Attention weights and the map of items, of the first seed of one model: of those with
    attention the one that ranks best, or the best of all where none has it."""
    networks = {
        each.label: order.run(each, 0).network(encoded.encoder) for each in order.lineup.entrants
    }
    with_attention = [
        label for label, each in networks.items() if inside.attends(each, encoded.encoder)
    ]
    best = _best({label: models[label] for label in with_attention or models})
    users = inside.attention(networks[best], encoded) if with_attention else []
    return {
        "with_attention": with_attention,
        "attention": {"label": best, "users": users} if users else None,
        "item_map": (found := inside.item_map(networks[best], encoded))
        and {"label": best, **found},
    }
