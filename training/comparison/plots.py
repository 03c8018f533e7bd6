"""The plots of a comparison, each a PNG, drawn from what report.json holds and nothing else."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Report = Mapping[str, Any]
TRAIN, VALIDATION, MARK = "#1b6ca8", "#b0413e", "#6b6b6b"
COLUMNS = 4
CATEGORIES = 8
POINTS = 40


def curves(report: Report) -> bytes:
    """Of each model, losses and validation GAUC by step; a line for each seed."""
    models = report["models"]
    columns, blocks = _grid(len(models))
    with _drawn(2.6 * columns + 0.9, 3.7 * blocks) as (figure, png):
        grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for at, (label, model) in enumerate(models.items()):
            block, column = divmod(at, columns)
            losses, gauc = grid[2 * block][column], grid[2 * block + 1][column]
            for axes in (losses, gauc):
                axes.set_visible(True)
            for seed, run in enumerate(model["curves"]):
                named = {"label": "training"} if not seed else {}
                losses.plot(*_smooth(run["losses"]), color=TRAIN, linewidth=1, **named)
                if not run["evaluations"]:
                    continue
                steps = [each["step"] for each in run["evaluations"]]
                named = {"label": "validation"} if not seed else {}
                for of, key, more in ((losses, "loss", named), (gauc, "score", {})):
                    values = [each[key] for each in run["evaluations"]]
                    of.plot(steps, values, "o-", color=VALIDATION, markersize=3, **more)
                best = next(e for e in run["evaluations"] if e["step"] == run["best_step"])
                gauc.plot(best["step"], best["score"], "o", color=VALIDATION, markersize=7)
            gauc.sharex(losses)
            losses.set_title(_short(label))
            gauc.set_xlabel("step")
            if not column:
                losses.set_ylabel("log loss")
                gauc.set_ylabel("validation GAUC")
        shown = [axes for axes in grid[0] if axes.get_visible()]
        shown[0].legend(fontsize=8)
        for axes in grid[0::2].flat:
            axes.set_ylim(*_losses(models.values()))
        _same_y([axes for axes in grid[1::2].flat if axes.get_visible()])
    return png.getvalue()


def reliability(report: Report) -> bytes:
    """Of each model, mean label by mean probability, in bins of equal count."""
    models = report["models"]
    columns, rows = _grid(len(models))
    top = max(max(v) for model in models.values() for v in model["reliability"].values()) * 1.05
    with _drawn(2.6 * columns + 0.4, 2.7 * rows) as (figure, png):
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(models) :]:
            axes.set_visible(False)
        for at, (axes, (label, model)) in enumerate(zip(grid.flat, models.items(), strict=False)):
            axes.plot([0, top], [0, top], "--", color="#bbbbbb", linewidth=1)
            found = model["reliability"]
            axes.plot(found["predicted"], found["observed"], "o-", color=TRAIN, markersize=3)
            ece = model["metrics"]["ece"]["mean"]
            axes.set_title(f"{_short(label)}\nECE {ece:.4f}")
            axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
            if not at % columns:
                axes.set_ylabel("observed")
            if at >= len(models) - columns:
                axes.set_xlabel("predicted")
                axes.tick_params(labelbottom=True)
    return png.getvalue()


def by_history(report: Report) -> bytes | None:
    """GAUC of each model by length of the history, over a bar for each bin's impressions."""
    bins, models = _ranked_bins(report), report["models"]
    if not bins:
        return None
    with _drawn(9.2, 5.4) as (figure, png):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for at, (label, model) in enumerate(models.items()):
            values = [model["gauc_by_history"][b]["gauc"] for b in bins]
            mark = "s--" if label == report["baseline"] else "o-"
            upper.plot(values, mark, color=_colour(at), markersize=4, label=_short(label))
        upper.set_ylabel("test GAUC")
        upper.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        _bars(lower, report, bins)
    return png.getvalue()


def lift(report: Report) -> bytes | None:
    """GAUC of models with attention less that of the baseline, by length of the history, with 95 %
    intervals; None where there is no such pair."""
    bins, base = _ranked_bins(report), report["baseline"]
    shown = report["with_attention"]
    if not bins or not shown or base in shown:
        return None
    with _drawn(9.2, 5.0) as (figure, png):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        labels = list(report["models"])
        for order, label in enumerate(shown):
            apart = 0.5 * ((order + 0.5) / len(shown) - 0.5)
            found = [report["models"][label]["gauc_by_history"][b]["over_baseline"] for b in bins]
            x = np.arange(len(bins)) + apart
            y, low, high = (
                np.array([f[key] for f in found]) for key in ("difference", "low", "high")
            )
            colour = _colour(labels.index(label))
            upper.vlines(x, low, high, color=colour)
            upper.plot(x, y, "o", color=colour, markersize=5, label=_short(label))
        upper.axhline(0, color="#bbbbbb", linewidth=1, zorder=0)
        upper.set_ylabel(f"test GAUC less that of\n{_short(base)}")
        upper.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        _bars(lower, report, bins)
    return png.getvalue()


def attention(report: Report) -> list[bytes]:
    """Of each user, a row for each candidate and a column for each behaviour, oldest first.

    Colours go from the least weight of a user's map to the greatest: raw weights may share an
    offset, beside which what tells candidates apart would not be seen.
    """
    found = report["attention"]
    users = found["users"] if found else []
    return [_attention(f"user {at}", user) for at, user in enumerate(users, 1)]


def _attention(name: str, user: Mapping[str, Any]) -> bytes:
    weights = np.asarray(user["weights"])  # (candidates, behaviours)
    rows, columns = weights.shape
    least, greatest = float(weights.min()), float(weights.max())
    with _drawn(2.6 + 0.36 * max(columns, 8), 1.9 + 0.32 * rows) as (figure, png):
        axes = figure.subplots()
        image = axes.imshow(weights, aspect="auto", cmap="viridis", vmin=least, vmax=greatest)
        names = [_short(each, 18) for each in user["behaviours"]]
        axes.set_xticks(range(columns), names, rotation=60, ha="right", fontsize=8)
        marks = {1: "\u25cf", 0: "\u25cb"}
        shown = [
            f"{_short(each, 22)}  {marks[label]}"
            for each, label in zip(user["candidates"], user["labels"], strict=True)
        ]
        axes.set_yticks(range(rows), shown, fontsize=8)
        axes.set_xlabel("behaviours, oldest first")
        axes.set_ylabel("candidates")
        axes.set_title(name, loc="left")
        for side in axes.spines.values():
            side.set_visible(False)
        label = f"weight, least {least:.3g}\nto greatest {greatest:.3g}"
        figure.colorbar(image, ax=axes, label=label, fraction=0.03, pad=0.02)
    return png.getvalue()


def item_map(report: Report) -> bytes | None:
    """Items on the two principal components of their embeddings, the commonest categories in
    colours."""
    found = report["item_map"]
    if not found:
        return None
    category = [each or "none" for each in found["category"]]
    common = [name for name, _ in Counter(category).most_common(CATEGORIES)]
    others = len(set(category)) > len(common)
    x, y = np.asarray(found["x"]), np.asarray(found["y"])
    size = 8 + 60 * np.asarray(found["impressions"]) / max(found["impressions"])
    with _drawn(8.6, 5.8) as (figure, png):
        axes = figure.subplots()
        named = bool(found["field"])
        if others or not named:
            at = np.array([name not in common or not named for name in category])
            axes.scatter(
                x[at], y[at], s=size[at], color="#cccccc", label="others" if named else None
            )
        for order, name in enumerate(common if named else []):
            at = np.array([each == name for each in category])
            axes.scatter(
                x[at], y[at], s=size[at], color=_colour(order), alpha=0.8, label=_short(name)
            )
        if named:
            legend = axes.legend(
                title=found["field"], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8
            )
            for handle in legend.legend_handles:
                handle.set_sizes([30])  # type: ignore[union-attr]
        one, two = found["explained"][:2]
        axes.set_xlabel(f"first component ({one:.0%} of the variance)")
        axes.set_ylabel(f"second component ({two:.0%})")
    return png.getvalue()


@contextmanager
def _drawn(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure, and the PNG that it is when it is left."""
    png = io.BytesIO()
    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
        yield figure, png
        figure.savefig(png, format="png", metadata={"Software": None})


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of so many small plots."""
    columns = min(count, COLUMNS)
    return columns, ceil(count / columns)


def _losses(models: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """The losses that are shown: the first tenth of training would dwarf the rest."""
    seen: list[float] = []
    for run in (run for model in models for run in model["curves"]):
        late = run["losses"][-1][0] / 10
        seen += [loss for step, loss in zip(*_smooth(run["losses"]), strict=True) if step >= late]
        seen += [each["loss"] for each in run["evaluations"]]
    margin = 0.05 * (max(seen) - min(seen)) or 0.05
    return min(seen) - margin, max(seen) + margin


def _same_y(every: Sequence[Axes]) -> None:
    low, high = zip(*(axes.get_ylim() for axes in every), strict=True)
    margin = 0.04 * (max(high) - min(low))  # for the largest dot
    for axes in every:
        axes.set_ylim(min(low) - margin, max(high) + margin)


def _ranked_bins(report: Report) -> list[int]:
    """The bins in which some user has both labels."""
    bins = report["history_bins"]
    return [at for at, each in enumerate(bins) if each["users_with_both_labels"]]


def _bars(axes: Axes, report: Report, bins: Sequence[int]) -> None:
    shown = [report["history_bins"][at] for at in bins]
    counts = [each["impressions"] for each in shown]
    axes.bar(range(len(bins)), counts, color="#c8d4dd", width=0.6)
    for at, count in enumerate(counts):
        axes.annotate(f"{count:,}", (at, count), ha="center", va="bottom", fontsize=8, color=MARK)
    axes.margins(y=0.3)
    axes.set_yticks([])
    axes.set_ylabel("test\nimpressions")
    axes.set_xticks(range(len(bins)), [each["lengths"] for each in shown])
    axes.set_xlabel("behaviours that the impression sees")


def _smooth(losses: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Steps and losses, each the mean of a stretch of a fortieth of them."""
    step, loss = np.asarray(losses, np.float64).T
    weight = np.diff(step, prepend=0)  # each is the mean of the steps since the one before
    parts = np.array_split(np.arange(len(step)), min(POINTS, len(step)))
    means = [float(np.average(loss[part], weights=weight[part])) for part in parts]
    return [float(step[part].mean()) for part in parts], means


def _colour(at: int) -> Any:
    """Ten strong colours, then ten pale ones."""
    return mpl.colormaps["tab20"]((2 * at) % 20 + (at // 10) % 2)


def _short(text: str, most: int = 26) -> str:
    """What fits; a dollar sign would begin a formula."""
    text = text if len(text) <= most else f"{text[: most - 1]}\u2026"
    return text.replace("$", r"\$")
