"""What a job tells those who scheduled it: one line of JSON, an exit code, and metrics.

=== ============================================================
0   published, or would be (``--dry-run``)
1   failed
10  refused by the gate
11  nothing new
12  another one is at work
=== ============================================================
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile

from training.retrain import Outcome

EXITS = {
    "published": 0,
    "would_publish": 0,
    "failed": 1,
    "refused": 10,
    "nothing_new": 11,
    "busy": 12,
}
PUSH_SECONDS = 10.0


class StoppedError(RuntimeError):
    """A job that was asked to stop."""


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """SIGTERM raises `StoppedError` in here: what is held is released, and it is announced."""

    def stop(*_: object) -> None:
        raise StoppedError("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Announcement:
    """Where a retraining of ``model`` is announced; ``say`` takes lines of text, ``warn`` what went
    wrong with the announcement itself, which is no reason for a job to fail."""

    model: str
    say: Callable[[str], None]
    warn: Callable[[str], None]
    metrics_file: Path | None = None
    push_gateway: str | None = None
    began: float = field(default_factory=time.perf_counter)

    def ended(self, outcome: Outcome) -> int:
        """The exit code."""
        found = {key: value for key, value in asdict(outcome).items() if value is not None}
        if outcome.window is not None:
            found["window"] = [str(outcome.window.first), str(outcome.window.last)]
        if outcome.report is not None:
            found["report"] = str(outcome.report)
        return self._tell(found)

    def failed(self, error: BaseException, status: str = "failed") -> int:
        """The exit code."""
        line = " ".join(str(error).split()) or type(error).__name__
        return self._tell({"status": status, "model": self.model, "error": line})

    def _tell(self, found: dict[str, Any]) -> int:
        found["seconds"] = round(time.perf_counter() - self.began, 3)
        registry = _registry(self.model, found)
        try:
            if self.metrics_file is not None:
                write_to_textfile(str(self.metrics_file), registry)
        except OSError as error:
            self.warn(f"--metrics-file: {error.strerror}")
        try:
            if self.push_gateway is not None:
                pushadd_to_gateway(
                    self.push_gateway,
                    job="dinserve_retrain",
                    registry=registry,
                    grouping_key={"model": self.model},
                    timeout=PUSH_SECONDS,
                )
        except (OSError, ValueError) as error:
            self.warn(f"--push-gateway: {error}")
        self.say(json.dumps(found))
        return EXITS[found["status"]]


def _registry(model: str, found: dict[str, Any]) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"dinserve_retrain_{name}", what, ["model", *labels], registry=registry)

    ended = gauge("end_timestamp_seconds", "When the last retraining ended.")
    ended.labels(model).set_to_current_time()
    gauge("seconds", "How long it took.").labels(model).set(found["seconds"])
    status = gauge("status", "1 for what came of it, 0 for all else.", "status")
    for name in EXITS:
        status.labels(model, name).set(name == found["status"])
    if "version" in found:
        gauge("version", "The version it published.").labels(model).set(found["version"])
    metrics = found.get("metrics", {})
    if metrics:
        seen = gauge("impressions", "Impressions that the gate compared on.")
        seen.labels(model).set(metrics["impressions"])
        figure = gauge("figure", "What the gate measured.", "of", "figure", "end")
        for of in ("candidate", "current", "change"):
            for name, values in metrics[of].items():
                named = metrics["ranked_by"] if name == "ranking" else name
                for end, value in zip(("value", "low", "high"), values, strict=True):
                    figure.labels(model, of, named, end).set(value)
    return registry
