"""Encoded logs of any size: in memory while they are small, else in shards on disk.

Logs of more events than a stated number are dealt to shards, each user by the hash of its id, so
that a shard is a random sample of the users with all they did. One shard is in memory at a time,
while the next is read. ::

    <folder>/encoded.json            of what it is, and how many rows each shard has; written last
    <folder>/occurrences.<table>.npy impressions in which each row occurs (`Dataset.occurrences`)
    <folder>/<shard>.<array>         the bytes of an array of `Dataset`, row by row
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from model.contract.encode import Encoder
from model.contract.ids import keys
from model.contract.schema import Schema
from terminal.progress import Update, quiet
from training.chunks import AnyLogs
from training.dataset import IMPRESSIONS, Dataset, build, joined
from training.logs import SPLITS, Logs

SHARED = ("behaviours", "ts", "users")  # by the impressions of all splits
ABOUT = "encoded.json"

Array = npt.NDArray[Any]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Shards:
    """The impressions of one split, in parts on disk: each a `Dataset` of users of its own.

    ``behaviours`` and ``users`` count the rows of each part, ``lengths`` its impressions, ``ones``
    the impressions of all parts that have the label 1, of each task.
    """

    folder: Path
    split: str
    encoder: Encoder
    behaviours: tuple[int, ...]
    users: tuple[int, ...]
    lengths: tuple[int, ...]
    ones: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    def parts(self, order: Sequence[int]) -> Iterator[Dataset]:
        """The parts by their numbers; while one is used the next is read by a thread.

        Raises OSError for a file that is not as it was written.
        """
        return ahead(partial(self._read, number) for number in order)

    def occurrences(self) -> dict[str, npt.NDArray[np.float32]]:
        """As `Dataset.occurrences`, of the training impressions alone, counted while encoding."""
        assert self.split == "train"
        tables = self.encoder.tables
        return {name: np.load(self.folder / f"occurrences.{name}.npy") for name in tables}

    def _read(self, number: int) -> Dataset:
        behaviours, users = self.behaviours[number], self.users[number]
        rows = dict(zip(SHARED, (behaviours, behaviours, users), strict=True))
        arrays = {}
        for name, (kind, width) in _forms(self.schema).items():
            whose = name if name in SHARED else f"{self.split}.{name}"
            path = self.folder / f"{number}.{whose}"
            shape = (rows.get(name, self.lengths[number]), *width)
            # A shard that was dealt no user has no files.
            found: Array = np.fromfile(path, kind) if shape[0] else np.zeros(0, kind)
            if found.size != np.prod(shape):
                raise OSError(f"{path}: expected {shape[0]} rows; remove {self.folder}")
            arrays[name] = found.reshape(shape)
        return Dataset(encoder=self.encoder, **arrays)


Data = Dataset | Shards


def in_parts(
    logs: AnyLogs,
    encoder: Encoder,
    folder: Path,
    shard: int,
    about: Mapping[str, Any],
    update: Update = quiet,
) -> Mapping[str, Data]:
    """The train, validation and test impressions of the logs, encoded.

    Logs of up to ``shard`` events stay in memory; of more there are shards of about that many in
    ``folder``, which are not made again when they are there for the same ``about``. Raises OSError.
    """
    count = -(-len(logs) // shard)
    if count <= 1:
        return in_memory(logs, encoder, update)
    about = {**about, "shards": count, "arrays": [*_forms(encoder.schema)]}
    try:
        made = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        made = {}
    if made.get("about") != json.loads(json.dumps(about)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = {"about": about, **_deal(logs, encoder, folder, count, update)}
        unfinished = folder / f".{ABOUT}"
        unfinished.write_text(json.dumps(made), encoding="utf-8")
        os.replace(unfinished, folder / ABOUT)
    rows = {name: tuple(each) for name, each in made["rows"].items()}
    shared = (rows["behaviours"], rows["users"])
    return {
        split: Shards(folder, split, encoder, *shared, rows[split], tuple(made["ones"][split]))
        for split in SPLITS
    }


def in_memory(logs: AnyLogs, encoder: Encoder, update: Update = quiet) -> Mapping[str, Dataset]:
    """The train, validation and test impressions of the logs, encoded, each as one."""
    return joined(list(_encoded(logs, encoder, update)))


def ahead(jobs: Iterable[Callable[[], Loaded]]) -> Iterator[Loaded]:
    """What the jobs return, in order; each is done in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Loaded] | None = None
        for job in jobs:
            coming, ready = pool.submit(job), coming
            if ready is not None:
                yield ready.result()
            del ready  # else it would be held while the one after the next is read
        if coming is not None:
            yield coming.result()


def _encoded(logs: AnyLogs, encoder: Encoder, update: Update) -> Iterator[dict[str, Dataset]]:
    """The logs chunk by chunk."""
    done, total = 0, len(logs)
    update("encode", done, total, {})
    for chunk in logs.chunks():
        sets = build(chunk, encoder)
        yield {split: replace(each, event=each.event + done) for split, each in sets.items()}
        done += len(chunk)
        update("encode", done, total, {})


def _deal(
    logs: AnyLogs, encoder: Encoder, folder: Path, count: int, update: Update
) -> dict[str, dict[str, list[int]]]:
    """Write ``count`` shards; how many rows each has, of what is shared and of each split, and the
    ``ones`` of each split."""
    rows = {name: [0] * count for name in (*SHARED, *SPLITS)}
    ones = {split: [0] * len(encoder.schema.tasks) for split in SPLITS}
    occurrences = {name: np.zeros(table.size) for name, table in encoder.tables.items()}
    done, total = 0, len(logs)
    update("encode", done, total, {})
    for chunk in logs.chunks():
        for number, part, events in _dealt(chunk, count):
            sets = build(part, encoder)
            for name in SHARED:
                _append(folder / f"{number}.{name}", getattr(sets["train"], name))
            for split, each in sets.items():
                moved = {
                    "user": each.user + rows["users"][number],
                    "start": each.start + rows["behaviours"][number],
                    "stop": each.stop + rows["behaviours"][number],
                    "event": events[each.event] + done,
                }
                for name in IMPRESSIONS:
                    array = moved.get(name, getattr(each, name))
                    _append(folder / f"{number}.{split}.{name}", array)
                rows[split][number] += len(each)
                ones[split] = [one + more for one, more in zip(ones[split], each.ones, strict=True)]
            for name in SHARED:
                rows[name][number] += len(getattr(sets["train"], name))
            for name, found in sets["train"].occurrences().items():
                occurrences[name] += found
        done += len(chunk)
        update("encode", done, total, {})
    for name, counted in occurrences.items():
        np.save(folder / f"occurrences.{name}.npy", counted.astype(np.float32))
    return {"rows": rows, "ones": ones}


def _dealt(chunk: Logs, count: int) -> Iterator[tuple[int, Logs, npt.NDArray[np.int64]]]:
    """The users of each shard: its number, their logs, and which events of the chunk those are."""
    ids = chunk.events["user_id"].unique(maintain_order=True)
    shard = (keys(ids.to_list()) % np.uint64(count)).astype(np.int64)
    of_user = pl.DataFrame({"user_id": ids, "#shard": shard})
    events = chunk.events.with_row_index("#event")
    events = events.join(of_user, on="user_id", how="left", maintain_order="left")
    for (number,), part in events.partition_by("#shard", as_dict=True).items():
        at = part["#event"].to_numpy().astype(np.int64)
        yield int(number), replace(chunk, events=part.drop("#event", "#shard")), at


def _forms(schema: Schema) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The type of each array of `Dataset`, and the shape of a row."""
    item, behaviour = schema.width("item"), schema.width("behaviour")
    return {
        "behaviours": (np.int32, (item + behaviour,)),
        "ts": (np.int64, ()),
        "users": (np.int32, (schema.width("user"),)),
        "user": (np.int64, ()),
        "item": (np.int32, (item,)),
        "ad": (np.int32, (schema.width("ad"),)),
        "context": (np.int32, (schema.width("context"),)),
        "start": (np.int64, ()),
        "stop": (np.int64, ()),
        "label": (np.float32, (len(schema.tasks),)),
        "event": (np.int64, ()),
    }


def _append(path: Path, array: Array) -> None:
    try:
        with path.open("ab") as file:
            file.write(np.ascontiguousarray(array).tobytes())
    except OSError as error:  # which does not say of which file when the disk is full
        raise OSError(error.errno, error.strerror, str(path)) from None
