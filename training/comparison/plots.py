"""The plots of a comparison, each a PNG, drawn from what report.json holds and nothing else."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.legend import Legend

from training import metrics

Report = Mapping[str, Any]
TRAIN, VALIDATION, MARK = "#1b6ca8", "#b0413e", "#6b6b6b"
FONTS = (  # for letters that the first font has not
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Arial Unicode MS",
)
RANKED_BY = {"gauc": "GAUC", "auc": "AUC", "log_loss": "log loss"}
COLUMNS = 4
CATEGORIES = 8
POINTS = 40


def curves(report: Report) -> bytes:
    """Of each model, losses by step and below them what chose the weights to keep, where there
    were evaluations; a line for each seed."""
    models = report["models"]
    runs = [run for model in models.values() for run in model["curves"]]
    by = next((each["by"] for run in runs for each in run["evaluations"]), None)
    sign = -1 if by == "log_loss" else 1
    columns, blocks = _grid(len(models))
    rows = 2 if by else 1  # of a block
    with _drawn(2.6 * columns + 0.9, 1.85 * rows * blocks) as (figure, png):
        grid = figure.subplots(rows * blocks, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for at, (label, model) in enumerate(models.items()):
            block, column = divmod(at, columns)
            panels = grid[rows * block : rows * (block + 1), column]
            losses, last = panels[0], panels[-1]
            for axes in panels:
                axes.set_visible(True)
            for seed, run in enumerate(model["curves"]):
                steps, means = _smooth(run["losses"])
                mark = "o" if len(steps) == 1 else None  # a point has no line
                name = None if seed else "training"
                losses.plot(steps, means, color=TRAIN, lw=1, marker=mark, ms=3, label=name)
                if not run["evaluations"]:
                    continue
                steps = [each["step"] for each in run["evaluations"]]
                scores = [sign * each["score"] for each in run["evaluations"]]
                means = [each["loss"] for each in run["evaluations"]]
                name = None if seed else "validation"
                losses.plot(steps, means, "o-", color=VALIDATION, ms=3, label=name)
                last.plot(steps, scores, "o-", color=VALIDATION, ms=3)
                kept = steps.index(run["best_step"])
                last.plot(steps[kept], scores[kept], "o", color=VALIDATION, ms=7)
            losses.set_title(_short(label))
            last.set_xlabel("step")
            if by:
                last.sharex(losses)
            if not column:
                losses.set_ylabel("log loss")
                if by:
                    last.set_ylabel(f"validation {RANKED_BY[by]}")
        grid[0, 0].legend(fontsize=8)
        for axes in grid[::rows].flat:
            axes.set_ylim(*_losses(models.values()))
        if by:
            _same_y([axes for axes in grid[1::2].flat if axes.get_visible()])
    return png.getvalue()


def reliability(report: Report, task: str) -> bytes:
    """Of each model, mean label by mean probability, in bins of equal count."""
    models, ece = report["models"], metrics.of_task("ece", task, report["tasks"])
    columns, rows = _grid(len(models))
    every = [model["reliability"][task] for model in models.values()]
    top = max(max(values) for found in every for values in found.values()) * 1.05
    with _drawn(2.6 * columns + 0.4, 2.7 * rows) as (figure, png):
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(models) :]:
            axes.set_visible(False)
        for at, (axes, (label, model)) in enumerate(zip(grid.flat, models.items(), strict=False)):
            axes.plot([0, top], [0, top], "--", color="#bbbbbb", linewidth=1)
            found = model["reliability"][task]
            axes.plot(found["predicted"], found["observed"], "o-", color=TRAIN, markersize=3)
            axes.set_title(f"{_short(label)}\nECE {model['metrics'][ece]['mean']:.4f}")
            axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
            if not at % columns:
                axes.set_ylabel("observed")
            if at >= len(models) - columns:
                axes.set_xlabel("predicted")
                axes.tick_params(labelbottom=True)
    return png.getvalue()


def by_history(report: Report, task: str) -> bytes | None:
    """GAUC of each model by length of the history, over a bar for each bin's impressions; None
    where no user has both labels."""
    bins, models = _ranked_bins(report, task), report["models"]
    if not bins:
        return None
    with _drawn(9.2, 5.4) as (figure, png):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for at, (label, model) in enumerate(models.items()):
            values = [model["gauc_by_history"][task][b]["gauc"] for b in bins]
            mark = "s--" if label == report["baseline"] else "o-"
            upper.plot(values, mark, color=_colour(at), markersize=4, label=_short(label))
        upper.set_ylabel("test GAUC")
        _legend(upper, upper.lines)
        _bars(lower, [report["history_bins"][task][b] for b in bins])
    return png.getvalue()


def lift(report: Report, task: str) -> bytes | None:
    """GAUC of models with attention less that of the baseline, by length of the history, with 95 %
    intervals; None where no user has both labels."""
    bins, models, shown = _ranked_bins(report, task), report["models"], report["with_attention"]
    if not bins:
        return None
    with _drawn(9.2, 5.0) as (figure, png):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        labels = list(models)
        for order, label in enumerate(shown):
            apart = 0.5 * ((order + 0.5) / len(shown) - 0.5)
            found = [models[label]["gauc_by_history"][task][b]["over_baseline"] for b in bins]
            x = np.arange(len(bins)) + apart
            y, low, high = (
                np.array([f[key] for f in found]) for key in ("difference", "low", "high")
            )
            colour = _colour(labels.index(label))
            upper.vlines(x, low, high, color=colour)
            upper.plot(x, y, "o", color=colour, markersize=5, label=_short(label))
        _legend(upper, upper.lines)
        upper.axhline(0, color="#bbbbbb", linewidth=1, zorder=0)
        upper.set_ylabel(f"test GAUC less that of\n{_short(report['baseline'])}")
        _bars(lower, [report["history_bins"][task][b] for b in bins])
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
            legend = _legend(axes, axes.collections, title=found["field"])
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
        "font.family": [
            *mpl.rcParams["font.family"],
            *(name for name in FONTS if name in fontManager.get_font_names()),
        ],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
        yield figure, png
        with warnings.catch_warnings():  # a letter that no font has is a box, which says so itself
            letters = r"Glyph .* missing|Matplotlib currently does not support"
            warnings.filterwarnings("ignore", letters, UserWarning)
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


def _legend(axes: Axes, shown: Iterable[Artist], title: str | None = None) -> Legend:
    """Beside the axes. Each is named: by itself a legend leaves out labels that begin with _."""
    return axes.legend(
        handles=list(shown), title=title, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8
    )


def _ranked_bins(report: Report, task: str) -> list[int]:
    """The bins in which some user has both labels."""
    bins = report["history_bins"][task]
    return [at for at, each in enumerate(bins) if each["users_with_both_labels"]]


def _bars(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    counts = [each["impressions"] for each in bins]
    axes.bar(range(len(bins)), counts, color="#c8d4dd", width=0.6)
    for at, count in enumerate(counts):
        axes.annotate(f"{count:,}", (at, count), ha="center", va="bottom", fontsize=8, color=MARK)
    axes.margins(y=0.3)
    axes.set_yticks([])
    axes.set_ylabel("test\nimpressions")
    axes.set_xticks(range(len(bins)), [each["lengths"] for each in bins])
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
