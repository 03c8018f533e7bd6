"""The trial: whether a canary fails more of its requests than the stable version does."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 1000
_SIGMAS = 3.0


class Trial:
    """Outcomes of the last `WINDOW` requests of each side.

    The canary is out of its band when, over at least ``least`` requests, it failed more of them
    than the stable version's rate plus ``band`` explains: by three standard deviations, so that
    luck alone ends no canary.
    """

    def __init__(self, band: float, least: int) -> None:
        self._band, self._least = band, least
        self._canary: deque[bool] = deque(maxlen=max(WINDOW, least))
        self._stable: deque[bool] = deque(maxlen=max(WINDOW, least))

    def clear(self) -> None:
        """Another canary begins."""
        self._canary.clear()
        self._stable.clear()

    def note(self, *, canary: bool, failed: bool) -> None:
        """How a request ended."""
        (self._canary if canary else self._stable).append(failed)

    def verdict(self) -> str | None:
        """Why the canary has to go, in words; None as long as it may stay."""
        count, failed = len(self._canary), sum(self._canary)
        others, theirs = len(self._stable), sum(self._stable)
        if count < self._least:
            return None
        rate = min(1.0, theirs / max(1, others) + self._band)
        most = count * rate + _SIGMAS * math.sqrt(count * rate * (1 - rate))
        if failed <= most:
            return None
        return f"{failed} of {count} requests failed, of the stable version's {theirs} of {others}"
