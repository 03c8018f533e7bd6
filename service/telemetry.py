"""Telemetry: what the service tells its operators, as Prometheus metrics (docs/observe.md).

No user or item id is ever a label. Several workers keep their metrics in one folder (see
`service.shared`), and each of them tells those of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from service import shared
from service.errors import SHED, STAGES

_MILLISECONDS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000, 5000)
_SECONDS = tuple(each / 1e3 for each in _MILLISECONDS)
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_RANKS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
_PAIRS = tuple(10.0**power for power in range(8))
_STATUSES = (200, 400, 408, 413, 415, 422, 500, 503, 504)


Merge = Literal["livesum", "livemin", "livemax"]


class Telemetry:
    """The metrics of one application; several may live in a process.

    With a ``folder`` they are those of all the workers that share it. `shared.join` comes first.
    """

    def __init__(self, folder: Path | None = None) -> None:  # noqa: PLR0915 (a line per metric)
        self._followed: list[tuple[Gauge, Callable[[], float]]] = []
        registry = CollectorRegistry()
        if folder is None:
            self._registry = registry
            ProcessCollector(registry=registry)
        else:
            self._registry = shared.registry(folder)
        PlatformCollector(registry=self._registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dinserve_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, merge: Merge = "livesum") -> Gauge:
            # How the values of several workers that live become one.
            return Gauge(
                f"dinserve_{name}", text, labels, registry=registry, multiprocess_mode=merge
            )

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"dinserve_{name}", text, registry=registry, buckets=buckets)

        self.requests = counter("requests_total", "Score requests answered", "status")
        self.shed = counter("requests_shed_total", "Of these, refused with 503", "reason")
        self.expired = counter("requests_expired_total", "Of these, too late: 504", "stage")
        self.request_seconds = histogram("request_seconds", "Whole of a score request", _SECONDS)
        self.store_seconds = histogram("store_seconds", "Read of history and profile", _SECONDS)
        self.encode_seconds = histogram("encode_seconds", "Encoding of a request", _SECONDS)
        self.queue_seconds = histogram("queue_seconds", "Wait for the model", _SECONDS)
        self.model_seconds = histogram("model_seconds", "Run of the model", _SECONDS)
        self.candidates = histogram("candidates", "Candidates per request", _SIZES)
        self.history_length = histogram("history_length", "Behaviours per request", _SIZES)
        self.unknown_items = counter("unknown_items_total", "Candidates not in the catalogue")
        self.degraded = counter("degraded_total", "Requests scored with less", "reason")
        self.store_failures = counter("store_failures_total", "Reads that failed", "reason")
        self.write_failures = counter(
            "store_write_failures_total", "Writes of events and logs that failed", "reason"
        )
        self.breaker_open = gauge("breaker_open", "Workers that do not ask the store now")
        self.calls = counter("model_calls_total", "Runs of the model")
        self.call_requests = histogram("model_call_requests", "Requests per run", _SIZES)
        self.call_pairs = histogram("model_call_pairs", "Candidate x behaviour pairs", _PAIRS)
        self.queued_pairs = gauge("queued_pairs", "Pairs that wait for the model")
        self.queued_requests = gauge("queued_requests", "Requests that wait for the model")
        self.ready = gauge("ready", "Workers that serve a verified model")
        self.version = gauge("model_version", "The version served", "model", merge="livemin")
        self.created = gauge(
            "model_created_timestamp_seconds", "When that was made", "model", merge="livemin"
        )
        self.swaps = counter("model_swaps_total", "Versions taken into service")
        self.refused = counter(
            "model_versions_refused_total", "Versions found bad", "model", "reason"
        )
        self.mirror_failures = counter(
            "mirror_failures_total", "Looks at the object store that failed"
        )
        self.mirrored = gauge(
            "mirror_last_success_timestamp_seconds", "When the last one did not", merge="livemax"
        )
        beside = ("model", "label")
        self.beside = gauge("label_version", "Canary or shadow, 0: none", *beside, merge="livemax")
        self.share = gauge("label_share", "Its share, 0 to 1", *beside, merge="livemax")
        self.labels_broken = gauge("labels_broken", "Workers that can't do as the labels say")
        self.withdrawn = counter("canary_withdrawn_total", "Canaries that failed here", "model")
        self.by_label = counter("label_requests_total", "Requests of a side", "label", "outcome")
        self.shadow_requests = counter("shadow_requests_total", "Scored beside", "outcome")
        self.shadow_mean = histogram("shadow_difference_mean", "Mean |difference|", _DIFFERENCES)
        self.shadow_max = histogram("shadow_difference_max", "Largest |difference|", _DIFFERENCES)
        self.shadow_rank = histogram("shadow_rank_correlation", "Spearman's, of candidates", _RANKS)

        self.events = counter("events_total", "Events by what became of them", "status")
        self.erased = counter("users_erased_total", "Users erased")
        self.logged = counter("scores_logged_total", "Scores by what became of their log", "result")
        # Told as 0 from the start: of a series that begins with 1, no rate knows the first.
        for told, values in (
            (self.requests, map(str, _STATUSES)),
            (self.shed, SHED),
            (self.expired, STAGES),
            (self.logged, ("logged", "erased", "full", "dropped")),
        ):
            for value in values:
                told.labels(value)

    def follow(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Have a gauge say what ``value()`` is, anew with each `refresh`."""
        self._followed.append((gauge, value))

    def refresh(self) -> None:
        for gauge, value in self._followed:
            gauge.set(value())

    async def keep_fresh(self, every: float) -> None:
        """`refresh` for ever, so that other workers tell it too."""
        while True:
            self.refresh()
            await asyncio.sleep(every)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        self.refresh()
        return generate_latest(self._registry)
