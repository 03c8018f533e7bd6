"""Parquet files that are whole or not there, whenever their writer is killed.

Each is written beside, forced to disk, and renamed into place. One writer at a time has a folder;
readers need no lock, but a file that they have listed may have become part of another one.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from model.contract.bundle import sync

Change = Callable[[pl.DataFrame], pl.DataFrame]
_LOCK = ".lock"
_UNFINISHED = ".unfinished"
_MERGING = ".merging.json"


class BusyError(ValueError):
    """Another process writes to this folder."""


@dataclass(frozen=True)
class Files:
    """The Parquet files below a folder, for their one writer. Paths are relative to ``root``."""

    root: Path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only writer, and clear away what a killed one left. Raises `BusyError`.

        The lock goes with the process that holds it.
        """
        self._folder(self.root)
        with (self.root / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"{self.root}: another process writes there") from None
            self._recover()
            yield

    def list(self, folder: str) -> list[str]:
        """The files anywhere below a folder, by name."""
        found = (self.root / folder).rglob("*.parquet")
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def put(self, frames: Mapping[str, pl.DataFrame]) -> None:
        """Add a file to each of some folders; when this returns they are on disk."""
        written = {folder: self._write(frame) for folder, frame in frames.items()}
        for folder, path in written.items():
            self._folder(self.root / folder)
            path.rename(self.root / folder / path.name)
        for folder in written:
            sync(self.root / folder)

    def rewrite(self, name: str, change: Change, *, keep_empty: bool = False) -> int:
        """Take rows out of a file; how many. One without rows goes, unless it is to be kept."""
        path = self.root / name
        before = pl.read_parquet(path)
        after = change(before)
        if len(after) == len(before):
            return 0
        if len(after) or keep_empty:
            self._write(after).rename(path)
        else:
            path.unlink()
        sync(path.parent)
        return len(before) - len(after)

    def merge(self, names: Sequence[str]) -> None:
        """Make one file of some files of a folder, the rows in the order of the names.

        A note says what is under way from before the new file is there until the old ones are not,
        so that who comes after a killed writer finds either the old ones or the new one.
        """
        folder = self.root / Path(names[0]).parent
        fresh = self._fresh()
        pl.scan_parquet([self.root / name for name in names]).sink_parquet(fresh)
        sync(fresh)
        note = {"into": (folder / fresh.name).relative_to(self.root).as_posix(), "from": [*names]}
        beside = self.root / _UNFINISHED / _MERGING
        beside.write_text(json.dumps(note))
        sync(beside)
        beside.rename(self.root / _MERGING)
        sync(self.root)
        fresh.rename(folder / fresh.name)
        sync(folder)
        self._end_merge()

    def small(self, folder: str, below: int) -> Sequence[str]:
        """The files right in a folder that have fewer than so many bytes, oldest first."""
        found = (self.root / folder).glob("*.parquet")
        small = [path for path in found if path.stat().st_size < below]
        return sorted(path.relative_to(self.root).as_posix() for path in small)

    def _recover(self) -> None:
        self._end_merge()
        unfinished = self.root / _UNFINISHED
        if unfinished.exists():
            shutil.rmtree(unfinished)
        self._folder(unfinished)

    def _end_merge(self) -> None:
        """Where the new file is in place, the old ones go; else they are still good."""
        note = self.root / _MERGING
        if not note.exists():
            return
        found = json.loads(note.read_bytes())
        if (self.root / found["into"]).exists():
            self._unlink(self.root / name for name in found["from"])
        self._unlink([note])

    def _unlink(self, paths: Iterable[Path]) -> None:
        folders = set()
        for path in paths:
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            sync(folder)

    def _write(self, frame: pl.DataFrame) -> Path:
        path = self._fresh()
        frame.write_parquet(path)
        sync(path)
        return path

    def _fresh(self) -> Path:
        """A name that no file has had; names rise with time."""
        return self.root / _UNFINISHED / f"{time.time_ns():020d}-{secrets.token_hex(4)}.parquet"

    def _folder(self, path: Path) -> None:
        """Make a folder, on disk when this returns."""
        if path.is_dir():
            return
        self._folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)
