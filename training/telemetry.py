"""Telemetry of the collector, for Prometheus: what it collects, and the live quality of versions.

No user or item id is ever a label.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    start_http_server,
    write_to_textfile,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from training.collected import Written

_OF_TASK = {
    "impressions": "Joined impressions looked at",
    "clicks": "Of these, followed by the task's action",
    "predicted_observed": "Predicted / observed",
    "log_loss": "Log loss, nats",
    "auc": "AUC",
    "score_psi": "PSI of the probabilities against those of the validation set",
}
_OF_VERSION = {
    "requests": "Logged requests looked at",
    "unknown_items": "Share of candidates that the catalogue lacks",
    "unknown_users": "Share of users without a history",
}
Of = tuple[str, ...]


@dataclass(frozen=True)
class Live:
    """A state of live quality: a figure by name and labels, (model, version, task) or
    (model, version)."""

    of_task: Mapping[Of, Mapping[str, float]]
    of_version: Mapping[Of, Mapping[str, float]]


class Telemetry(Collector):
    """The metrics of one collector, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dinserve_collect_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"dinserve_collect_{name}", text, registry=self.registry)

        self.entries = counter("entries_total", "Entries written", "kind")
        self.known = counter("known_total", "Entries that were in the files already", "kind")
        self.removed = counter("removed_total", "Rows taken out for erased users", "kind")
        self.withdrawn = counter("canaries_withdrawn_total", "Canaries that the guard stopped")
        self.waiting = gauge("waiting_entries", "Entries in the streams")
        self.last = gauge("last_success_timestamp_seconds", "When a turn was last done")
        self._live = Live({}, {})
        self.registry.register(self)

    def written(self, written: Written) -> None:
        for kind, rows in written.new.items():
            self.entries.labels(kind).inc(len(rows))
        for counter, counts in ((self.known, written.known), (self.removed, written.removed)):
            for kind, count in counts.items():
                counter.labels(kind).inc(count)

    def turned(self, waiting: int) -> None:
        self.waiting.set(waiting)
        self.last.set(time.time())

    def show(self, live: Live) -> None:
        """Tell this state of live quality from now on, and no other."""
        self._live = live

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The latest state as a whole, so that a scrape never sees half of one."""
        live = self._live
        for texts, labels, figures in (
            (_OF_TASK, ["model", "version", "task"], live.of_task),
            (_OF_VERSION, ["model", "version"], live.of_version),
        ):
            for name, text in texts.items():
                family = GaugeMetricFamily(f"dinserve_live_{name}", text, labels=labels)
                for of, values in figures.items():
                    if not math.isnan(values.get(name, math.nan)):
                        family.add_metric(of, values[name])
                yield family

    def save(self, path: Path) -> None:
        """As a textfile for node_exporter, replaced as a whole."""
        write_to_textfile(str(path), self.registry)

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[int]:
        """Answer GET /metrics there; the port. Raises OSError where it is taken."""
        server, thread = start_http_server(port, host, self.registry)
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
