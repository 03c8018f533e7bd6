"""The state of a version: what training needs to go on from it, kept beside the versions.

::

    <root>/<name>/.state/<digest>/
        state.json            model, options, and the sha256 of each other file
        schema.toml
        tensors.safetensors   network.NAME: the weights; moments.NAME: what Adam knows of them
        seen/TABLE.npy        uint64 [n], the keys of a table, strictly rising
        seen/TABLE.days.npy   int64 [n], the day on which each was last seen

The digest is the sha256 of state.json, and a version's lineage names it. A service reads none of
this.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.contract.bundle import sync
from model.contract.schema import Schema
from training.carry import Outline
from training.vocabulary import Seen

STATES = ".state"
FORMAT = 1
_WEIGHTS, _MOMENTS = "network.", "moments."
_ENDS = (".npy", ".days.npy")


class StateError(ValueError):
    """A state that can't be read."""


@dataclass(frozen=True)
class State:
    """A state that was read."""

    digest: str
    outline: Outline
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> State:
        """Raises `StateError` when it is not whole."""
        try:
            about = json.loads((folder / "state.json").read_bytes())
            if about["format"] != FORMAT:
                raise StateError(f"format {about['format']}, this code reads {FORMAT}")
            for name, expected in about["files"].items():
                if _digest(folder / name) != expected:
                    raise StateError(f"{name}: its digest differs")
            tensors = load_file(folder / "tensors.safetensors")
            days = [name for name in about["files"] if name.endswith(_ENDS[1])]
            tables = [Path(name).name.removesuffix(_ENDS[1]) for name in days]
            seen = {
                name: Seen(*(_array(folder / "seen" / f"{name}{end}") for end in _ENDS))
                for name in tables
            }
            schema = Schema.load(folder / "schema.toml")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"{folder}: {error}") from error
        outline = Outline(schema, about["model"], about["options"], seen)
        parts = {
            prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in (_WEIGHTS, _MOMENTS)
        }
        return cls(digest(folder), outline, parts[_WEIGHTS], parts[_MOMENTS])


def write(
    folder: Path,
    *,
    schema_text: str,
    model: str,
    options: Mapping[str, Any],
    seen: Mapping[str, Seen],
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    """Write a state as a whole, in place of what is there."""
    unfinished = folder.with_name(f".{folder.name}")
    for old in (unfinished, folder):
        if old.exists():
            shutil.rmtree(old)
    (unfinished / "seen").mkdir(parents=True)
    (unfinished / "schema.toml").write_text(schema_text, encoding="utf-8")
    tensors = {f"{_WEIGHTS}{name}": value for name, value in weights.items()}
    tensors |= {f"{_MOMENTS}{name}": value for name, value in moments.items()}
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(plain, unfinished / "tensors.safetensors")
    for name, each in seen.items():
        for end, array in zip(_ENDS, (each.keys, each.day), strict=True):
            np.save(unfinished / "seen" / f"{name}{end}", array, allow_pickle=False)
    files = sorted(p for p in unfinished.rglob("*") if p.is_file())
    about = {
        "format": FORMAT,
        "model": model,
        "options": dict(options),
        "files": {path.relative_to(unfinished).as_posix(): _digest(path) for path in files},
    }
    text = json.dumps(about, indent=1) + "\n"
    (unfinished / "state.json").write_text(text, encoding="utf-8")
    for path in (*files, unfinished / "state.json", unfinished / "seen", unfinished):
        sync(path)
    unfinished.rename(folder)
    sync(folder.parent)


def keep(state: Path, model_folder: Path) -> str:
    """Put a state beside the versions of a model, while one is published; its digest."""
    name = digest(state)
    states = model_folder / STATES
    states.mkdir(parents=True, exist_ok=True)
    if not (states / name).exists():
        unfinished = states / f".{name}-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(state, unfinished)
        for path in unfinished.rglob("*"):
            sync(path)
        unfinished.rename(states / name)
        sync(states)
    return name


def there(model_folder: Path, name: str) -> bool:
    """Whether there is a state of that digest, whole or not."""
    return (model_folder / STATES / name).exists()


def find(model_folder: Path, name: str) -> State:
    """The state of that digest. Raises `StateError`."""
    found = State.read(model_folder / STATES / name)
    if found.digest != name:
        raise StateError(f"{name}: its digest differs")
    return found


def drop(model_folder: Path, kept: Collection[str]) -> None:
    """Remove every state but the ``kept`` ones; nobody may publish meanwhile."""
    for path in (model_folder / STATES).glob("*"):
        if path.name not in kept:
            shutil.rmtree(path)


def digest(folder: Path) -> str:
    """The digest of a state in a folder."""
    return _digest(folder / "state.json")


def _array(path: Path) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
