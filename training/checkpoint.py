"""Checkpoints: where a run stands, as safetensors + JSON; a reader never sees half of one.

``<run>/checkpoint-<step>/{state.safetensors, state.json}``. The folder is written under another
name, forced to disk and renamed; older ones go once the new one is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from model.contract.bundle import sync

_PREFIX = "checkpoint-"
_UNFINISHED = ".checkpoint"


def save(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step, then drop the older ones."""
    unfinished = run / _UNFINISHED
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(plain, unfinished / "state.safetensors")
    (unfinished / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for name in ("state.safetensors", "state.json", "."):
        sync(unfinished / name)
    unfinished.rename(run / f"{_PREFIX}{step}")
    sync(run)
    for other in _steps(run):
        if other != step:
            _drop(run, other)


def load(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint; None when there is none."""
    steps = _steps(run)
    if not steps:
        return None
    folder = run / f"{_PREFIX}{max(steps)}"
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return load_file(folder / "state.safetensors"), state


def remove(run: Path) -> None:
    """Drop all checkpoints of a run, which has ended."""
    for step in _steps(run):
        _drop(run, step)


def _drop(run: Path, step: int) -> None:
    """Take a checkpoint's name away first: half of it must not look like one."""
    unfinished = run / _UNFINISHED
    if unfinished.exists():
        shutil.rmtree(unfinished)
    (run / f"{_PREFIX}{step}").rename(unfinished)
    shutil.rmtree(unfinished)


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix(_PREFIX)) for path in run.glob(f"{_PREFIX}*")]
