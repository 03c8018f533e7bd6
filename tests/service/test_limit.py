"""The limit in time: it ends what takes too long, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from service.limit import Limit

FAR, SOON = 60.0, 0.01


def test_what_is_done_in_time_is_left_alone() -> None:
    """The block's own result, and its own error, come through; nothing fires afterwards."""

    async def scenario() -> None:
        with Limit(SOON):
            await asyncio.sleep(0)
        with pytest.raises(KeyError), Limit(SOON):
            raise KeyError
        await asyncio.sleep(5 * SOON)

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [0.0, SOON])
def test_what_takes_too_long_ends_with_a_timeout(seconds: float) -> None:
    """The task goes on after it, cancelled no more."""

    async def scenario() -> None:
        with pytest.raises(TimeoutError), Limit(seconds):
            await asyncio.sleep(FAR)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_the_outer_of_two_limits_ends_both() -> None:
    """The inner one does not take the other's cancellation for its own."""
    ended: list[str] = []

    async def waiting() -> None:
        try:
            with Limit(FAR):
                await asyncio.sleep(FAR)
        except TimeoutError:
            ended.append("inner")
            raise

    async def scenario() -> None:
        with pytest.raises(TimeoutError), Limit(SOON):
            await waiting()

    asyncio.run(scenario())
    assert ended == []


@pytest.mark.parametrize("late", [False, True])
def test_who_is_cancelled_stays_cancelled(late: bool) -> None:
    """Also when the time is over in the same moment."""

    async def waiting() -> None:
        with Limit(SOON if late else FAR):
            await asyncio.sleep(FAR)

    async def scenario() -> None:
        task = asyncio.create_task(waiting())
        await asyncio.sleep(0)
        if late:
            time.sleep(2 * SOON)  # so that the timer is due with the cancellation
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(scenario())


def test_the_time_runs_from_the_loop_s_next_pass() -> None:
    """What keeps the loop before it could send anything is no one else's fault."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        ahead, real = 0.0, loop.time
        loop.time = lambda: real() + ahead  # type: ignore[method-assign]
        with Limit(FAR):
            ahead = 2 * FAR
            for _ in range(5):
                await asyncio.sleep(0)

    asyncio.run(scenario())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_came_while_the_loop_was_busy_came_in_time(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Also where it was busy with what another socket brought: it looks there once more."""

    async def scenario() -> None:
        running, found = asyncio.get_running_loop(), asyncio.Event()
        ours, theirs = socket.socketpair()
        alarm, others = socket.socketpair()

        def busy() -> None:
            running.remove_reader(alarm)
            theirs.send(b"x")
            time.sleep(3 * SOON)

        running.add_reader(ours, found.set)
        running.add_reader(alarm, busy)
        with ours, theirs, alarm, others:
            try:
                with Limit(SOON):
                    running.call_soon(others.send, b"x")  # when the time runs
                    await found.wait()
            finally:
                running.remove_reader(ours)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())
