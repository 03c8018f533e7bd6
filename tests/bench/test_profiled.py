"""The profile by module: each second counts once, for the module whose code it passed in."""

from __future__ import annotations

import cProfile
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench import profiled
from model.contract.ids import keys


def test_modules_are_named_by_what_a_reader_looks_for() -> None:
    """Ours in full, those of others by their package."""
    assert profiled.module(str(profiled.PLACE / "service/scorer.py")) == "service.scorer"
    assert profiled.module(np.__file__) == "numpy"
    assert profiled.module(json.__file__) == "Python's library"


def test_all_time_is_counted_once() -> None:
    """What is called in C counts for who calls it."""
    ids = [str(n) for n in range(20_000)]
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(lambda: keys(ids))  # time is counted by who called, so someone has to
    stats = pstats.Stats(profile)
    found = profiled.by_module(stats)
    whole = stats.total_tt  # type: ignore[attr-defined]
    assert sum(found.values()) <= whole * 1.001
    assert found["model.contract.ids"] > 0.5 * whole


def test_a_module_runs_as_it_would_alone(tmp_path: Path) -> None:
    """With its arguments, and the file is written at its end."""
    source, told = tmp_path / "a.json", tmp_path / "told.json"
    source.write_text('{"a":1}')
    command = [sys.executable, "-m", "bench.profiled", str(told), "json.tool", str(source)]
    said = subprocess.run(command, capture_output=True, check=True, text=True, cwd=profiled.PLACE)
    assert json.loads(said.stdout) == {"a": 1}
    assert json.loads(told.read_text()) == {}
