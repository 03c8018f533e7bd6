"""A limit in time for what a task awaits: `asyncio.timeout`, without coroutines of its own.

An event loop that is late is not the fault of who is awaited. The time runs from the loop's next
pass, when what was asked has gone out; and when it is over, what has come meanwhile still counts.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

_PASSES = 3
"""uvloop may need so many until a task has what lay in a socket: to look there after its timers, to
hand it over, to wake the task."""


class Limit:
    """`with Limit(seconds)`: what is awaited within is cancelled when the time is over, and the
    block then ends with TimeoutError. Another's cancellation stays one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._loop = task.get_loop()
        self._timer: asyncio.Handle = self._loop.call_soon(self._start)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if not self._expired:
            return
        mine = self._task.uncancel() <= self._cancelling
        if mine and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def _start(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look, _PASSES)

    def _look(self, passes: int) -> None:
        if passes:
            self._timer = self._loop.call_soon(self._look, passes - 1)
        else:
            self._expire()

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
