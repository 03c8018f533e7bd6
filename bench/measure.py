"""How the yardsticks measure: one core, interleaved repetitions, medians with their quartiles."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd")


def pin() -> None:
    """One thread on one core, where the system lets a process choose."""
    torch.set_num_threads(1)
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip(), value.strip())
    flags = (found.get("flags") or found.get("Features") or "").split()
    return {
        "cpu": found.get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": os.cpu_count(),
        "busy": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "sgemm_gflops": round(sgemm_peak() / 1e9, 1),
    }


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


def interleaved(
    jobs: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, np.ndarray[Any, Any]]:
    """What each job returns, [rounds]; the jobs take turns, so that all meet the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            taken[name].append(job())
    return {name: np.array(values) for name, values in taken.items()}


def spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def shown(found: Mapping[str, float], form: str = ",.1f") -> str:
    return f"{found['median']:{form}} ({found['low']:{form}}-{found['high']:{form}})"
