"""The limit in time: it ends what takes too long, and nothing else."""

from __future__ import annotations

import asyncio
import time

import pytest

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
