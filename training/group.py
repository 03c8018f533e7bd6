"""The processes that train together, and what they do as one. `Group` is one process alone.

`training.cluster` has the group of several. Each method says what it is for many; for one
process it is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.contract.batch import Ints
from model.tensors import Tensors


class Span(NamedTuple):
    """The rows first:last of a table of ``rows``."""

    first: int
    last: int
    rows: int


class Group:
    """One process. ``spans`` are the rows it holds of each parameter that others hold parts of."""

    rank = 0
    size = 1

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes what there is once."""
        return not self.rank

    @property
    def spans(self) -> Mapping[str, Span]:
        return {}

    def share(self, begin: Ints, end: Ints) -> tuple[Ints, Ints]:
        """This process's blocks of a batch's; together the processes have each block once."""
        return begin[self.rank :: self.size], end[self.rank :: self.size]

    def fetch(self, batch: Tensors) -> Tensors:
        """Get the embeddings of a batch from where they are; the batch that points to them.

        All processes must call it, and `reduce` after the backward pass, the same number of times.
        """
        return batch

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of what every process has a copy of."""

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        return value

    def merge(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The sum of an array over the processes."""
        return array

    def draw(self, seed: int, step: int) -> None:
        """Seed what dropout draws in a step; one process has one generator for all of them."""

    def agree(self, work: Callable[[], None]) -> None:
        """Do the work in every process, and go on when all have. Where it fails, it fails in all:
        there with its own error, in the others with one that says so."""
        work()
