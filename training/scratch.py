"""Folders for what comes between, which go with the process that has them."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def temporary(folder: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``folder``, which is made where there is none; gone at the end.

    What a killed process left under the same prefix is taken away: the lock in it went with the
    process. What another one is at work in stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{prefix}*"):
        if _left(left):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as name,
        (Path(name) / _LOCK).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def _left(folder: Path) -> bool:
    """Whether nobody holds the lock in a folder; one without a lock may have just been made."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder in ``out``, where there is room and all machines look, for what comes between.

    ``out`` goes too where nothing came of it.
    """
    try:
        with temporary(out, ".prepare-") as folder:
            yield folder
    finally:
        if not any(out.iterdir()):
            out.rmdir()
