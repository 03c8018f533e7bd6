"""How far a comparison is: one stage for all that it does, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from terminal.progress import Update

STAGE = "all work (s)"
GUESS = {"train": 1e-4, "scores": 1.0, "graph": 5.0, "turn": 0.1, "page": 10.0}
"""Seconds of an impression, of a model's scores, of an export, of a round of timed calls, and of
the pictures and the page: what is counted on before the first of them has ended."""


class Work:
    """What is left, by kind, in units that take about as long each.

    The seconds that are left are those units times what one took here so far, and the whole is
    those that went by with these: it changes as units turn out longer or shorter than thought.
    """

    def __init__(
        self,
        update: Update,
        units: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._update, self._left, self._clock = update, dict(units), clock
        self._ended = dict.fromkeys(units, 0)
        self._taken = dict.fromkeys(units, 0.0)
        self._begun = self._last = clock()

    def done(self, kind: str, units: int = 1, figures: Mapping[str, float] | None = None) -> None:
        """So many units ended, on which the time since the last call was spent."""
        now = self._clock()
        self._taken[kind] += now - self._last
        self._ended[kind] += units
        self._last = now
        self.skip(kind, units, figures)

    def skip(self, kind: str, units: int, figures: Mapping[str, float] | None = None) -> None:
        """So many units need not be done."""
        self._left[kind] = max(0, self._left[kind] - units)
        gone, left = self._last - self._begun, self._seconds_left()
        more = max(1, round(left)) if any(self._left.values()) else 0
        self._update(STAGE, round(gone), max(1, round(gone) + more), figures or {})

    def end(self) -> None:
        """Nothing is left."""
        gone = max(1, round(self._clock() - self._begun))
        self._update(STAGE, gone, gone, {})

    def _seconds_left(self) -> float:
        each = {k: self._taken[k] / n if n else GUESS[k] for k, n in self._ended.items()}
        return sum(each[kind] * units for kind, units in self._left.items())
