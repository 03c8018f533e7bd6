"""How the yardsticks measure: one core, interleaved repetitions, medians with their quartiles."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd")

Taken = TypeVar("Taken")


def pin() -> None:
    """One thread on one core, where the system lets a process choose."""
    torch.set_num_threads(1)
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on. ``busy`` is the load, of one minute."""

    cpu: str
    instruction_sets: tuple[str, ...]
    cores: int | None
    busy: float | None
    sgemm_gflops: float

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {' '.join(self.instruction_sets)}; "
            f"one core's sgemm peak {self.sgemm_gflops} GFLOP/s; load {self.busy}"
        )


def machine() -> Machine:
    """Look at this machine; takes a moment of one core."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip(), value.strip())
    flags = (found.get("flags") or found.get("Features") or "").split()
    return Machine(
        cpu=found.get("model name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        cores=os.cpu_count(),
        busy=load(),
        sgemm_gflops=round(sgemm_peak() / 1e9, 1),
    )


def load() -> float | None:
    """Processes that want a core, over the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def sgemm_peak(size: int = 768, repetitions: int = 20) -> float:
    """Floating point operations per second of the best of several large products, one core."""
    a = torch.ones(size, size)
    best = min(seconds(lambda: a @ a) for _ in range(repetitions))
    return 2 * size**3 / best


def seconds(job: Callable[[], object]) -> float:
    """CPU seconds of a job on one thread: its wall time on a core that nobody else uses."""
    begin = time.process_time()
    job()
    return time.process_time() - begin


def taking_turns(jobs: Mapping[str, Callable[[], Taken]], rounds: int) -> dict[str, list[Taken]]:
    """What each job returns, [rounds]; the jobs take turns, so that all meet the same machine."""
    taken: dict[str, list[Taken]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            taken[name].append(job())
    return taken


def interleaved(
    jobs: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, np.ndarray[Any, Any]]:
    """`taking_turns` of jobs that return a number, as arrays."""
    return {name: np.array(values) for name, values in taking_turns(jobs, rounds).items()}


def spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def shown(found: Mapping[str, float], form: str = ",.1f") -> str:
    return f"{found['median']:{form}} ({found['low']:{form}}-{found['high']:{form}})"
