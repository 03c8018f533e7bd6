"""The batcher: turns single items into calls of `run`. Knows neither HTTP nor ONNX.

One loop owns the queue. It waits for a free worker, takes from the head of the queue what fits in
one call, and hands it to a thread. Nothing waits for company: what arrived while the workers ran
forms the next calls. Small items of one group share a call up to their `merge_limit`; a larger one
runs alone. The limit of what may wait is in work, not in items, and is checked before the queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Generic, TypeVar

from service.errors import DeadlineExceeded, Overloaded, Stopped

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_MEMBERS = 64
MAX_WAITING = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done(Generic[Answer]):
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
        self._alive = False

    async def __aenter__(self) -> Batcher[Item, Answer]:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="model")
        self._idle = asyncio.Semaphore(self.workers)
        self._arrival = asyncio.Event()
        self._alive = True
        self._loop = asyncio.create_task(self._serve(), name="batcher")
        self._loop.add_done_callback(self._loop_ended)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Admission ends first, then the loop, then the calls that still run.
        self._alive = False
        self._loop.cancel()
        await asyncio.wait([self._loop])
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

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
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Answer] = _Entry(
            item, work, self._group(item), loop.create_future(), deadline, perf_counter()
        )
        self._queue.append(entry)
        self._queued += work
        self._length += 1
        self._unresolved.add(entry)
        self._arrival.set()
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await entry.future
        except TimeoutError:
            if limit.expired():
                late = "The deadline passed before the score was there"
                raise DeadlineExceeded(late, "model" if entry.taken else "queue") from None
            raise
        finally:
            self._leave(entry)
            self._unresolved.discard(entry)
            if entry.future.done() and not entry.future.cancelled():
                entry.future.exception()  # seen, even if the caller left just then

    def _leave(self, entry: _Entry[Item, Answer]) -> None:
        """An entry no longer waits: its work is not counted, its place in the queue is void."""
        if entry.waiting:
            entry.waiting = False
            self._queued -= entry.work
            self._length -= 1

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._idle.acquire()
            while not (taken := self._take(loop.time())):
                self._arrival.clear()
                await self._arrival.wait()
            started = perf_counter()
            call = loop.run_in_executor(self._pool, self._call, [entry.item for entry in taken])
            call.add_done_callback(partial(self._called, taken, started))

    def _take(self, now: float) -> list[_Entry[Item, Answer]]:
        """Entries for one call from the head of the queue, without those whose caller is gone."""
        taken: list[_Entry[Item, Answer]] = []
        items: list[Item] = []
        while self._queue:
            entry = self._queue[0]
            # One whose deadline passed is about to be told so by its own timer in `submit`.
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

    def _call(self, items: list[Item]) -> list[Answer | Exception]:
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
        return list(answers)

    def _called(
        self,
        taken: list[_Entry[Item, Answer]],
        started: float,
        call: asyncio.Future[list[Answer | Exception]],
    ) -> None:
        self._idle.release()
        ran = perf_counter() - started
        failed = Stopped("The call was given up") if call.cancelled() else call.exception()
        outcomes = call.result() if failed is None else []
        for at, entry in enumerate(taken):
            if entry.future.done():
                continue
            outcome = failed or outcomes[at]
            if isinstance(outcome, BaseException):
                entry.future.set_exception(outcome)
            else:
                waited = started - entry.arrived
                entry.future.set_result(Done(outcome, waited, ran, len(taken)))

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """No entry outlives the loop: whoever waits gets an answer, whatever ended it."""
        if not task.cancelled():
            _log.critical("the batcher's loop died", exc_info=task.exception())
        self._alive = False
        self._queue.clear()
        for entry in self._unresolved:
            self._leave(entry)
            if not entry.future.done():
                entry.future.set_exception(Stopped("The batcher stopped"))
