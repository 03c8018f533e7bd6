"""A run: what one training left on disk, enough to evaluate and export it, without pickle.

::

    run.json             model, options, fit, seed, data, calibration, progress, metrics
    encoder/tables/*.npy, encoder/catalogue/*.npy, schema.toml, golden.json
    weights.safetensors  the best weights
    test.npy             the logits of the test impressions, where they were to be kept
    state/               what a later training goes on from (`training.state`)
    checkpoint-<step>/   while it trains
shards/              while it trains on logs that are not held in memory (`training.encoded`)
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file

from model.contract.catalogue import Catalogue
from model.contract.encode import Encoder, table_of
from model.contract.ids import Vocabulary
from model.contract.schema import Schema
from model.network import Network
from model.zoo import configure
from training import checkpoint
from training.calibrate import Calibration

RESULTS = ("metrics", "progress", "samples_per_s", "unreadable")


class RunError(ValueError):
    """A folder that is no run, or a run that can't do what was asked."""


@dataclass(frozen=True)
class Run:
    """The files of one run."""

    folder: Path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process that trains it, which ends with the process. Raises `RunError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.folder}: another process trains this run") from None
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(descriptor)

    def start(
        self, schema_text: str, encoder: Encoder, golden: Sequence[Mapping[str, Any]], about: Any
    ) -> None:
        """Write down what will be trained, unless that is done (`found`)."""
        if self.found(about):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "encoder").exists():  # of a start that was killed
            shutil.rmtree(self.folder / "encoder")
        (self.folder / "schema.toml").write_text(schema_text, encoding="utf-8")
        tables = self.folder / "encoder" / "tables"
        tables.mkdir(parents=True)
        for name, table in encoder.tables.items():
            if isinstance(table, Vocabulary):
                table.save(tables / f"{name}.npy")
        encoder.catalogue.save(self.folder / "encoder" / "catalogue")
        self._write("golden.json", golden)
        self._write("run.json", about)

    def found(self, about: Mapping[str, Any]) -> bool:
        """Whether a run of these things was started here. Raises `RunError` for one of others."""
        if not (self.folder / "run.json").exists():
            return False
        other = ", ".join(_unlike(self.about(), about))
        if other:
            raise RunError(f"{self.folder}: holds another run: {other}; choose another --out")
        return True

    def results(self) -> dict[str, Any] | None:
        """What was measured; None while training has not ended. Raises `RunError`."""
        about = self.about()
        if "calibration" not in about:
            return None
        return {key: about[key] for key in RESULTS if key in about}

    def finish(
        self, network: Network, calibration: Calibration, results: Mapping[str, Any]
    ) -> None:
        """Keep the best weights, their calibration and what was measured (`RESULTS`)."""
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(weights, self.folder / ".weights.safetensors")
        os.replace(self.folder / ".weights.safetensors", self.folder / "weights.safetensors")
        self.add({"calibration": vars(calibration), **results})

    def keep_logits(self, logits: npt.NDArray[np.float32]) -> None:
        """Keep the logits [I, tasks] of the test impressions, uncalibrated; before `finish`."""
        np.save(self.folder / ".test.npy", logits, allow_pickle=False)
        os.replace(self.folder / ".test.npy", self.folder / "test.npy")

    def logits(self) -> npt.NDArray[np.float32]:
        """What `keep_logits` kept. Raises OSError where it did not."""
        found: npt.NDArray[np.float32] = np.load(self.folder / "test.npy", allow_pickle=False)
        return found

    def add(self, entries: Mapping[str, Any]) -> None:
        """Put entries into run.json."""
        self._write("run.json", {**self.about(), **entries})

    def about(self) -> dict[str, Any]:
        """run.json. Raises `RunError`."""
        try:
            found: dict[str, Any] = json.loads(
                (self.folder / "run.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder}: no readable run.json ({error})") from None
        return found

    def schema_text(self) -> str:
        return (self.folder / "schema.toml").read_text(encoding="utf-8")

    def golden(self) -> list[dict[str, Any]]:
        text = (self.folder / "golden.json").read_text(encoding="utf-8")
        found: list[dict[str, Any]] = json.loads(text)
        return found

    def encoder(self) -> Encoder:
        schema = Schema.load(self.folder / "schema.toml")
        folder = self.folder / "encoder"
        tables = {}
        for name, field in schema.tables.items():
            path = folder / "tables" / f"{name}.npy"
            tables[name] = table_of(field, Vocabulary.load(path) if path.exists() else None)
        return Encoder(schema, tables, Catalogue.load(folder / "catalogue"))

    def network(self, encoder: Encoder) -> Network:
        """The trained network. Raises `RunError` when training has not ended."""
        about = self.about()
        if "calibration" not in about:
            raise RunError(f"{self.folder}: not trained to the end; run fit again to go on")
        sizes = {name: table.size for name, table in encoder.tables.items()}
        network = configure(about["model"], about["options"]).build(encoder.schema, sizes)
        network.load_state_dict(load_file(self.folder / "weights.safetensors"))
        return network.eval()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def clear(self) -> None:
        """Drop what only a training that goes on needs."""
        checkpoint.remove(self.folder)
        if self.shards.exists():
            shutil.rmtree(self.shards)

    def calibration(self) -> Calibration:
        found = self.about()["calibration"]
        return Calibration(tuple(found["slope"]), tuple(found["offset"]))

    def _write(self, name: str, content: Any) -> None:
        """Replace a JSON file as a whole."""
        unfinished = self.folder / f".{name}"
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.folder / name)


def _unlike(there: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Each setting of a run that is not what is asked for, with both values."""
    for key, value in asked.items():
        old = there.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            yield from _unlike(old, value)
        elif old != value:
            yield f"{key} is {json.dumps(old)} and not {json.dumps(value)}"
