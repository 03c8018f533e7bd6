"""Shared metrics: the folder where several workers keep their metrics, so that each tells all.

It is prometheus_client's multiprocess form: files of values, memory-mapped by the worker that
writes them. They go by the worker's number, not by its process: who takes over a number goes on
with the counters of the one before, and no file is left behind. ``NUMBER.pid`` says which process
a worker is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_TRIES = 3


def join(folder: Path, worker: int) -> None:
    """Keep the metrics that this process makes from now on in a folder, as those of a worker."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: worker)
    (folder / f"{worker}.pid").write_text(str(os.getpid()))


def leave(folder: Path, worker: int) -> None:
    """A worker ended: its counters stay, what it was at the moment goes."""
    mark_process_dead(worker, str(folder))
    (folder / f"{worker}.pid").unlink(missing_ok=True)


def registry(folder: Path) -> CollectorRegistry:
    """What all workers of a folder measured, and memory and time of each of their processes."""
    found = CollectorRegistry()
    found.register(_Merged(folder))
    found.register(_Processes(folder))
    return found


class _Merged(Collector):
    """The metrics of all workers, merged."""

    def __init__(self, folder: Path) -> None:
        self._files = MultiProcessCollector(None, str(folder))

    def collect(self) -> Iterable[Metric]:
        for _ in range(_TRIES):
            try:
                return list(self._files.collect())
            except struct.error:  # a worker that starts has made a file and not yet filled it
                continue
        return list(self._files.collect())


class _Processes(Collector):
    """What `ProcessCollector` tells, of each worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        told: dict[str, Metric] = {}
        for file in sorted(self._folder.glob("*.pid")):
            for metric in _process(file):
                whole = told.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    labels = {**sample.labels, "worker": file.stem}
                    whole.add_sample(sample.name, labels, sample.value)
        return told.values()


def _process(file: Path) -> Iterable[Metric]:
    try:
        pid = file.read_text()
    except FileNotFoundError:  # it just ended
        return []
    return ProcessCollector(pid=lambda: pid, registry=None).collect() if pid else []
