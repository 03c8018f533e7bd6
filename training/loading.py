"""Slow imports, told as they go on: PyTorch takes seconds, before anything else can be told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from terminal.progress import Update

STAGE, MODULES = "load PyTorch", 2150
"""About so many modules PyTorch and what trains with it consist of."""


@contextmanager
def loading(
    update: Update, stage: str = STAGE, total: int = MODULES
) -> Iterator[Callable[[int], None]]:
    """Import within: ``update`` is told of each module that was not there yet, of about ``total``.

    Yields a function that counts other work of the stage, as so many modules.
    """
    counter = _Counter(update, stage, total)
    counter.count(0)
    sys.meta_path.insert(0, counter)
    try:
        yield counter.count
    finally:
        sys.meta_path.remove(counter)
    update(stage, total, total, {})


class _Counter(MetaPathFinder):
    """Finds nothing, but is asked for every module first."""

    def __init__(self, update: Update, stage: str, total: int) -> None:
        self._update, self._stage, self._total = update, stage, total
        self.done = 0

    def count(self, work: int) -> None:
        self.done += work
        self._update(self._stage, min(self.done, self._total - 1), self._total, {})

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        self.count(1)
        return None
