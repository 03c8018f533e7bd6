"""The listing: a table of a repository's versions, of their labels, and whether each could be
served here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.contract.labels import Labels
from service.versions import Listed, Versions

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))
_COUNTS = 100.0  # what is as much is counted, not measured


def print_versions(versions: Versions) -> None:
    """Check each version as the service does (on the CPU) and print it, the newest first.

    Raises `LabelError`.
    """
    repository, labels, now = versions.repository, versions.labels(), time.time()
    table = Table(title=f"{repository.name} in {repository.root}: {said(labels)}")
    for column in ("version", "label", "age", "traffic", "state", "metrics", "lineage"):
        table.add_column(column, overflow="fold")
    for listed in versions.listed():
        facts = listed.facts
        table.add_row(
            str(listed.version),
            ", ".join(listed.labels),
            age(now - facts.made),
            _traffic(listed),
            "valid" if facts.reason is None else escape(f"refused: {facts.trouble}"),
            escape(_figures(facts.metrics)),
            escape(_lines(facts.lineage)),
        )
    Console().print(table)


def said(labels: Labels) -> str:
    """The labels in one line."""
    if labels.stable is None:
        return "the newest valid version is stable"
    pinned = ", pinned" if labels.pinned else ""
    parts = [f"{labels.stable} is stable{pinned}"]
    if labels.canary is not None:
        parts.append(f"{labels.canary} is the canary of {labels.canary_share:.4g} of the users")
    if labels.shadow is not None:
        parts.append(f"{labels.shadow} is the shadow of {labels.shadow_share:.4g} of the requests")
    return "; ".join(parts)


def age(seconds: float) -> str:
    """In the largest unit that fits: "3 d"."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _traffic(listed: Listed) -> str:
    parts = [f"{listed.traffic:.4g}"] if listed.traffic or "canary" in listed.labels else []
    if "shadow" in listed.labels:
        parts.append(f"beside {listed.shadow:.4g}")
    return ", ".join(parts)


def _figures(metrics: Mapping[str, Any]) -> str:
    """Those of the test set, or of the validation set where there is no other, by its name."""
    for split in ("test", "validation"):
        if figures := metrics.get(split):
            return f"{split}\n{_lines(figures)}"
    return _lines(metrics)


def _lines(values: Mapping[str, Any]) -> str:
    """Single values, a line each; histograms, settings and the like stay in the manifest."""
    values = {k: v for k, v in values.items() if isinstance(v, str | int | float)}
    return "\n".join(f"{name} {_text(value)}" for name, value in values.items())


def _text(value: str | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= _COUNTS else f"{value:.4f}"
