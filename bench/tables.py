"""The figures as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.measure import shown
from bench.swaps import Found

Rows = Sequence[dict[str, Any]]


def graph(rows: Rows) -> Table:
    table = _table(
        "Scoring graph, D=64, attention 80-40: ms per call, median (quartiles)",
        ["unit"],
        ["T", "N", "REF", "ours", "times faster", "of sgemm peak", "largest |d|"],
    )
    for row in rows:
        table.add_row(
            row["unit"],
            str(row["T"]),
            str(row["N"]),
            shown(row["reference_ms"]),
            shown(row["ours_ms"]),
            shown(row["ratio"], ".2f"),
            f"{row['share_of_peak']:.0%}",
            f"{row['difference']:.0e}" + ("" if row["same"] else " DIFFERS"),
        )
    return table


def training(rows: Rows) -> Table:
    table = _table(
        "Training, DIN with the data set's recipe: samples/s, median (quartiles)",
        ["data"],
        ["longest history", "mean", "REF", "ours", "times faster"],
    )
    for row in rows:
        table.add_row(
            row["data"],
            str(row["longest"]),
            f"{row['mean_length']:.1f}",
            shown(row["reference_per_s"], ",.0f"),
            shown(row["ours_per_s"], ",.0f"),
            shown(row["ratio"], ".1f"),
        )
    return table


def quality(data: str, rows: Rows, over: Mapping[str, Any]) -> Table:
    error = "" if over["error"] is None else f" +- {over['error']:.4f}"
    table = _table(
        f"Trained alike on {data}: GAUC on test, {over['difference']:+.4f}{error} from REF's; "
        f"{shown(over['ratio'], '.1f')} times the samples/s",
        ["seed"],
        ["REF", "ours", "REF samples/s", "ours samples/s"],
    )
    for row in rows:
        table.add_row(
            str(row["seed"]),
            f"{row['reference_gauc']:.4f}",
            f"{row['ours_gauc']:.4f}",
            f"{row['reference_per_s']:,.0f}",
            f"{row['ours_per_s']:,.0f}",
        )
    return table


def rows(found: Mapping[str, Any]) -> Table:
    table = _table(
        f"Memory of a training on {found['impressions']:,} impressions, by stage",
        ["job", "stage"],
        ["done", "of", "s", "CPU", "waited", "anonymous MiB", "resident MiB"],
    )
    for job in ("prepare", "fit"):
        for stage in found.get(job, {}).get("stages", []):
            table.add_row(
                job,
                stage["name"],
                f"{stage['done']:,}",
                f"{stage['total']:,}",
                f"{stage['seconds']:,.0f}",
                f"{stage['cpu_seconds'] / max(stage['seconds'], 1e-9):.0%}",
                f"{stage['waited']:.2%}" if stage["name"] == "train" else "",
                f"{stage['anonymous_mib']:,.0f}",
                f"{stage['resident_mib']:,.0f}",
            )
        if not found.get(job, {"ended": True})["ended"]:
            table.add_row(job, "stopped")
    table.caption = "Peaks. CPU: share of the time. Waited: share of the training for data."
    return table


def saturation(rows: Rows) -> Table:
    table = _table(
        "Service, N=200, one core: saturation, median (quartiles)",
        ["histories", "server"],
        ["conn.", "requests/s", "ours: times", "CPU ms/request", "ours: times", "taken", "bad"],
    )
    table.caption = _histories(rows) + " Taken: share of the server's core used by others."
    for row in rows:
        ours = row["server"] == "ours"
        table.add_row(
            row["mix"],
            row["server"],
            str(row["connections"]),
            shown(row["per_second"], ",.0f"),
            "" if ours else shown(row["times_faster"], ".2f"),
            shown(row["cpu_ms"], ".1f"),
            "" if ours else shown(row["times_cpu"], ".2f"),
            f"{row['taken']['median']:.0%}",
            str(row["errors"]),
            end_section=ours,
        )
    return table


def constant(rows: Rows) -> Table:
    table = _table(
        "Service, N=200, constant arrivals: median (quartiles) of the calmer half of turns",
        ["histories", "server"],
        ["arrivals/s", "answers/s", "p50 ms", "p99 ms", "p99/p50", "used", "taken", "bad"],
    )
    table.caption = (
        "Latency from when a request should leave; where answers/s stay behind arrivals it grows"
        " with the turn. Used, taken: shares of the server's core, by it and by others."
    )
    for row in rows:
        table.add_row(
            row["mix"],
            row["server"],
            f"{row['offered_per_second']:.1f}",
            shown(row["per_second"]),
            shown(row["p50_ms"]),
            shown(row["p99_ms"], ",.0f"),
            f"{row['tail']['median']:.1f}",
            f"{row['busy']['median']:.0%}",
            f"{row['taken']['median']:.0%}",
            str(row["errors"]),
            end_section=row["server"] == "ours",
        )
    return table


def forms(rows: Rows) -> Table:
    table = _table(
        "Service, N=500, T=50, one connection: ms per request, median (quartiles)",
        ["form"],
        ["CPU", "model", "CPU - model", "CPU of the loop", "requests/s", "kB in", "kB out", "bad"],
    )
    table.caption = "Model: as the answer says. The loop: the thread that does all but the model."
    for row in rows:
        table.add_row(
            row["form"],
            shown(row["cpu_ms"], ".2f"),
            shown(row["model_ms"], ".2f"),
            shown(row["rest_ms"], ".2f"),
            shown(row["loop_ms"], ".2f"),
            shown(row["per_second"]),
            f"{row['request_bytes'] / 1e3:.1f}",
            f"{row['answer_bytes'] / 1e3:.1f}",
            str(row["errors"]),
        )
    return table


def swaps(found: Found) -> Table:
    table = _table(
        f"Swaps under load, N=200, one core: {found.seen} of {found.swaps} swaps seen",
        ["requests"],
        ["number", "p50 ms", "p95 ms", "p99 ms", "longest"],
    )
    before, after = found.memory_before_mib, found.memory_after_mib
    table.caption = (
        f"Of the calmer half of the swaps, others taking up to {found.taken:.0%} of the core. p99"
        f" during swaps: {found.ratio:.2f} times that of all others; of all swaps"
        f" {found.whole_ratio:.2f} times. Of all {found.requests:,} requests {found.failed} failed."
        f" Memory: {before:.1f} MiB before, {after:.1f} after."
    )
    rows = (
        ("during a swap", found.during_ms),
        ("all others", found.steady_ms),
        ("during any of all swaps", found.all_during_ms),
        ("all others then", found.all_steady_ms),
        ("a swap, label to first answer", found.swap_ms),
    )
    for name, ms in rows:
        count, *several = ms.values()
        table.add_row(name, f"{count:,.0f}", *(f"{value:,.1f}" for value in several))
    return table


def against(rows: Rows) -> Table:
    table = _table(
        "This service against another: CPU us per request, median; ratio (quartiles)",
        ["form", "histories"],
        ["N", "loop, other", "loop, this", "ratio", "all, other", "all, this", "ratio", "bad"],
    )
    table.caption = "The loop: the thread that does all but the model. All: the process."
    for row in rows:
        figures = []
        for name in ("loop", "all"):
            figures += [f"{row[f'{name}_us'][who]['median']:,.0f}" for who in ("the other", "this")]
            figures.append(shown(row[f"{name}_ratio"], ".2f"))
        table.add_row(row["form"], row["lengths"], str(row["N"]), *figures, str(row["errors"]))
    return table


def profile(found: dict[str, Any]) -> Table:
    plain, profiled = (found["loop_us"][name] for name in ("plain", "profiled"))
    table = _table(
        f"Beside the model, {found['form']}, N={found['candidates']}, T=50, one connection",
        ["module"],
        ["share", "profiled us/request"],
    )
    table.caption = (
        f"The event loop's thread took {plain:,.0f} us a request, and {profiled:,.0f} while it was"
        " profiled: shares count for more than times."
    )
    whole = sum(found["rows"].values())
    for name, us in found["rows"].items():
        if us >= whole / 200:
            table.add_row(name, f"{us / whole:.1%}", f"{us:,.0f}")
    return table


def _histories(rows: Rows) -> str:
    found = {row["mix"]: row["lengths"] for row in rows}
    return "; ".join(f"{name}: {lengths}" for name, lengths in found.items()) + " behaviours."


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
