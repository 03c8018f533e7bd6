"""The report of the loop's demo: one plot as PNG, and a page that holds it and the days' table."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

LOOP, NEVER, MARK = "#1b6ca8", "#b0413e", "#6b6b6b"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222 }
img { width: 100%; height: auto }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: right }
th:last-child, td:last-child, th:first-child, td:first-child { text-align: left }
small { color: #666 }
"""


def write(folder: Path, days: Sequence[Any], arms: tuple[Any, Any], plan: Any) -> Path:
    """``loop.png`` and ``report.html`` in a folder; the latter's path."""
    plot(folder / "loop.png", days, arms, plan)
    page = folder / "report.html"
    page.write_text(_page(folder / "loop.png", days, arms, plan), encoding="utf-8")
    return page


def plot(file: Path, days: Sequence[Any], arms: tuple[Any, Any], plan: Any) -> None:
    """Live AUC and regret of both arms by day; lines where something happened."""
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 6.5), dpi=120, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        at = np.arange(len(days))
        upper.plot(at, [day.auc for day in days], color=MARK, linewidth=1, label="the truth")
        for arm, colour, style in zip(arms, (LOOP, NEVER), ("o-", "s--"), strict=True):
            upper.plot(at, arm.auc, style, color=colour, label=arm.name)
            lower.plot(at, np.cumsum(arm.regret), style, color=colour, label=arm.name)
        for axes in (upper, lower):
            for day, text in ((plan.shift, "taste shifts"), (plan.poison, "poisoned logs")):
                if 0 <= day < len(days):
                    axes.axvline(day, color=MARK, linewidth=1, linestyle=":")
                    if axes is upper:
                        axes.annotate(
                            text,
                            (day, 1.0),
                            xycoords=("data", "axes fraction"),
                            textcoords="offset points",
                            xytext=(4, -4),
                            va="top",
                            color=MARK,
                        )
        for at_day, day in enumerate(days):
            if day.verdict != "published":
                upper.annotate(
                    "refused",
                    (at_day, arms[0].auc[at_day]),
                    textcoords="offset points",
                    xytext=(0, -18),
                    ha="center",
                    color=MARK,
                    fontsize=9,
                )
        upper.margins(y=0.15)  # room for what happened
        upper.set_ylabel("live AUC of the day")
        lower.set_ylabel("clicks lost of 100 pages,\nsummed over days")
        lower.set_xlabel("day")
        lower.set_xticks(at)
        upper.legend(loc="lower left", frameon=False)
        figure.savefig(file)


def _page(image: Path, days: Sequence[Any], arms: tuple[Any, Any], plan: Any) -> str:
    data = base64.b64encode(image.read_bytes()).decode()
    loop, never = arms
    rows = []
    for at, day in enumerate(days):
        values = (
            f"{loop.auc[at]:.3f}",
            f"{never.auc[at]:.3f}",
            f"{day.auc:.3f}",
            f"{loop.regret[at]:.1f}",
            f"{never.regret[at]:.1f}",
            str(day.version),
            f"{day.seconds:.0f}",
        )
        reasons = "".join(f"<br><small>{html.escape(each)}</small>" for each in day.reasons)
        cells = "".join(f"<td>{value}</td>" for value in values)
        rows.append(f"<tr><td>{at}</td>{cells}<td>{html.escape(day.verdict)}{reasons}</td></tr>")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The closed loop</title><style>{_STYLE}</style>
<h1>The closed loop</h1>
<p>{plan.users} users, {plan.rounds} visits of each a day, {plan.days} days. On day {plan.shift}
taste shifts; the logs of day {plan.poison} are poisoned before that night's retrain.</p>
<p><img alt="Live AUC and regret by day" src="data:image/png;base64,{data}"></p>
<table><thead><tr><th>day</th><th>AUC, loop</th><th>AUC, never</th><th>AUC, truth</th>
<th>lost, loop</th>
<th>lost, never</th><th>version</th><th>s</th><th>retrain that night</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table>
<p><small>AUC: of the clicks on the half of each page that was drawn at random; the truth is that of
the world's own probabilities. Lost: clicks of 100
pages that the best page of each model is expected to fall short of the best there is. Version: in
service after that night. s: the retrain, and the wait until its version was served.</small></p>
</html>
"""
