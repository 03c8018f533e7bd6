"""Checkpoints: where a run stands, as safetensors + JSON; a reader never sees half of one.

``<run>/checkpoint-<step>/{state.safetensors, state.json}``, and ``shard-<rank>.safetensors`` for
each of several processes, with the rows that it holds of tables; each such file says which. Any
number of processes reads what another number wrote. The folder is written under another name,
forced to disk and renamed when all processes have done their part; older ones go once the new one
is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.contract.bundle import sync
from training.group import Group, Span

_PREFIX = "checkpoint-"
_UNFINISHED = ".checkpoint"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or that can't be read."""


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    group: Group | None = None,
    spans: Mapping[str, Span] | None = None,
) -> None:
    """Write the checkpoint of a step, then drop the older ones. All processes of a group call it.

    Of the tensors in ``spans`` this process has those rows; the leader writes what is whole.
    Raises `CheckpointError` when the disk is full or broken; the checkpoint before it is kept.
    """
    group, spans = group or Group(), spans or {}
    unfinished = run / _UNFINISHED
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    parts = {name: plain.pop(name) for name in [*plain] if _in_parts(name, spans)}

    def begin() -> None:
        if group.leader:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()

    def write() -> None:
        if parts:
            held = {name: spans[name] for name in parts if name in spans}
            path = unfinished / f"shard-{group.rank}.safetensors"
            save_file(parts, path, metadata={"spans": json.dumps(held)})
            sync(path)
        if group.leader:
            save_file(plain, unfinished / "state.safetensors")
            (unfinished / "state.json").write_text(json.dumps(state), encoding="utf-8")
            for name in ("state.safetensors", "state.json"):
                sync(unfinished / name)

    def commit() -> None:
        if group.leader:
            sync(unfinished)
            unfinished.rename(run / f"{_PREFIX}{step}")
            sync(run)
            for other in _steps(run):
                if other != step:
                    _drop(run, other)

    try:
        for work in (begin, write, commit):
            group.agree(work)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk gets its room back
        raise CheckpointError(
            f"{run}: the checkpoint of step {step} could not be written ({error}); "
            "the one before it is kept"
        ) from None


def load(
    run: Path, spans: Mapping[str, Span] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint; None when there is none.

    Only the rows in ``spans`` are read of the tensors there. Raises `CheckpointError`.
    """
    steps = _steps(run)
    if not steps:
        return None
    folder = run / f"{_PREFIX}{max(steps)}"
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    with _opened(folder) as files:
        pieces: dict[str, list[tuple[Span | None, Any]]] = {}
        for held, file in files:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                pieces.setdefault(name, []).append((held.get(name), file))
        tensors = {
            name: _rows(folder, name, parts, (spans or {}).get(name))
            for name, parts in pieces.items()
        }
    return tensors, state


def remove(run: Path) -> None:
    """Drop all checkpoints of a run, which has ended."""
    for step in _steps(run):
        _drop(run, step)


def _in_parts(name: str, spans: Mapping[str, Span]) -> bool:
    """Whether a tensor is of a table that several processes share: its rows, or its step."""
    return name in spans or f"{name.removesuffix('.step')}.exp_avg" in spans


@contextmanager
def _opened(folder: Path) -> Iterator[list[tuple[dict[str, Span], Any]]]:
    """The files of a checkpoint, each with the spans that it has of tensors in parts."""
    with ExitStack() as stack:
        found = []
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            spans = json.loads((file.metadata() or {}).get("spans", "{}"))
            found.append(({name: Span(*span) for name, span in spans.items()}, file))
        yield found


def _rows(
    folder: Path, name: str, parts: list[tuple[Span | None, Any]], wanted: Span | None
) -> Tensor:
    """A tensor, or the wanted rows of it, from the files that have parts of it."""
    held, file = parts[0]
    if held is None:  # whole, in each of the files that have it
        slices = file.get_slice(name)
        tensor: Tensor = slices[wanted.first : wanted.last] if wanted else file.get_tensor(name)
        return tensor
    first, last = (wanted.first, wanted.last) if wanted else (0, held.rows)
    found, at = [], first
    spread = [(span, file) for span, file in parts if span is not None]
    for span, each in sorted(spread, key=lambda part: part[0]):
        begin, end = max(span.first, at), min(span.last, last)
        if begin == at < end:
            found.append(each.get_slice(name)[begin - span.first : end - span.first])
            at = end
    if at < last:
        raise CheckpointError(f"{folder}: row {at} of {name} is in none of its files")
    return torch.cat(found) if found else file.get_slice(name)[:0]


def _drop(run: Path, step: int) -> None:
    """Take a checkpoint's name away first: half of it must not look like one."""
    unfinished = run / _UNFINISHED
    if unfinished.exists():
        shutil.rmtree(unfinished)
    (run / f"{_PREFIX}{step}").rename(unfinished)
    shutil.rmtree(unfinished)


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix(_PREFIX)) for path in run.glob(f"{_PREFIX}*")]
