"""The watch: what is collected is joined, measured and told to Prometheus, and a canary guarded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from model.contract.labels import LabelError, LabelFile
from model.contract.repository import Repository
from training import drift
from training.collected import Collected, Written
from training.failed import Failed
from training.guard import Band, guard
from training.quality import Window, measure
from training.telemetry import Live, Of, Telemetry

Tell = Callable[..., None]


class Watch:
    """Live quality of the versions that the logs name. With a ``repository`` its canary is guarded,
    and scores are held against those of the validation set; with ``failed`` a canary that services
    tell of is withdrawn too.
    """

    def __init__(
        self,
        window: Window,
        telemetry: Telemetry,
        repository: Repository | None,
        band: Band,
        tell: Tell,
        clock: Callable[[], float] = time.time,
        failed: Failed | None = None,
    ) -> None:
        self._window, self._telemetry, self._tell = window, telemetry, tell
        self._repository, self._band, self._clock = repository, band, clock
        self._failed = failed
        self._validated: dict[tuple[int, str], list[int] | None] = {}

    @property
    def _now(self) -> int:
        return int(self._clock() * 1000)

    def begin(self, logs: Collected) -> None:
        """Take in the latest of what was collected before."""
        since = self._window.span.since(self._now)
        # By the day they happened, which may be the one before they were received.
        first = datetime.fromtimestamp(since / 1000, UTC).date() - timedelta(days=1)
        self._window.add(
            logs.events(first, since=since), logs.scores(first, since=since), self._now
        )

    def written(self, written: Written) -> None:
        """Take in what is on disk since now."""
        self._window.forget(written.erased)
        self._window.add(written.new["events"], written.new["scores"], self._now)

    def turn(self) -> None:
        """Measure, tell, and guard."""
        rows = self._window.impressions(self._now)
        parts = rows.partition_by("model", "version", "task", as_dict=True)
        of_task: dict[Of, Mapping[str, float]] = {
            (model, str(version), task): self._figures(model, version, task, part)
            for (model, version, task), part in parts.items()
        }
        of_version: dict[Of, Mapping[str, float]] = {
            (model, str(version)): asdict(found)
            for (model, version), found in self._window.requests().items()
        }
        self._telemetry.show(Live(of_task, of_version))
        if self._repository is not None:
            self._guard(self._repository, rows)

    def _figures(
        self, model: str, version: int, task: str, rows: pl.DataFrame
    ) -> Mapping[str, float]:
        found = measure(rows)
        figures = {
            "impressions": found.impressions,
            "clicks": found.clicks,
            "predicted_observed": found.ratio,
            "log_loss": found.log_loss,
            "auc": found.auc,
        }
        validated = self._histogram(model, version, task)
        if validated is not None:
            figures["score_psi"] = drift.psi(validated, found.histogram)
        return figures

    def _histogram(self, model: str, version: int, task: str) -> list[int] | None:
        if self._repository is None or model != self._repository.name:
            return None
        if (version, task) not in self._validated:
            self._validated[version, task] = drift.validated(self._repository, version, task)
        return self._validated[version, task]

    def _guard(self, repository: Repository, rows: pl.DataFrame) -> None:
        """By the first task. Labels that can't be read are no reason to stop collecting."""
        first = rows.filter(pl.col("task") == next(iter(self._window.actions)))
        labels = LabelFile(repository, by="collect")
        try:
            told = self._failed.withdraw(labels) if self._failed is not None else None
            if told is not None:
                self._withdrawn(repository, told.version, why=told.why)
            found = guard(labels, first, self._band)
        except (LabelError, OSError) as error:
            self._tell("guard_failed", error=str(error))
            return
        if found is not None:
            version, verdict = found
            why = {name: value for name, value in asdict(verdict).items() if name != "broken"}
            self._withdrawn(repository, version, **why)

    def _withdrawn(self, repository: Repository, version: int, **why: Any) -> None:
        self._telemetry.withdrawn.inc()
        self._tell("canary_withdrawn", model=repository.name, version=version, **why)
