"""report.html: the whole comparison on one page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from training import metrics
from training.comparison import plots

Report = Mapping[str, Any]
_METRICS = {
    "gauc": ("GAUC", ".4f"),
    "rela_impr.gauc": ("RelaImpr of GAUC", "+.1%"),
    "auc": ("AUC", ".4f"),
    "rela_impr.auc": ("RelaImpr of AUC", "+.1%"),
    "log_loss": ("log loss", ".4f"),
    "normalised_entropy": ("NE", ".4f"),
    "ece": ("ECE", ".4f"),
}
_TESTS = (
    "<p>Differences, with 95 % intervals. <b>Over seeds</b>: a paired t-test of the runs with "
    "the same seed. It asks whether another seed may turn the order round on these very "
    "impressions; with few seeds it finds only what is large. <b>Over users</b>: the test "
    "users are drawn again with replacement, the same for both models, the seeds of each "
    "averaged. It asks whether other users may turn the order round for these very runs. "
    "Neither speaks of another day, data set or settings, and of many comparisons some come "
    "out large by chance. The best was chosen by these very impressions, so differences to it "
    "flatter it a little.</p>"
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li { max-width: 56rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; border-bottom: 2px solid #888; vertical-align: bottom; }
small { color: #666; display: block; white-space: nowrap; }
code { overflow-wrap: anywhere; }
td.text { text-align: left; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
"""


def html(report: Report) -> str:
    """The page."""
    title = f"{report['schema']}: {len(report['models'])} models compared"
    parts = [f"<h1>{escape(title)}</h1>", _what(report), _list(report["notes"])]
    parts += ["<h2>Quality</h2>"]
    for task in report["tasks"]:
        parts += _quality(report, task)
    parts += ["<h2>Paired tests</h2>", _TESTS]
    for task in report["tasks"]:
        parts += _tests(report, task)
    parts += ["<h2>Speed and size</h2>", *_costs(report)]
    parts += _pictures(report)
    parts += ["<h2>Data</h2>", _data(report), "<h2>Settings</h2>", _settings(report)]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _what(report: Report) -> str:
    """What was compared, and which is the best by what."""
    seeds, base, best = report["seeds"], report["baseline"], report["best"]
    by, _ = _METRICS[report["ranking"][report["tasks"][0]]["by"]]
    return (
        f"<p>Trained on one split, {seeds} {'seed' if seeds == 1 else 'seeds'} each, and measured "
        f"on the same {report['impressions']['test']['impressions']:,} test impressions. The "
        f"baseline is <b>{escape(base)}</b>; the best by mean test {by}{_of_first(report)} is "
        f"<b>{escape(best)}</b>.</p>"
    )


def _quality(report: Report, task: str) -> list[str]:
    """Every metric of a task, the best model first."""
    shown = _shown(report, task, [model["metrics"] for model in report["models"].values()])
    rows = [
        (
            _name(report, label),
            *(_spread(report["models"][label]["metrics"].get(k), f) for k, (_, f) in shown.items()),
        )
        for label in report["ranking"][task]["labels"]
    ]
    heads = ("model", *(name for name, _ in shown.values()))
    words = (
        "Means over seeds, below each the standard deviation. RelaImpr compares with the "
        "baseline's run of the same seed: (AUC - 0.5) / (AUC of the baseline - 0.5) - 1. "
        "For log loss, NE (log loss over that of the mean label) and ECE less is better."
    )
    return [_heading(report, task), _table(heads, rows), f"<p>{words}</p>"]


def _tests(report: Report, task: str) -> list[str]:
    """Every metric of a task, each model less the baseline, and less the best."""
    parts = []
    several = f"{escape(task)}, less" if len(report["tasks"]) > 1 else "Less"
    for rival in ("baseline", "best"):
        against = {
            label: report["models"][label]["against"][rival]
            for label in report["ranking"][task]["labels"]
            if rival in report["models"][label]["against"]
        }
        shown = _shown(report, task, against.values())
        columns = [
            (key, kind, name, form)
            for key, (name, form) in shown.items()
            for kind in ("seeds", "users")
            if any(kind in tests.get(key, {}) for tests in against.values())
        ]
        if not columns:
            continue
        rows = [
            (
                _name(report, label),
                *(
                    _difference(tests.get(key, {}).get(kind), form)
                    for key, kind, _, form in columns
                ),
            )
            for label, tests in against.items()
        ]
        heads = ("model", *(f"{name}, over {kind}" for _, kind, name, _ in columns))
        parts += [f"<h3>{several} {rival} ({escape(report[rival])})</h3>", _table(heads, rows)]
    return parts


def _shown(
    report: Report, task: str, found: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Name and form of those metrics of a task that some model has."""
    keys = {metrics.of_task(name, task, report["tasks"]): how for name, how in _METRICS.items()}
    there = set().union(*found)
    return {key: how for key, how in keys.items() if key in there}


def _costs(report: Report) -> list[str]:
    of, timings = report["latency_of"], report["timings"]
    rows = []
    for label, model in report["models"].items():
        speed, latency = timings["samples_per_s"][label], timings["latency_ms"].get(label)
        size = model["onnx_bytes"]
        rows.append(
            (
                _name(report, label),
                _spread(speed, ",.0f"),
                f"{model['parameters']['tables']:,}",
                f"{model['parameters']['layers']:,}",
                "-" if size is None else f"{size / 2**20:.2f} MiB",
                "-"
                if latency is None
                else f"{latency['median']:.2f} ms<small>{latency['quarter']:.2f} to "
                f"{latency['three_quarters']:.2f}</small>",
            )
        )
    heads = (
        "model",
        "training, samples/s",
        "parameters in tables",
        "in layers",
        "model.onnx",
        f"latency, T={of['behaviours']}, N={of['candidates']}",
    )
    machine = timings["machine"]
    words = (
        f"Latency is of one call of the exported graph in onnxruntime {machine['onnxruntime']} on "
        f"one CPU thread: {of['candidates']} candidates of a user with {of['behaviours']} "
        f"behaviours; median and quartiles of {of['calls']} calls, the models taking turns. "
        f"Threads of training: {report['threads']}. {machine['cpu'] or 'CPU not known'}, "
        f"{machine['cores']} cores, PyTorch {machine['torch']}."
    )
    return [_table(heads, rows), f"<p>{escape(words)}</p>"]


def _pictures(report: Report) -> list[str]:
    mean = ""
    if len(report["tasks"]) > 1:
        mean = " All are means over the tasks, GAUC and AUC over those that have one."
    best = escape(report["attention"]["label"]) if report["attention"] else ""
    parts = [
        "<h2>Training curves</h2>",
        _image(plots.curves(report), "Losses and validation ranking of each model by step"),
        "<p>A line for each seed; the training loss is averaged over fortieths of the steps. "
        "A model over-fits where its training loss goes on falling while its validation loss rises "
        "or, below it, what its weights are chosen by gets worse; the large dot is the step whose "
        "weights are kept. "
        f"Dropout makes the training loss look higher than it is.{mean}</p>",
        "<h2>Reliability</h2>",
        *_of_tasks(
            report,
            plots.reliability,
            "Mean label by mean probability of each model",
            "Test impressions in 20 bins of equal count by their probability, seeds averaged: "
            "below the diagonal a model promises too much, above it too little.",
        ),
        "<h2>GAUC by length of the history</h2>",
        *_of_tasks(
            report,
            plots.by_history,
            "Test GAUC by length of the history",
            "A user's impressions within a bin are ranked among themselves, so bins hold different "
            "users and are not parts of the total; models compare within a bin. Points over short "
            "bars are noise.",
        ),
        "<h2>Lift of attention over pooling</h2>",
    ]
    if why := _no_lift(report):
        parts.append(f"<p>{why}</p>")
    else:
        parts += _of_tasks(
            report,
            plots.lift,
            "Difference of GAUC by length of the history",
            "GAUC of each model with attention less that of the baseline, seeds averaged, with "
            "95 % intervals over users: attention pays where an interval lies above 0. The models "
            "differ in more than attention where their settings do (see Settings).",
        )
    parts += ["<h2>Attention of real users</h2>"]
    for png in plots.attention(report):
        parts.append(_image(png, "Attention weights of a user's behaviours for each candidate"))
    if best:
        parts.append(
            f"<p>The weight that <b>{best}</b>, seed 0, gives each behaviour of a test user (a "
            "column) for each candidate (a row): behaviours like the candidate should stand out, "
            "and rows of unlike candidates differ. A full dot is a candidate whose label"
            f"{_of_first(report)} was 1. Weights are as the model uses them, so a raw one has no "
            "fixed scale and its size, not its sign, says how much a behaviour counts.</p>"
        )
    else:
        parts.append("<p>No model here weighs behaviours by the candidate.</p>")
    if (drawn := plots.item_map(report)) is not None:
        parts += [
            "<h2>Item embeddings</h2>",
            _image(drawn, "Items on the first two principal components"),
            f"<p>The {len(report['item_map']['items']):,} most shown items by the two directions "
            "in which what "
            f"<b>{escape(report['item_map']['label'])}</b>, seed 0, learnt of each item id differs "
            "most; the larger the dot, the more training impressions. Colours that keep together "
            "say that ids of a category were learnt alike; two directions are a small part of "
            "all, so colours that mix here may still be apart.</p>",
        ]
    return parts


def _no_lift(report: Report) -> str:
    """Why no model can be compared with pooling, if so."""
    if not report["with_attention"]:
        return "No model here weighs behaviours by the candidate."
    if report["baseline"] in report["with_attention"]:
        return "The baseline has attention itself, so there is no pooling to compare with."
    return ""


def _of_tasks(
    report: Report, draw: Callable[[Report, str], bytes | None], text: str, words: str
) -> list[str]:
    """A plot for each task, or a sentence where there is none, and words on those there are."""
    none = "<p>No user has test labels of both classes, so there is no GAUC.</p>"
    drawn = {task: draw(report, task) for task in report["tasks"]}
    parts = []
    for task, png in drawn.items():
        parts += [_heading(report, task), _image(png, text) if png else none]
    return [*parts, f"<p>{words}</p>"] if any(drawn.values()) else parts


def _data(report: Report) -> str:
    rows = [
        (
            split,
            f"{found['impressions']:,}",
            f"{found['users']:,}",
            *(
                f"{found['positives'][task] / found['impressions']:.1%}"
                if found["impressions"]
                else "-"
                for task in report["tasks"]
            ),
        )
        for split, found in report["impressions"].items()
    ]
    heads = ("split", "impressions", "users", *(f"{escape(t)} = 1" for t in report["tasks"]))
    return _table(heads, rows)


def _settings(report: Report) -> str:
    rows = []
    for label, model in report["models"].items():
        shown = ", ".join(
            f"{name} = {value}" for of in ("options", "fit") for name, value in model[of].items()
        )
        rows.append(f"<tr><td>{escape(label)}</td><td class=text>{escape(shown)}</td></tr>")
    return f"<table><tr><th>model</th><th></th></tr>{''.join(rows)}</table>"


def _heading(report: Report, task: str) -> str:
    """That of a task, where there are several."""
    return f"<h3>{escape(task)}</h3>" if len(report["tasks"]) > 1 else ""


def _of_first(report: Report) -> str:
    """Words that name the first task, where there are several."""
    return f" of {escape(report['tasks'][0])}" if len(report["tasks"]) > 1 else ""


def _name(report: Report, label: str) -> str:
    marks = [name for name in ("baseline", "best") if report[name] == label]
    return escape(label) + (f"<small>{', '.join(marks)}</small>" if marks else "")


def _spread(found: Mapping[str, Any] | None, form: str) -> str:
    if found is None:
        return "-"
    sd = found["sd"]
    below = "" if sd is None else f"<small>\u00b1 {format(sd, form.replace('+', ''))}</small>"
    return f"{format(found['mean'], form)}{below}"


def _difference(found: Mapping[str, Any] | None, form: str) -> str:
    if found is None:
        return "-"
    difference, low, high = (
        format(found[key], f"+{form.removeprefix('+')}") for key in ("difference", "low", "high")
    )
    p = "" if found["p"] is None else f"; p = {found['p']:.2g}"
    return f"{difference}<small>{low} to {high}{p}</small>"


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in items)}</ul>" if items else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    names = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{names}</tr>{body}</table></div>"
