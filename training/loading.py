"""PyTorch's import, told as it goes on: it takes seconds, before anything else can be told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from terminal.progress import Update

MODULES = 1300
"""About so many modules PyTorch and what trains with it consist of."""
STAGE = "load PyTorch"


@contextmanager
def loading(update: Update) -> Iterator[None]:
    """Import PyTorch within: ``update`` is told of each module that was not there yet."""
    counter = _Counter(update)
    counter.tell()
    sys.meta_path.insert(0, counter)
    try:
        yield
    finally:
        sys.meta_path.remove(counter)
    update(STAGE, MODULES, MODULES, {})


class _Counter(MetaPathFinder):
    """Finds nothing, but is asked for every module first."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self.asked = 0

    def tell(self) -> None:
        self._update(STAGE, min(self.asked, MODULES - 1), MODULES, {})

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        self.asked += 1
        self.tell()
        return None
