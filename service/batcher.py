"""The batcher: turns single items into calls of `run`. Knows neither HTTP nor ONNX.

The event loop owns the queue. Whenever a worker is free it takes from the head of the queue what
fits in one call, and hands it to a thread. Nothing waits for company: what arrived while the
workers ran forms the next calls. Small items of one group share a call up to their `merge_limit`; a
larger one runs alone. The limit of what may wait is in work, not in items, and is checked before
the queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from service.errors import DeadlineExceeded, Overloaded, Stage, Stopped

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_MEMBERS = 64
MAX_WAITING = 4096
_log = logging.getLogger(__name__)


class Done(NamedTuple, Generic[Answer]):
    """An answer with the seconds its item waited and the seconds its call ran."""

    answer: Answer
    queue_seconds: float
    run_seconds: float
    members: int


@dataclass(eq=False)
class _Entry(Generic[Item, Answer]):
    item: Item
    work: int
    group: Hashable
    future: asyncio.Future[Done[Answer]]
    deadline: float
    arrived: float
    waiting: bool = True
    taken: bool = False


class Batcher(Generic[Item, Answer]):
    """Calls ``run(items) -> answers``, one per item in their order, in `workers` threads.

    ``cost(items)`` is the work of a call of these items together, ``group(item)`` says which items
    may share one, and ``merge_limit(item)`` up to how much work. `async with` opens and closes it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        cost: Callable[[Sequence[Item]], int],
        group: Callable[[Item], Hashable],
        merge_limit: Callable[[Item], int],
        queue_limit: int,
        workers: int,
    ) -> None:
        self._run, self._cost, self._group = run, cost, group
        self._merge_limit, self._queue_limit = merge_limit, queue_limit
        self.workers = workers
        self._queue: deque[_Entry[Item, Answer]] = deque()
        self._queued = self._length = 0
        self._unresolved: set[_Entry[Item, Answer]] = set()
        self._calls: SimpleQueue[tuple[list[_Entry[Item, Answer]], float] | None] = SimpleQueue()
        self._idle = workers
        self._due = False  # the queue is to be looked at
        self._alive = False

    async def __aenter__(self) -> Batcher[Item, Answer]:
        self._loop = asyncio.get_running_loop()
        self._threads = [
            Thread(target=self._work, name=f"model_{number}", daemon=True)
            for number in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()
        self._alive = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Admission and whoever waits end first, then the calls that still run.
        self._end()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    @property
    def alive(self) -> bool:
        """Whether items are taken and calls are made."""
        return self._alive

    @property
    def queued(self) -> int:
        """Work that waits."""
        return self._queued

    @property
    def length(self) -> int:
        """Items that wait."""
        return self._length

    async def submit(self, item: Item, deadline: float) -> Done[Answer]:
        """The answer for one item, before ``deadline`` of the loop's clock.

        Raises `Stopped`, `Overloaded`, `DeadlineExceeded`, or what ``run`` raised for this item.
        A cancelled caller's item is not run, if it has not started.
        """
        if not self._alive:
            raise Stopped("The batcher does not run")
        work = self._cost([item])
        # One item is taken however large it is: refused at an empty queue it could never pass.
        full = self._queued + work > self._queue_limit or len(self._queue) >= MAX_WAITING
        if self._queued and full:
            raise Overloaded("Too much work is waiting")
        future: asyncio.Future[Done[Answer]] = self._loop.create_future()
        entry = _Entry(item, work, self._group(item), future, deadline, perf_counter())
        self._queue.append(entry)
        self._queued += work
        self._length += 1
        self._unresolved.add(entry)
        if self._idle and not self._due:  # soon: what arrives together may share a call
            self._due = True
            self._loop.call_soon(self._look)
        timer = self._loop.call_at(deadline, _expire, entry)
        try:
            return await future
        finally:
            timer.cancel()
            self._leave(entry)
            self._unresolved.discard(entry)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even if the caller left just then

    def _leave(self, entry: _Entry[Item, Answer]) -> None:
        """An entry no longer waits: its work is not counted, its place in the queue is void."""
        if entry.waiting:
            entry.waiting = False
            self._queued -= entry.work
            self._length -= 1

    def _look(self) -> None:
        """Hand the queue's head to the workers that are free."""
        self._due = False
        try:
            while self._idle and (taken := self._take(self._loop.time())):
                self._idle -= 1
                self._calls.put((taken, perf_counter()))
        except Exception:
            _log.critical("the batcher's queue broke", exc_info=True)
            self._end()

    def _take(self, now: float) -> list[_Entry[Item, Answer]]:
        """Entries for one call from the head of the queue, without those whose caller is gone."""
        taken: list[_Entry[Item, Answer]] = []
        items: list[Item] = []
        while self._queue:
            entry = self._queue[0]
            # One whose deadline passed is about to be told so by its own timer.
            if entry.waiting and not entry.future.done() and entry.deadline > now:
                together = [*items, entry.item]
                if taken and not self._may_join(taken, entry, together):
                    break
                taken.append(entry)
                entry.taken = True
                items = together
            self._queue.popleft()
            self._leave(entry)
        return taken

    def _may_join(
        self, taken: list[_Entry[Item, Answer]], entry: _Entry[Item, Answer], together: list[Item]
    ) -> bool:
        return (
            entry.group == taken[0].group
            and len(together) <= MAX_MEMBERS
            and self._cost(together) <= self._merge_limit(entry.item)
        )

    def _call(self, items: list[Item]) -> Sequence[Answer | BaseException]:
        """Run in a worker: one answer or exception per item; a call of several that fails is
        made anew member by member, so that only the bad one fails."""
        try:
            answers = list(self._run(items))
            if len(answers) != len(items):
                raise RuntimeError(f"{len(answers)} answers for {len(items)} items")
        except Exception as error:
            if len(items) == 1:
                return [error]
            _log.warning("a call of %d failed, running its members alone", len(items))
            return [outcome for item in items for outcome in self._call([item])]
        return answers

    def _work(self) -> None:
        """A worker's thread: one call after the other."""
        while (call := self._calls.get()) is not None:
            taken, started = call
            try:
                outcomes = self._call([entry.item for entry in taken])
            except BaseException as error:  # no caller may hang
                outcomes = [error] * len(taken)
            self._loop.call_soon_threadsafe(self._called, taken, started, outcomes)

    def _called(
        self,
        taken: list[_Entry[Item, Answer]],
        started: float,
        outcomes: Sequence[Answer | BaseException],
    ) -> None:
        ran = perf_counter() - started
        self._idle += 1
        for entry, outcome in zip(taken, outcomes, strict=True):
            if entry.future.done():
                continue
            if isinstance(outcome, BaseException):
                entry.future.set_exception(outcome)
            else:
                waited = started - entry.arrived
                entry.future.set_result(Done(outcome, waited, ran, len(taken)))
        if self._queue:
            self._look()

    def _end(self) -> None:
        """No entry outlives the batcher: whoever waits gets an answer, whatever ended it."""
        self._alive = False
        self._queue.clear()
        for entry in self._unresolved:
            self._leave(entry)
            if not entry.future.done():
                entry.future.set_exception(Stopped("The batcher stopped"))


def _expire(entry: _Entry[Any, Any]) -> None:
    if not entry.future.done():
        late = "The deadline passed before the score was there"
        at: Stage = "model" if entry.taken else "queue"
        entry.future.set_exception(DeadlineExceeded(late, at))
