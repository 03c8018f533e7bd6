"""How far a comparison is: one stage for all that it does, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from terminal.progress import Update

STAGE = "all work (s)"
GUESS = {"scores": 1.0, "graph": 5.0, "turn": 0.1, "page": 10.0}
"""Seconds of a model's scores, of an export, of a round of timed calls, and of the pictures and the
page: what is counted on before the first of them has ended."""
_STAGES = {"train": "train", "validate": "score", "measure": "score"}


class Work:
    """What is left, by kind, in units that take about as long each.

    The seconds that are left are those units times what one took here so far (before the first:
    ``guess``), and the whole is those that went by with these: it changes as units turn out longer
    or shorter than thought.
    """

    def __init__(
        self,
        update: Update,
        units: Mapping[str, int],
        guess: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._update, self._left, self._clock = update, dict(units), clock
        self._guess = guess
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
        each = {k: self._taken[k] / n if n else self._guess[k] for k, n in self._ended.items()}
        return sum(each[kind] * units for kind, units in self._left.items())


def kind(what: str, label: str) -> str:
    """Of work: to ``train`` on an impression, or to ``score`` it, takes each model another time."""
    return f"{what} {label}"


class Training:
    """An `Update` for the training of one run of ``label``, which has so many ``units``."""

    def __init__(self, work: Work, label: str, units: Mapping[str, int]) -> None:
        self._work, self._label, self._left = work, label, dict(units)
        self._last: dict[str, int] = {}

    def __call__(self, stage: str, here: int, _: int, figures: Mapping[str, float]) -> None:
        if stage not in _STAGES:
            return
        what, before = _STAGES[stage], self._last.get(stage, 0)
        units = here - before if here > before else here  # validation begins anew each time
        # The first impressions of a run that goes on are old.
        count = self._work.skip if stage == "train" and not before else self._work.done
        count(kind(what, self._label), units, figures)
        self._last[stage] = here
        self._left[what] -= units

    def end(self) -> None:
        """It may have stopped early."""
        for what, units in self._left.items():
            self._work.skip(kind(what, self._label), units)
