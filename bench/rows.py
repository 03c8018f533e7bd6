"""Rows: what memory a training needs by the number of impressions, stage by stage.

Preparing and fitting each have a process of their own, in which a thread reads /proc/self/status
ten times a second: anonymous memory (RssAnon, which is nobody else's and can't be dropped) and all
that is resident (VmRSS, pages of mapped files included).
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from training import chunks
from training.fit import fit
from training.world import World

SECONDS = 0.1
IMPRESSIONS_PER_USER = 200
Update = Callable[[str, int, int, Mapping[str, float]], None]


class StoppedError(RuntimeError):
    """The time is over."""


@dataclass
class Stage:
    """One stage of a job: how far it came, how long it took, and its peaks of memory in MiB."""

    name: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    anonymous_mib: float = 0.0
    resident_mib: float = 0.0
    waited: float = 0.0


def measure(
    impressions: int, folder: Path, seconds: float, given: Sequence[str], update: Update
) -> dict[str, Any]:
    """Prepare a synthetic world of so many impressions in ``folder`` unless it is there, and fit on
    it; each is stopped after ``seconds``. The stages of both."""
    world = World(users=-(-impressions // IMPRESSIONS_PER_USER))
    found: dict[str, Any] = {"impressions": world.users * IMPRESSIONS_PER_USER}
    data = folder / "data"
    if not (data / "schema.toml").exists():
        found["prepare"] = _in_a_process(_prepare, (world, data), seconds, update)
    if (data / "schema.toml").exists():
        found["fit"] = _in_a_process(_fit, (data, folder / "run", list(given)), seconds, update)
    return found


def _prepare(update: Update, world: World, data: Path) -> None:
    chunks.write(data, world.chunks(), world.events(), update)


def _fit(update: Update, data: Path, out: Path, given: list[str]) -> None:
    torch.set_num_threads(1)
    fit(data, out, "din", 0, given, 1, update)


def _in_a_process(
    job: Callable[..., None], arguments: tuple[Any, ...], seconds: float, update: Update
) -> dict[str, Any]:
    """The stages of a job, and whether it came to its end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_sampled, args=(theirs, job, arguments, seconds))
    process.start()
    theirs.close()
    found: dict[str, Any] = {}
    try:
        while not found:
            told = ours.recv()
            if isinstance(told, dict):
                found = told
            else:
                update(*told)
    finally:
        process.join()
    return found


def _sampled(
    pipe: Connection, job: Callable[..., None], arguments: tuple[Any, ...], seconds: float
) -> None:
    """Run the job while its memory is looked at, and send what was seen."""
    stages = [Stage("start")]
    begin, over, last = time.perf_counter(), threading.Event(), [0.0, 0.0]

    def look() -> None:
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        now, cpu, stage = time.perf_counter() - begin, time.process_time(), stages[-1]
        stage.seconds += now - last[0]
        stage.cpu_seconds += cpu - last[1]
        last[:] = [now, cpu]
        mib = {name: int(status[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS")}
        stage.anonymous_mib = max(stage.anonymous_mib, mib["RssAnon"])
        stage.resident_mib = max(stage.resident_mib, mib["VmRSS"])

    def watch() -> None:
        while not over.wait(SECONDS):
            look()

    told = [0.0]

    def update(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if stages[-1].name != stage:
            stages.append(Stage(stage))
        at = stages[-1]
        at.done, at.total, at.waited = done, total, figures.get("waited", 0.0)
        now = time.perf_counter()
        if now - told[0] > 1:
            told[0] = now
            pipe.send((stage, done, total, {}))
        if now - begin > seconds:
            raise StoppedError

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    ended = True
    try:
        job(update, *arguments)
    except StoppedError:
        ended = False
    over.set()
    watcher.join()
    look()
    pipe.send({"ended": ended, "stages": [asdict(each) for each in stages]})
