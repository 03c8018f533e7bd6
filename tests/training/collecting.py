"""Collected logs for tests: entries of the log, written as the collector does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.contract.log import Entry
from model.contract.store import partition
from tests.training.entries import fields
from training.collected import Collected, Writer
from training.entries import Taken
from training.files import Files


def collect(folder: Path, entries: Sequence[Entry]) -> Collected:
    """Write entries as if they had come in this order, each when it was received or a ms after the
    one before; ts are in seconds."""
    taken: list[Taken] = []
    for entry in entries:
        ms = max(entry.received, taken[-1].ms + 1 if taken else 0)
        taken.append(Taken(partition(entry.user_id), f"{ms}-0", fields(entry)))
    files = Files(folder)
    with files.alone():
        Writer(files, "s").write(taken)
    return Collected(folder)
