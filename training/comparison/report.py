"""What a comparison found, as plain numbers: the contents of report.json.

Each model's entry has what its runs measured, how it stands against the baseline and the best,
and what the plots show; ``timings`` alone differ when the same comparison is made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
AREAS = ("gauc", "auc")
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
    ranking = {task: _ranking(models, task, tasks) for task in tasks}
    best = ranking[tasks[0]]["labels"][0]
    _by_seed(models, lineup.baseline, best)
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
        "ranking": ranking,
        "impressions": counts,
        "notes": notes,
        "models": models,
        "history_bins": bins,
        "latency_of": latency_of,
        **_pictures(order, encoded, ranking[tasks[0]]["labels"]),
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


def _ranking(models: Mapping[str, Model], task: str, tasks: Sequence[str]) -> dict[str, Any]:
    """The labels by one mean figure of a task, best first, and which one: GAUC, or AUC or log loss
    where the test labels define no other."""
    names = {by: metrics.of_task(by, task, tasks) for by in (*AREAS, "log_loss")}
    [any_model, *_] = models.values()
    by = next(by for by, name in names.items() if name in any_model["metrics"])

    def figure(label: str) -> float:
        return float(models[label]["metrics"][names[by]]["mean"])

    return {"by": by, "labels": sorted(models, key=figure, reverse=by != "log_loss")}


def _by_seed(models: Mapping[str, Model], baseline: str, best: str) -> None:
    """Put RelaImpr into each model's metrics, and against its rivals the test over seeds of all."""
    for model in models.values():
        model["metrics"] |= _rela_impr(model["metrics"], models[baseline]["metrics"])
    for label, model in models.items():
        model["against"] = {
            name: {"label": rival, **_over_seeds(model["metrics"], models[rival]["metrics"])}
            for name, rival in (("baseline", baseline), ("best", best))
            if rival != label
        }


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
        if name.rpartition(".")[2] in AREAS and min(each["values"]) <= 0.5
    ]
    if not names:
        return []
    return [
        f"No RelaImpr of {', '.join(names)}: that of {label}, the baseline, is 0.5 (chance) or "
        "less in some seed, and RelaImpr divides by what is above it."
    ]


def _by_user(
    order: Order, encoded: Encoded, models: Mapping[str, Model], work: Work
) -> dict[str, list[dict[str, Any]]]:
    """Put into each model what its test scores say of each task: the test over users of its GAUC,
    reliability, and GAUC by length of the history, whose bins are given back by task."""
    test, tasks, lineup = encoded.whole("test"), encoded.logs.schema.tasks, order.lineup
    users = [Cells.of(test, at, by_length=False) for at in range(len(tasks))]
    lengths = [Cells.of(test, at, by_length=True) for at in range(len(tasks))]
    by_user: list[dict[str, Floats]] = [{} for _ in tasks]
    by_length: list[dict[str, Floats]] = [{} for _ in tasks]
    for entrant in lineup.entrants:
        runs = [order.run(entrant, seed) for seed in range(order.seeds)]
        scores = np.stack([_scores(run) for run in runs])  # (seeds, I, tasks)
        model = models[entrant.label]
        model |= {"reliability": {}, "gauc_by_history": {}}
        for at, task in enumerate(tasks):
            label, score = test.label[:, at], scores[..., at]
            by_user[at][entrant.label] = users[at].areas(label, score)
            by_length[at][entrant.label] = lengths[at].areas(label, score)
            model["reliability"][task] = quality.reliability(label, score)
        work.done("scores")
    bins = {}
    for at, task in enumerate(tasks):
        _over_users(models, users[at], by_user[at], metrics.of_task("gauc", task, tasks))
        longest = encoded.logs.schema.history_length
        bins[task], by_bin = quality.by_history(
            lengths[at], by_length[at], lineup.baseline, longest
        )
        for name, model in models.items():
            model["gauc_by_history"][task] = by_bin[name]
    return bins


def _over_users(
    models: Mapping[str, Model], cells: Cells, areas: Mapping[str, Floats], name: str
) -> None:
    """Put the test over users of the GAUC of this name under ``users``; nothing where no user has
    both labels."""
    if not cells.both.any():
        return
    drawn = redrawn(cells.size[cells.both], np.stack([a[cells.both] for a in areas.values()], 1))
    gauc = dict(zip(areas, drawn.T, strict=True))
    for label, model in models.items():
        for against in model["against"].values():
            tested = over_users(gauc[label], gauc[against["label"]])
            against.setdefault(name, {})["users"] = tested.plain()


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


def _pictures(order: Order, encoded: Encoded, labels: Sequence[str]) -> dict[str, Any]:
    """Attention weights and the map of items, of the first seed of one model: of those with
    attention the one that ranks best, or the best of all where none has it."""
    networks = {
        each.label: order.run(each, 0).network(encoded.encoder) for each in order.lineup.entrants
    }
    with_attention = [
        label for label, each in networks.items() if inside.attends(each, encoded.encoder)
    ]
    best = next(label for label in labels if label in (with_attention or labels))
    users = inside.attention(networks[best], encoded) if with_attention else []
    return {
        "with_attention": with_attention,
        "attention": {"label": best, "users": users} if users else None,
        "item_map": (found := inside.item_map(networks[best], encoded))
        and {"label": best, **found},
    }
