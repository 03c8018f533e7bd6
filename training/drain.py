"""Draining: entries go from the streams into the files, and from the streams only after that.

Whatever fails on the way, the next turn begins with what is still pending; the writer knows what
is in the files already. So an entry that the service took is in the files once, in the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from store.errors import in_words
from training.collected import Writer, Written
from training.entries import Taken
from training.streams import Streams

IDLE_SECONDS = 0.2
_PAUSES = (0.1, 5.0)
Tell = Callable[..., None]


@dataclass(frozen=True)
class Pace:
    """Entries are written once there are so many ``rows``, or ``bytes`` of payload, or after
    ``every`` seconds. What another consumer has held for ``claim_after`` seconds is taken over."""

    rows: int = 10_000
    every: float = 30.0
    claim_after: float = 60.0
    bytes: int = 64 * 2**20


@dataclass
class Drain:
    """From streams to files, for as long as ``stop`` is not set.

    ``written`` hears of each batch that is on disk; ``turn`` is called after each, and every
    ``pace.every`` seconds without one; ``tell`` gets an event and its figures.
    """

    streams: Streams
    writer: Writer
    pace: Pace
    stop: threading.Event
    tell: Tell
    written: Callable[[Written], None] = lambda written: None
    turn: Callable[[], None] = lambda: None
    _batch: list[Taken] = field(default_factory=list)
    _bytes: int = 0

    def run(self) -> None:
        """Until stopped; then what was read is written. Waits for a Redis that is away."""
        pause = _PAUSES[0]
        while not self.stop.is_set():
            try:
                self._begin()
                pause = _PAUSES[0]
                while not self.stop.is_set():
                    self._until_due()
                    self._flush()
                    self._take_over()
                    self.turn()
                self.streams.leave()
            except RedisError as error:
                self.tell("redis_away", error=in_words(error), pause=pause)
                self.stop.wait(pause)
                pause = min(2 * pause, _PAUSES[1])

    def once(self) -> None:
        """Write what is there now. Raises RedisError."""
        self._begin()
        before = self.streams.now()
        later = False
        while not later and not self.stop.is_set():
            later = True
            for found in self.streams.fresh():
                later &= all(taken.ms > before for taken in found)
                self._add(found)
        self._flush()
        self.turn()
        self.streams.leave()

    def _begin(self) -> None:
        """Join, and deal with what this consumer, or one that is gone, left pending."""
        self._clear()
        self.streams.join()
        self.streams.claim(round(self.pace.claim_after * 1000))
        self._write_pending()

    def _until_due(self) -> None:
        """Read until a batch was written or is due. All partitions have their turn before that."""
        due, full = time.monotonic() + self.pace.every, False
        while not full and not self.stop.is_set():
            left = due - time.monotonic()
            if left <= 0:
                return
            idle = True
            for found in self.streams.fresh():
                full |= self._add(found)
                idle = False
            if idle:
                self.stop.wait(min(IDLE_SECONDS, left))

    def _take_over(self) -> None:
        """Take over from consumers that are gone; this one has nothing pending now."""
        if self.streams.claim(round(self.pace.claim_after * 1000)):
            self._write_pending()

    def _write_pending(self) -> None:
        for found in self.streams.pending():
            self._add(found)
        self._flush()

    def _add(self, found: list[Taken]) -> bool:
        """Put entries to the batch; whether that was full, and is written."""
        self._batch.extend(found)
        self._bytes += sum(taken.size for taken in found)
        full = len(self._batch) >= self.pace.rows or self._bytes >= self.pace.bytes
        if full:
            self._flush()
        return full

    def _flush(self) -> None:
        """Write the batch; only what is on disk is done."""
        if self._batch:
            self.written(self.writer.write(self._batch))
            self.streams.done(self._batch)
            self._clear()

    def _clear(self) -> None:
        self._batch.clear()
        self._bytes = 0
