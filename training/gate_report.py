"""The report of a retraining: why a candidate passed the gate or not, as JSON and as one HTML file.

The HTML needs nothing beside it: tables, and two plots as SVG inside.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from training.gate import Verdict
from training.intervals import Comparison, Evidence, Figure, Floats
from training.join import Tally

JSON, HTML = "report.json", "report.html"
_BINS = 10
_STATUS = {
    "passed": "passed",
    "refused": "refused",
    "too_few": "refused: too few impressions to tell",
}
_FIGURES = {
    "ranking": "ranking",
    "log_loss": "log loss",
    "calibration": "mean predicted / observed",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; border-bottom: 2px solid #888; }
small { color: #666; display: block; white-space: nowrap; }
.passed { color: #11692f; } .refused { color: #a3201d; }
svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True, eq=False)
class Told:
    """What is reported. ``impressions`` are counted by split; ``tally`` says what came of the
    collected ones, if they were; ``run`` is what run.json says, as far as it came."""

    model: str
    days: str
    current: int | None
    impressions: Mapping[str, int]
    tally: Tally | None
    run: Mapping[str, Any]
    verdict: Verdict
    evidence: Evidence | None


def files(told: Told) -> dict[str, bytes]:
    """report.json and report.html."""
    return {JSON: _json(told), HTML: _html(told).encode()}


def figures(found: Comparison | None) -> dict[str, Any]:
    """A comparison as plain numbers: [figure, low, high] by name."""
    if found is None:
        return {}
    sides = {"candidate": found.candidate, "current": found.current, "change": found.change}
    return {
        "impressions": found.impressions,
        "users": found.users,
        "positives": found.positives,
        "ranked_by": found.ranked_by,
        **{
            side: {name: [each.value, each.low, each.high] for name, each in of.items()}
            for side, of in sides.items()
        },
    }


def _json(told: Told) -> bytes:
    verdict = told.verdict
    kept = ("model", "options", "fit", "seed", "days", "logs", "warm", "forget_days")
    found = {
        "model": told.model,
        "days": told.days,
        "status": verdict.status,
        "reasons": verdict.reasons,
        "current": told.current,
        "impressions": told.impressions,
        "joined": asdict(told.tally) if told.tally else None,
        "overall": figures(verdict.overall),
        "slices": {name: figures(each) for name, each in verdict.slices.items()},
        "rules": asdict(verdict.rules),
        "run": {key: told.run[key] for key in kept},
        "progress": told.run.get("progress"),
        "metrics": told.run.get("metrics"),
        "carried": told.run.get("carried"),
    }
    return (json.dumps(found, indent=1) + "\n").encode()


def _joined(tally: Tally) -> Iterator[str]:
    """What became of collected impressions and outcomes; what did not happen is not told."""
    for what, counts in (
        (f"{tally.kept:,} impressions were used; of these", tally.notes),
        ("impressions were left out", tally.left_out),
        (f"{tally.outcomes:,} outcomes followed; these gave no label", tally.vain),
    ):
        rows = [(why, f"{count:,}") for why, count in counts.items() if count]
        if rows:
            yield _table((what, "count"), rows)


def _html(told: Told) -> str:
    verdict, overall = told.verdict, told.verdict.overall
    against = f"version {told.current}" if told.current else "nothing: this is the first version"
    css = "passed" if verdict.passed else "refused"
    parts = [
        f"<h1>{escape(told.model)}, {escape(told.days.replace('_', ' to '))}: "
        f'<span class="{css}">{_STATUS[verdict.status]}</span></h1>',
        f"<p>Compared with {against}.</p>",
        _list(verdict.reasons),
    ]
    if overall is not None:
        parts += [
            "<h2>On the newest impressions</h2>",
            f"<p>{overall.impressions:,} impressions of {overall.users:,} users, "
            f"{overall.positives:,} of them positive. Figures are given with their interval; the "
            f"ranking is {overall.ranked_by.upper()}.</p>",
            _comparison(overall),
        ]
    if told.evidence is not None and overall is not None:
        parts += ["<h2>Plots</h2>", _plots(told.evidence, verdict)]
    if verdict.slices:
        parts += ["<h2>Slices</h2>", _slices(verdict.slices)]
    parts += [
        "<h2>Impressions</h2>",
        _table(("split", "impressions"), [(k, f"{v:,}") for k, v in told.impressions.items()]),
    ]
    if told.tally is not None:
        parts += ["<h2>Joined</h2>", *_joined(told.tally)]
    parts += _training(told.run)
    rules = [(name.replace("_", " "), f"{value}") for name, value in asdict(verdict.rules).items()]
    parts += ["<h2>Rules</h2>", _table(("rule", "value"), rules)]
    title = f"{escape(told.model)} {escape(told.days)}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _comparison(found: Comparison) -> str:
    rows = []
    for name, words in _FIGURES.items():
        change = found.change.get(name)
        shown = _cell(change, "+.2%" if name == "log_loss" else "+.4f")
        rows.append(
            (words, _cell(found.candidate.get(name)), _cell(found.current.get(name)), shown)
        )
    return _table(("", "candidate", "current", "change"), rows)


def _slices(slices: Mapping[str, Comparison]) -> str:
    rows = [
        (
            escape(name),
            f"{found.impressions:,}",
            found.ranked_by.upper(),
            _cell(found.candidate.get("ranking")),
            _cell(found.change.get("ranking"), "+.4f"),
            _cell(found.change.get("log_loss"), "+.2%"),
            _cell(found.candidate.get("calibration")),
        )
        for name, found in slices.items()
    ]
    names = ("ranking", "its change", "change of log loss", "predicted / observed")
    return _table(("slice", "impressions", "by", *names), rows)


def _training(run: Mapping[str, Any]) -> list[str]:
    if "progress" not in run:
        return ["<h2>Training</h2><p>Nothing was trained.</p>"]
    progress, carried = run["progress"], run.get("carried")
    parts = [
        "<h2>Training</h2>",
        f"<p>{escape(run['model'])}, seed {run['seed']}: {progress['impressions']:,} samples in "
        f"{progress['seconds']:.0f} s; best at step {progress['best_step']:,} of "
        f"{progress['step']:,}.</p>",
    ]
    if carried is None:
        return [*parts, "<p>From nothing (a cold start).</p>"]
    rows = [
        (escape(name), *(f"{each[of]:,}" for of in ("known", "new", "forgotten")))
        for name, each in carried["tables"].items()
    ]
    parts += ["<p>Going on from the current version:</p>"]
    parts += [_table(("ids of", "known", "new", "forgotten"), rows)]
    if carried["fresh"]:
        parts.append(f"<p>Fresh weights: {escape(', '.join(carried['fresh']))}.</p>")
    return parts


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in items)}</ul>" if items else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{names}</tr>{body}</table>"


def _cell(figure: Figure | None, form: str = ".4f") -> str:
    if figure is None:
        return "-"
    value, low, high = (format(each, form) for each in (figure.value, figure.low, figure.high))
    return f"{value}<small>{low} to {high}</small>"


def _plots(evidence: Evidence, verdict: Verdict) -> str:
    """Predicted against observed, and the change of each slice's ranking."""
    # Half a second to load, which only reports need.
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    changes = {"all": verdict.overall, **verdict.slices}
    shown = {n: c.change["ranking"] for n, c in changes.items() if c and "ranking" in c.change}
    canvas = Canvas(figsize=(9.5, 3.8), layout="constrained")
    left, *right = canvas.subplots(1, 2 if shown else 1, squeeze=False)[0]
    scores = {"candidate": evidence.candidate, "current": evidence.current}
    for (name, score), colour in zip(scores.items(), ("#1b6ca8", "#999999"), strict=True):
        if score is not None:
            predicted, observed = _reliability(score, evidence.label)
            left.plot(predicted, observed, "o-", color=colour, label=name)
    top = max(left.get_xlim()[1], left.get_ylim()[1])
    left.plot([0, top], [0, top], "--", color="#cccccc", zorder=0)
    left.set(xlabel="predicted", ylabel="observed", title="Calibration, in tenths")
    left.legend(frameon=False)
    for axes in right:
        for at, figure in enumerate(shown.values()):
            axes.plot([figure.low, figure.high], [at, at], color="#1b6ca8")
            axes.plot(figure.value, at, "o", color="#1b6ca8")
        axes.axvline(0, color="#cccccc", zorder=0)
        axes.axvline(-verdict.rules.ranking, color="#a3201d", linestyle=":", zorder=0)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.margins(y=0.2)
        axes.invert_yaxis()
        axes.set(title="Change of ranking, with its interval")
    for axes in (left, *right):
        axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": "gate", "svg.fonttype": "none"}):  # the same each time
        canvas.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _reliability(score: Floats, label: Floats) -> tuple[Floats, Floats]:
    """Mean score and mean label of each tenth of the impressions, by score."""
    parts = np.array_split(np.argsort(score, kind="stable"), _BINS)
    means = [(score[part].mean(), label[part].mean()) for part in parts if len(part)]
    predicted, observed = np.asarray(means).T
    return predicted, observed
