"""The plots, by reports that are made by hand: what is drawn, as Matplotlib knows it."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colormaps, image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.training.comparison import made
from training.comparison import plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn, in turn."""
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return drawn


def shown(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize(
    ("by", "name"), [("gauc", "GAUC"), ("auc", "AUC"), ("log_loss", "log loss")]
)
def test_the_lower_curve_is_what_chose_the_weights(
    figures: list[Figure], by: str, name: str
) -> None:
    """Its axis says so, a log loss is drawn as such, and the large dot is the best step."""
    report = made.report(by=by)
    plots.curves(report)
    losses, _, lower, right = shown(figures[0])
    assert losses.get_ylabel() == "log loss"
    assert lower.get_ylabel() == f"validation {name}"
    assert right.get_ylabel() == ""
    runs = report["models"]["DIN"]["curves"]
    for line, dot, run in zip(lower.lines[::2], lower.lines[1::2], runs, strict=True):
        values = [abs(each["score"]) for each in run["evaluations"]]
        assert list(line.get_ydata()) == values
        assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([3], [values[2]])


def test_without_evaluations_there_are_losses_alone(figures: list[Figure]) -> None:
    """No empty panel, and no entry in the legend."""
    report = made.report()
    for model in report["models"].values():
        for run in model["curves"]:
            run["evaluations"] = []
    plots.curves(report)
    left, right = shown(figures[0])
    assert left.get_ylabel() == "log loss"
    assert left.get_xlabel() == right.get_xlabel() == "step"
    legend = left.get_legend()
    assert legend is not None
    assert [each.get_text() for each in legend.get_texts()] == ["training"]


def test_a_single_point_is_drawn(figures: list[Figure]) -> None:
    """By a marker, in training and in validation; lines of training have none."""
    report = made.report(seeds=1)
    plots.curves(report)
    assert figures[0].axes[0].lines[0].get_marker() == "None"
    for model in report["models"].values():
        [run] = model["curves"]
        run |= {"losses": [(3, 0.5)], "evaluations": run["evaluations"][2:]}
    plots.curves(report)
    lines = [line for axes in shown(figures[1]) for line in axes.lines]
    assert len(lines) == 2 * (2 + 2)
    for line in lines:
        assert len(line.get_xdata()) == 1
        assert line.get_marker() == "o"


@pytest.mark.parametrize("draw", [plots.by_history, plots.lift])
def test_a_legend_names_labels_that_begin_with_an_underscore(
    figures: list[Figure], draw: Any
) -> None:
    """Matplotlib by itself leaves them out."""
    report = made.report(labels=("_a", "_nolegend_"))
    draw(report, "click")
    legend = figures[0].axes[0].get_legend()
    assert legend is not None
    expected = ["_a"] if draw is plots.lift else ["_a", "_nolegend_"]
    assert [each.get_text() for each in legend.get_texts()] == expected


def test_a_legend_names_categories_that_begin_with_an_underscore(figures: list[Figure]) -> None:
    """As labels."""
    items = {"x": [0, 1, 2], "y": [0, 1, 0], "impressions": [3, 2, 1], "explained": [0.6, 0.4]}
    plots.item_map({"item_map": {**items, "category": ["_a", "b", None], "field": "genre"}})
    legend = figures[0].axes[0].get_legend()
    assert legend is not None
    assert [each.get_text() for each in legend.get_texts()] == ["_a", "b", "none"]


def test_letters_without_a_font_raise_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Of a label in any script, or in none; in this test a warning is an error."""
    report = made.report(labels=("\u6a21\u578b \u05d0 \u0378", "\u0e01\ue000"))
    plots.curves(report)
    for draw in (plots.reliability, plots.by_history, plots.lift):
        draw(report, "click")
    assert caplog.records == []


def test_a_font_that_is_there_helps_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the usual one; a font that is not there is not asked for, which would be logged."""
    monkeypatch.setattr(plots, "FONTS", ("No such font", "DejaVu Serif"))
    usual = mpl.rcParams["font.family"]
    with plots._drawn(1, 1) as (figure, _):
        assert mpl.rcParams["font.family"] == [*usual, "DejaVu Serif"]
        figure.text(0, 0, "\u6a21")
    assert mpl.rcParams["font.family"] == usual
    assert caplog.records == []


def test_reliability_is_of_the_task(figures: list[Figure]) -> None:
    """Points and ECE."""
    report = made.report()
    plots.reliability(report, "buy")
    for axes, model in zip(shown(figures[0]), report["models"].values(), strict=True):
        found = model["reliability"]["buy"]
        assert list(axes.lines[1].get_xdata()) == found["predicted"]
        assert list(axes.lines[1].get_ydata()) == found["observed"]
        assert axes.get_title().endswith(f"ECE {model['metrics']['buy.ece']['mean']:.4f}")


def test_gauc_by_history_is_of_the_task(figures: list[Figure]) -> None:
    """And the lift, both of the bins in which some user has both labels of it."""
    report = made.report()
    plots.by_history(report, "buy")
    plots.lift(report, "buy")
    at = [model["gauc_by_history"]["buy"][0] for model in report["models"].values()]
    upper, lifted = figures[0].axes[0], figures[1].axes[0]
    assert [list(line.get_ydata()) for line in upper.lines] == [[each["gauc"]] for each in at]
    assert list(lifted.lines[0].get_ydata()) == [at[0]["over_baseline"]["difference"]]


def test_weights_that_share_an_offset_are_told_apart() -> None:
    """The least is as dark, and the greatest as light, as a map can be, each in a whole cell."""
    names = ["a", "b"]
    weights = [[5.0, 5.01], [5.02, 5.03]]
    user = {"candidates": names, "labels": [0, 1], "behaviours": names, "weights": weights}
    [png] = plots.attention({"attention": {"label": "DIN", "users": [user]}})
    drawn = image.imread(io.BytesIO(png))[..., :3]
    for end in (0.0, 1.0):
        colour = np.array(colormaps["viridis"](end)[:3])
        assert (abs(drawn - colour) < 0.01).all(-1).sum() > 1000
