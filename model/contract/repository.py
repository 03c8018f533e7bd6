"""The repository: ``<root>/<name>/<integer>/``, one immutable bundle per version.

A version is written into a hidden folder, forced to disk, manifest last, and renamed into place;
whoever reads sees the whole version or none of it, whenever the writer is killed. Versions only
rise. What a killed writer left is removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.contract.bundle import MANIFEST, Bundle, sync
from model.contract.schema import is_name

_UNFINISHED = ".unfinished-"
_LOCK = ".lock"


class RepositoryError(ValueError):
    """A repository that can't be used as asked, and why."""


@dataclass(frozen=True)
class Repository:
    """The versions of one model."""

    root: Path
    name: str

    @classmethod
    def find(cls, root: Path, name: str | None = None) -> Repository:
        """The model called ``name``, else the one published last. Raises `RepositoryError`."""
        if name is not None:
            return cls(root, name)
        try:
            names = sorted(p.name for p in root.iterdir() if p.is_dir() and is_name(p.name))
        except OSError as error:
            raise RepositoryError(f"{root}: {error.strerror}") from error
        if not names:
            raise RepositoryError(f"{root}: no model is published there")
        return max((cls(root, name) for name in names), key=cls._published)

    def _published(self) -> float:
        """When the newest version was published, in seconds; 0 where there is none."""
        versions = self.versions()
        return (self.folder / str(versions[-1]) / MANIFEST).stat().st_mtime if versions else 0.0

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def versions(self) -> list[int]:
        """Whole versions, oldest first. A folder without a manifest is not one."""
        return [n for n in self._numbers() if (self.folder / str(n) / MANIFEST).is_file()]

    def open(self, version: int, max_bytes: int | None = None) -> Bundle:
        """Open and check one version of at most ``max_bytes``. Raises `BundleError`."""
        return Bundle.open(self.folder / str(version), max_bytes)

    def publish(self, fill: Callable[[Path], None]) -> int:
        """Publish what ``fill`` writes into the empty folder it is given; the new version.

        ``fill`` must leave a whole bundle (`bundle.write`); it is opened and checked before it
        gets its number. Raises `BundleError`, and what ``fill`` raises; then nothing is left.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.alone():
            for leftover in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(leftover)
            unfinished = self.folder / f"{_UNFINISHED}{os.getpid()}"
            unfinished.mkdir()
            try:
                fill(unfinished)
                Bundle.open(unfinished)
                version = max(self._numbers(), default=0) + 1
                unfinished.rename(self.folder / str(version))
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            sync(self.folder)
            return version

    def _numbers(self) -> list[int]:
        """Every number taken, rising. "007" is no number: only 7 itself is written as one."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        digits = [name for name in names if name.isascii() and name.isdigit()]
        return sorted(int(name) for name in digits if str(int(name)) == name)

    @contextmanager
    def alone(self, lock_name: str = _LOCK) -> Iterator[None]:
        """One writer at a time; the lock goes with the process that holds it."""
        with (self.folder / lock_name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
