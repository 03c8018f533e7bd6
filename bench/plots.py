"""The figures as PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

matplotlib.use("Agg")
BLUE, ORANGE, GREY = "#2563a8", "#d9822b", "#9aa3ad"
BAR = 0.38


def graph(rows: Rows, path: Path) -> None:
    """Milliseconds of a call by (T, N), a panel per unit."""
    units = list(dict.fromkeys(row["unit"] for row in rows))
    height = 1.5 + 0.42 * len(rows) / len(units)
    figure = Figure((5.5 * len(units), height), layout="constrained")
    for unit, axes in zip(units, _panels(figure, len(units)), strict=True):
        of = [row for row in rows if row["unit"] == unit][::-1]
        for shift, name, colour in ((0.5, "REF", GREY), (-0.5, "ours", BLUE)):
            values = [row["ours_ms" if name == "ours" else "reference_ms"] for row in of]
            places = [at + shift * BAR for at in range(len(of))]
            bars = axes.barh(places, [v["median"] for v in values], BAR, label=name, color=colour)
            axes.bar_label(bars, [_ms(value["median"]) for value in values], padding=3, fontsize=8)
        axes.set_yticks(range(len(of)), [f"T={row['T']}, N={row['N']}" for row in of])
        log = len(of) > 1
        axes.set_xscale("log" if log else "linear")
        axes.margins(x=0.15)
        axes.set_title(f"{unit} unit", fontsize=10)
        axes.set_xlabel(f"ms per call, one core{' (log)' if log else ''}")
        axes.legend(frameon=False, loc="best")
    _save(figure, path)


def saturation(rows: Rows, path: Path) -> None:
    """Requests/s of each server by the lengths of histories; the most connections measured."""
    most = max(row["connections"] for row in rows)
    rows = [row for row in rows if row["connections"] == most]
    lengths = list(dict.fromkeys(row["lengths"] for row in rows))
    figure = Figure((2.2 + 2.4 * len(lengths), 4), layout="constrained")
    (axes,) = _panels(figure, 1)
    width = 0.27
    kinds = (("REF padded", GREY), ("REF trimmed", ORANGE), ("ours", BLUE))
    for shift, (kind, colour) in enumerate(kinds):
        of = [row["per_second"] for row in rows if row["server"].startswith(kind)]
        places = [at + (shift - 1) * width for at in range(len(lengths))]
        middle = [value["median"] for value in of]
        spread = [
            [value["median"] - value["low"] for value in of],
            [value["high"] - value["median"] for value in of],
        ]
        name = {"REF padded": "REF, padded", "REF trimmed": "REF, true lengths"}.get(kind, kind)
        bars = axes.bar(
            places, middle, width, yerr=spread, label=name, color=colour, ecolor="#444", capsize=2
        )
        axes.bar_label(bars, [f"{value:.0f}" for value in middle], padding=2, fontsize=9)
    axes.set_xticks(range(len(lengths)), [f"T: {text}" for text in lengths])
    axes.set_ylabel("requests/s")
    axes.set_title(f"Saturation, N=200, one core, {most} connections", fontsize=10)
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    _save(figure, path)


def latency(rows: Rows, path: Path) -> None:
    """Latency by percentile at constant arrivals, a panel per rate."""
    rates = list(dict.fromkeys((row["lengths"], row["offered_per_second"]) for row in rows))
    figure = Figure((4.8 * len(rates), 4), layout="constrained")
    for (lengths, rate), axes in zip(rates, _panels(figure, len(rates)), strict=True):
        for row in rows:
            if (row["lengths"], row["offered_per_second"]) != (lengths, rate):
                continue
            values = list(row["percentiles"].values())
            colour = BLUE if row["server"] == "ours" else ORANGE
            name = f"{row['server']}: {row['per_second']['median']:.0f} answers/s"
            axes.plot(range(len(values)), values, "o-", color=colour, label=name)
            for at, (percentile, value) in enumerate(row["percentiles"].items()):
                if percentile in ("50", "99"):
                    axes.annotate(
                        _ms(value),
                        (at, value),
                        (0, -14 if row["server"] == "ours" else 7),
                        textcoords="offset points",
                        ha="center",
                        fontsize=9,
                    )
        axes.set_xticks(range(len(row["percentiles"])), [f"p{p}" for p in row["percentiles"]])
        axes.set_yscale("log")
        axes.margins(y=0.12)
        axes.set_ylabel("ms (log)")
        axes.set_title(f"{rate:.0f} requests/s, N=200, T: {lengths}", fontsize=10)
        axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _panels(figure: Figure, count: int) -> list[Axes]:
    found = [figure.add_subplot(1, count, at + 1) for at in range(count)]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
    return found


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
